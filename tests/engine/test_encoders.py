"""Encoders at hand are listed without torch, and a scan far from the training is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine import encoders
from napari_s2dc.engine.encoders import (
    ANY_CONTRAST,
    EncoderChoice,
    available_encoders,
    bundled_encoder,
    default_encoder,
    encoder_named,
    latest_local_run,
    mismatch,
    name_of,
    preset_of,
    remember_local_run,
    weights_hash,
)
from napari_s2dc.errors import CheckpointError
from napari_s2dc.method.checkpoint_files import METADATA_KEY
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

FACTS: dict[str, Any] = {
    "name": "torsos",
    "preprocessing": {"preset": "ct_soft_tissue"},
    "spacing_mm": [3.0, 3.0, 3.0],
    "token_stage": 2,
    "training": {"volumes": 12, "steps": 1},
}


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer without encoders; its package folder, which may get a folder ``weights``."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(encoders, "files", lambda _: package)
    return package


def test_the_key_is_that_of_checkpoints() -> None:
    assert encoders.METADATA_KEY == METADATA_KEY


def test_without_encoders_one_sentence_says_how_to_get_one(computer: Path) -> None:
    assert available_encoders() == []
    with pytest.raises(CheckpointError, match="bundled encoder is missing"):
        default_encoder()


def test_bundled_encoders_come_before_the_latest_run(computer: Path, tiny: SwinEncoder) -> None:
    tiny.save(computer / "weights" / "b.safetensors", FACTS)
    tiny.save(computer / "weights" / "a.safetensors")
    run = computer.parent / "run" / "encoder.safetensors"
    tiny.save(run, {"preprocessing": {"preset": "mr"}})
    remember_local_run(run)
    assert available_encoders() == [
        EncoderChoice("a", computer / "weights" / "a.safetensors", "tiny"),
        EncoderChoice(
            "torsos", computer / "weights" / "b.safetensors", "tiny, CT, 12 scans, 1 step"
        ),
        EncoderChoice("latest local run", run, "tiny, MR"),
    ]
    assert default_encoder() == computer / "weights" / "a.safetensors"
    assert encoder_named("Torsos") == computer / "weights" / "b.safetensors"
    assert encoder_named("torso") is None


def test_an_encoder_comes_with_the_package_small_and_described() -> None:
    path = bundled_encoder()
    assert path.name == "s2dc_tiny.safetensors"
    assert path.stat().st_size < 20e6
    encoder = SwinEncoder.from_checkpoint(path)
    assert next(encoder.parameters()).dtype == torch.float32
    assert encoder.metadata["token_stage"] == 2
    assert encoder.metadata["training"]["steps"] >= 1000
    assert available_encoders()[0] == EncoderChoice(
        encoder.metadata["name"], path, available_encoders()[0].description
    )
    second = SwinEncoder.from_checkpoint(encoder_named(ANY_CONTRAST) or "")
    assert second.config.borders
    assert available_encoders()[1].description.startswith("tiny, by borders, 28 scans")
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert path.name in card
    assert ANY_CONTRAST in card
    assert "Not a medical device" in card


def test_a_run_that_is_gone_is_not_listed(computer: Path, tiny: SwinEncoder) -> None:
    run = computer.parent / "encoder.safetensors"
    tiny.save(run)
    remember_local_run(run)
    assert latest_local_run() == run
    run.unlink()
    assert available_encoders() == []


def test_a_broken_note_is_none(computer: Path) -> None:
    note = computer.parent / "data" / "napari-s2dc" / "latest_run.json"
    note.parent.mkdir(parents=True)
    for content in ("", "[]", '{"encoder": 3}', "null", '{"other": "x"}'):
        note.write_text(content)
        assert latest_local_run() is None


def test_a_data_folder_that_cannot_be_written_is_no_error(
    computer: Path, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = computer.parent / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_DATA_HOME", str(blocked))
    remember_local_run(computer)
    assert latest_local_run() is None


def test_a_relative_path_is_found_from_elsewhere(
    computer: Path, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(computer / "encoder.safetensors")
    monkeypatch.chdir(computer)
    remember_local_run(Path("encoder.safetensors"))
    monkeypatch.chdir(computer.parent)
    assert latest_local_run() == computer / "encoder.safetensors"


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"\x05" + bytes(7) + b"nonsense"])
def test_files_that_are_no_checkpoints_have_no_description(computer: Path, content: bytes) -> None:
    (computer / "weights").mkdir()
    (computer / "weights" / "odd.safetensors").write_bytes(content)
    assert [choice.description for choice in available_encoders()] == [""]


def test_listing_needs_no_torch() -> None:
    program = (
        "import sys; from napari_s2dc.engine.encoders import available_encoders\n"
        "available_encoders()\n"
        "assert not {'torch', 'monai', 'sklearn', 'napari'} & set(sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


# --- what an encoder is --------------------------------------------------------------------------


def _encoder(facts: dict[str, Any], seed: int = 0) -> SwinEncoder:
    torch.manual_seed(seed)
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    encoder.metadata = facts
    return encoder


def test_the_name_is_its_own_or_that_of_its_file(tmp_path: Path) -> None:
    assert name_of(_encoder(FACTS)) == "torsos"
    assert name_of(_encoder({})) == "untrained tiny"
    _encoder({}).save(tmp_path / "mine.safetensors")
    assert name_of(SwinEncoder.from_checkpoint(tmp_path / "mine.safetensors")) == "mine"


def test_equal_weights_have_equal_hashes(tmp_path: Path) -> None:
    encoder = _encoder(FACTS)
    encoder.save(tmp_path / "mine.safetensors")
    assert weights_hash(SwinEncoder.from_checkpoint(tmp_path / "mine.safetensors")) == weights_hash(
        encoder
    )
    assert weights_hash(_encoder(FACTS, seed=1)) != weights_hash(encoder)
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(_encoder(FACTS)) != weights_hash(encoder)


@pytest.mark.parametrize(
    ("facts", "asked", "modality", "expected"),
    [
        (FACTS, "checkpoint", None, "ct_soft_tissue"),
        (FACTS, "pet", None, "pet"),
        (FACTS, "auto", None, "ct"),
        ({}, "checkpoint", None, "ct"),
        ({}, "checkpoint", "pet", "pet"),
        ({"preprocessing": {"preset": "auto"}}, "checkpoint", "mr", "mr"),
        ({"preprocessing": "odd"}, "checkpoint", None, "ct"),
        ({"preprocessing": {"preset": "unheard of"}}, "checkpoint", None, "ct"),
    ],
)
def test_presets_are_resolved(
    torso: Volume, facts: dict[str, Any], asked: str, modality: str | None, expected: str
) -> None:
    volume = replace(torso, modality=modality)
    assert preset_of(volume, _encoder(facts), asked) == expected


# --- far from the training -----------------------------------------------------------------------


def test_a_scan_like_the_training_is_not_warned_of() -> None:
    ct, _ = phantom((32, 48, 48), spacing_mm=3.0, seed=1)
    assert mismatch(ct, _encoder(FACTS)) == ""
    assert mismatch(replace(ct, modality="ct"), _encoder(FACTS)) == ""
    near, _ = phantom((32, 48, 48), spacing_mm=(5.0, 1.6, 1.6), seed=1)
    assert mismatch(near, _encoder(FACTS)) == ""


def test_another_kind_or_spacing_is_one_sentence() -> None:
    mr, _ = phantom((32, 48, 48), spacing_mm=3.0, seed=1, contrast="t1")
    assert mismatch(mr, _encoder(FACTS)) == ("This scan is MR and the encoder was trained on CT.")
    thick, _ = phantom((32, 48, 48), spacing_mm=(7.0, 0.75, 0.75), seed=1)
    assert mismatch(thick, _encoder(FACTS)) == (
        "This scan has voxels of 7 × 0.75 × 0.75 mm and the encoder was trained at 3 × 3 × 3 mm."
    )
    both = mismatch(replace(thick, modality="pet"), _encoder(FACTS))
    assert both.startswith("This scan is PET and")
    assert both.count(".") == both.count("0.75") + 1


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"spacing_mm": None, "preprocessing": {"preset": "auto"}},
        {"spacing_mm": [0, 1, 1]},
        {"spacing_mm": ["a", 1, 1]},
        {"spacing_mm": "odd", "preprocessing": ["odd"]},
    ],
)
def test_where_nothing_is_known_nothing_is_said(torso: Volume, facts: dict[str, Any]) -> None:
    assert mismatch(torso, _encoder(facts)) == ""


@pytest.mark.parametrize("side", [0.001, 80.0])
@pytest.mark.parametrize("facts", [FACTS, {}])
def test_a_spacing_that_cannot_be_is_said_whatever_is_known(
    torso: Volume, side: float, facts: dict[str, Any]
) -> None:
    wrong = replace(torso, affine=np.diag([side, side, side, 1.0]))
    sentence = mismatch(wrong, _encoder(facts))
    assert f"This scan states voxels of {side:g} × {side:g} × {side:g} mm, hardly" in sentence
    assert "was trained at" not in sentence


def test_pet_that_does_not_say_so_is_not_called_mr() -> None:
    mr, _ = phantom((32, 48, 48), spacing_mm=3.0, seed=1, contrast="t1")
    unsaid = replace(mr, modality=None)
    assert mismatch(unsaid, _encoder({"preprocessing": {"preset": "pet"}})) == ""
    assert mismatch(unsaid, _encoder(FACTS)) != ""
