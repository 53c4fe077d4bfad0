"""What a match leaves on disk can be read by other programs."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.match_files import (
    PAIR_COLUMNS,
    PLAN_KEY,
    save_affine,
    save_pairs,
    save_plan,
)
from napari_s2dc.errors import S2DCError
from tests.engine.random_features import embedding


def test_pairs_are_a_table(tmp_path: Path) -> None:
    one = replace(embedding(), affine=np.diag([2.0, 1.5, 1.0, 1.0]) + np.eye(4, k=3) * 5)
    pairs = match_embeddings(one, one).pairs().best(20)
    path = save_pairs(pairs, tmp_path / "deep" / "pairs.csv")
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == PAIR_COLUMNS
    assert len(rows) == 20
    for scan, voxel, mm in (("a", pairs.voxel_a, pairs.mm_a), ("b", pairs.voxel_b, pairs.mm_b)):
        for unit, wanted in (("vox", voxel), ("mm", mm)):
            read = [[float(row[f"{scan}_{unit}_{axis}"]) for axis in "zyx"] for row in rows]
            np.testing.assert_allclose(read, wanted, atol=1e-4)
    confidence = [float(row["confidence"]) for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    assert {row["mutual"] for row in rows} <= {"0", "1"}


@pytest.mark.parametrize("memory", [3 * 2**30, 60_000])
def test_the_plan_is_readable_with_safetensors_alone(memory: int, tmp_path: Path) -> None:
    match = match_embeddings(embedding(), embedding(seed=1), MatchSettings(memory_bytes=memory))
    path = save_plan(match, tmp_path / "plan.safetensors")
    with safe_open(path, framework="np") as stream:
        facts = json.loads(stream.metadata()[PLAN_KEY])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    assert facts["a"]["grid"] == [6, 8, 7]
    assert facts["b"]["token_side_vox"] == 4
    assert ("candidates" in tensors) == (match.candidates is not None) == (memory < 1e6)
    np.testing.assert_array_equal(tensors["mass"], match.mass.numpy())
    np.testing.assert_array_equal(tensors["index_a"], match.index_a.numpy())


def test_the_affine_is_written_in_both_conventions(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = (1.0, 2.0, 3.0)  # superior, posterior, left
    matrix[0, 1] = 0.5
    path = save_affine(Alignment(matrix, np.array([True, False]), 0.25), tmp_path / "a.json", a="x")
    facts = json.loads(path.read_text())
    assert facts["a"] == "x"
    assert (facts["pairs"], facts["inliers"], facts["residual_mm"]) == (2, 1, 0.25)
    np.testing.assert_allclose(facts["matrix_zyx_lps"], matrix)
    ras = np.array(facts["matrix_xyz_ras"])
    np.testing.assert_allclose(ras[:3, 3], [-3, -2, 1])
    # One mm to anterior is one to the front: half a mm down.
    np.testing.assert_allclose(ras[:3, :3] @ [0, 1, 0], [0, 1, -0.5])
    assert facts["mirrored"] is False


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    pairs = match_embeddings(embedding(), embedding()).pairs()
    with pytest.raises(S2DCError, match="Cannot write"):
        save_pairs(pairs, tmp_path / "file" / "pairs.csv")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    match = match_embeddings(embedding(), embedding())
    with pytest.raises(S2DCError, match="No space left"):
        save_plan(match, tmp_path / "plan.safetensors")
    assert not list(tmp_path.iterdir())
