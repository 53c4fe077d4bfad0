"""A segmentation model as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from napari_s2dc.engine.fewshot_settings import SegmentationClass
from napari_s2dc.engine.segmentation_model import ModelFileError, SegmentationModel
from napari_s2dc.method.encoder import SwinEncoder


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    encoder.metadata = {"name": "small one"}
    return SegmentationModel(
        kind="quick",
        encoder=encoder,
        tensors={"bias": torch.arange(3.0)},
        classes=(SegmentationClass(300, "liver", (1.0, 0.5, 0.0)),),
        preset="mr",
        spacing_mm=(2.0, 1.0, 1.0),
        metadata={"metrics": {"dice": 0.5}, "stages": [2], "smoothing_vox": [0.0]},
    )


def test_what_was_saved_is_loaded(model: SegmentationModel, tmp_path: Path) -> None:
    found = SegmentationModel.load(model.save(tmp_path / "model.safetensors"))
    assert (found.kind, found.classes, found.preset) == ("quick", model.classes, "mr")
    assert found.spacing_mm == (2.0, 1.0, 1.0)
    assert found.metadata["metrics"] == {"dice": 0.5}
    assert found.encoder.metadata == {"name": "small one"}
    torch.testing.assert_close(found.tensors, model.tensors)
    torch.testing.assert_close(
        found.encoder.swin.state_dict(), model.encoder.swin.state_dict(), rtol=0, atol=0
    )


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match="pickle"):
        SegmentationModel.load(tmp_path / "model.pt")


def test_other_files_are_refused_by_a_sentence(model: SegmentationModel, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, reason in (
        (tmp_path / "other.safetensors", "holds no segmentation model"),
        (tmp_path / "missing.safetensors", "Cannot read"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            SegmentationModel.load(path)


def test_a_later_version_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["napari_s2dc_segmentation"])
    header["__metadata__"]["napari_s2dc_segmentation"] = json.dumps({**facts, "format": 99})
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(ModelFileError, match="later version"):
        SegmentationModel.load(path)


def test_the_fingerprint_tells_what_would_find_something_else(
    model: SegmentationModel, tmp_path: Path
) -> None:
    own = model.fingerprint(model.segment)
    loaded = SegmentationModel.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.fingerprint(loaded.segment) == own
    named = replace(model, classes=(SegmentationClass(300, "Leber", (0.0, 0.0, 1.0)),))
    others = {
        named.fingerprint(model.segment),
        model.fingerprint(replace(model.segment, flips=True)),
        replace(model, preset="ct_bone").fingerprint(model.segment),
        replace(model, spacing_mm=None).fingerprint(model.segment),
        replace(model, tensors={"bias": torch.arange(3.0) + 1}).fingerprint(model.segment),
        replace(model, encoder=SwinEncoder(model.encoder.config)).fingerprint(model.segment),
    }
    assert len(others | {own}) == 7
