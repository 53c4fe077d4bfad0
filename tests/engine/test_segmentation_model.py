"""A segmentation model as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from napari_s2dc.engine.fewshot_settings import SegmentationClass, SegmentSettings
from napari_s2dc.engine.finetune_network import ENCODER_PREFIX, SegmentationNetwork
from napari_s2dc.engine.quick_features import Projection
from napari_s2dc.engine.quick_head import QuickHead, tensors_of
from napari_s2dc.engine.segmentation_model import ModelFileError, SegmentationModel
from napari_s2dc.method.encoder import SwinEncoder


def change(path: Path, spoil: Callable[[Any], Any]) -> None:
    """Change the facts in the header of a model file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["napari_s2dc_segmentation"])
    spoil(facts)
    header["__metadata__"]["napari_s2dc_segmentation"] = json.dumps(facts)
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    encoder.metadata = {"name": "small one"}
    return SegmentationModel(
        kind="quick",
        encoder=encoder,
        tensors=tensors_of(
            QuickHead(inputs=1 + 3 + 2, hidden=4, outputs=2),
            [Projection(torch.zeros(48), torch.ones(48, 2))],
        ),
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
    change(path, lambda facts: facts.update(format=99))
    with pytest.raises(ModelFileError, match="later version"):
        SegmentationModel.load(path)


def test_settings_that_came_later_have_their_defaults(
    model: SegmentationModel, tmp_path: Path
) -> None:
    path = replace(model, segment=SegmentSettings(largest_component=True)).save(tmp_path / "m")
    change(path, lambda facts: facts["segment"].pop("flips"))
    assert SegmentationModel.load(path).segment == SegmentSettings(largest_component=True)


def network(model: SegmentationModel) -> SegmentationModel:
    """Fine-tuned model of the same encoder and classes."""
    state = SegmentationNetwork(model.encoder, model.outputs).state_dict()
    tensors = {name: one for name, one in state.items() if not name.startswith(ENCODER_PREFIX)}
    return replace(model, kind="finetune", tensors=tensors, metadata={"window_vox": [32, 64, 32]})


@pytest.mark.parametrize("kind", ["quick", "finetune"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: facts["classes"].append({**facts["classes"][0], "label": 7}),
        lambda facts: facts["classes"].clear(),
        lambda facts: facts["classes"][0].update(label=0),
        lambda facts: facts["classes"][0].update(label=-4),
        lambda facts: facts["metadata"].update(stages=[2, 3], window_vox=[32, 64]),
        lambda facts: facts["metadata"].update(stages=[1], window_vox=[32, 30, 32]),
        lambda facts: facts["metadata"].update(stages=[5], window_vox=[32, 0, 32]),
        lambda facts: facts["metadata"].update(smoothing_vox=[0.0, 1.0], window_vox=32),
        lambda facts: facts.update(spacing_mm=[0, 1, 1]),
    ],
)
def test_what_could_not_segment_a_scan_is_refused(
    model: SegmentationModel, tmp_path: Path, kind: str, spoil: Callable[[Any], Any]
) -> None:
    path = (model if kind == "quick" else network(model)).save(tmp_path / "model.safetensors")
    assert SegmentationModel.load(path).kind == kind
    change(path, spoil)
    with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged or holds no"):
        SegmentationModel.load(path)


@pytest.mark.parametrize("kind", ["quick", "finetune"])
def test_missing_tensors_are_refused(model: SegmentationModel, tmp_path: Path, kind: str) -> None:
    whole = model if kind == "quick" else network(model)
    for left_out in list(whole.tensors)[:: len(whole.tensors) // 4]:
        tensors = {name: one for name, one in whole.tensors.items() if name != left_out}
        path = replace(whole, tensors=tensors).save(tmp_path / "model.safetensors")
        with pytest.raises(ModelFileError, match="is damaged or holds no"):
            SegmentationModel.load(path)


def test_labels_of_classes_are_told_apart(model: SegmentationModel, tmp_path: Path) -> None:
    twice = network(replace(model, classes=model.classes * 2))
    with pytest.raises(ModelFileError, match="is damaged or holds no"):
        SegmentationModel.load(twice.save(tmp_path / "model.safetensors"))


def test_an_overlap_that_leaves_gaps_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model.safetensors")
    change(path, lambda facts: facts["segment"].update(overlap=1.5))
    with pytest.raises(ModelFileError, match=r"model.safetensors: segment.overlap is 1.5"):
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
        replace(model, tensors={"bias": torch.arange(3.0)}).fingerprint(model.segment),
        replace(model, encoder=SwinEncoder(model.encoder.config)).fingerprint(model.segment),
    }
    assert len(others | {own}) == 7
