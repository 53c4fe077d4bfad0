"""``s2dc evaluate`` on files, and what it says about bad ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from napari_s2dc.engine.cli import main
from napari_s2dc.volumes.io import read_volume, write_volume
from tests.engine.torso_files import image, labels


def test_evaluate_takes_the_label_map_where_it_lies_beside_its_scan(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    found.mkdir()
    shutil.copy(image(torsos, 1), found / "torso1.nii.gz")
    truth = read_volume(labels(torsos, 1), labels=True)
    write_volume(found / "torso1.labels.nii.gz", truth.array, truth, result="label map")
    confidence = np.ones(truth.shape, np.float32)
    write_volume(found / "torso1.confidence.nii.gz", confidence, truth, result="confidence map")
    assert main(["evaluate", str(found), str(torsos / "labels"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_dice"] == 1
    # Two that nothing tells apart.
    shutil.copy(labels(torsos, 2), found / "torso2.nii.gz")
    shutil.copy(labels(torsos, 2), found / "torso2.labels.nii.gz")
    assert main(["evaluate", str(found), str(torsos / "labels")]) == 2
    assert "the same name" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".labels", ".seg", ""])
def test_evaluate_compares_folders_by_name(
    ending: str, torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    found.mkdir()
    shutil.copy(labels(torsos, 1), found / f"torso1{ending}.nii.gz")
    shutil.copy(labels(torsos, 2), found / "other.nii.gz")
    assert main(["evaluate", str(found), str(torsos / "labels"), "--json"]) == 0
    written = capsys.readouterr()
    facts = json.loads(written.out)
    assert facts["mean_dice"] == 1
    assert [Path(one["scan"]).name for one in facts["scans"]] == [f"torso1{ending}.nii.gz"]
    assert "other.nii.gz" in written.err
    missing = labels(torsos, 2)
    assert f"1 of 2 references, since {found} has no file of that name: {missing}" in written.err
    assert facts["missing"] == [missing]
    assert [Path(one["scan"]).name for one in facts["skipped"]] == ["other.nii.gz"]


def test_evaluate_has_no_distance_where_nothing_was_found(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_volume(labels(torsos, 1), labels=True)
    for seed in (1, 2):
        write_volume(tmp_path / f"torso{seed}.nii.gz", np.zeros_like(truth.array), truth)
    assert main(["evaluate", str(tmp_path), str(torsos / "labels")]) == 0
    table = capsys.readouterr().out
    assert "nan" not in table
    assert "Dice 0.000, HD95 - mm" in table


def test_evaluate_says_what_it_cannot_compare(
    torsos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", labels(torsos, 1), str(torsos / "labels")]) == 2
    assert "one is a folder" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    shutil.copy(labels(torsos, 1), tmp_path / "none" / "x.nii.gz")
    assert main(["evaluate", str(tmp_path / "none"), str(torsos / "labels")]) == 2
    assert "No file of" in capsys.readouterr().err
    assert main(["evaluate", labels(torsos, 1), labels(torsos, 2)]) == 0
    table = capsys.readouterr().out
    assert "HD95 mm" in table
    assert "mean" in table
    assert "at a tolerance of 3 mm" in table
    pair = [labels(torsos, 1), labels(torsos, 2)]
    assert main(["evaluate", *pair, "--tolerance", "500", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scans"][0]["tolerance_mm"] == 500
    # All that both have is within half a metre.
    shares = [one["surface_dice"] for one in facts["scans"][0]["classes"]]
    assert set(shares) <= {0.0, 1.0}
    assert facts["mean_surface_dice"] == pytest.approx(np.mean(shares))
    assert main(["evaluate", *pair, "--tolerance", "-1"]) == 2
    assert "A tolerance of -1 mm makes no sense" in capsys.readouterr().err
