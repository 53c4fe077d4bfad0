"""Fine-tuning learns, can be stopped and continued, and says in a sentence why it cannot."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from napari_s2dc.engine import finetune
from napari_s2dc.engine.fewshot_settings import (
    FewshotSettings,
    FinetuneSettings,
    SegmentSettings,
)
from napari_s2dc.engine.finetune import FinetuneRun
from napari_s2dc.engine.finetune_network import ENCODER_PREFIX
from napari_s2dc.engine.finetune_segment import segment_with_network
from napari_s2dc.engine.finetune_setup import BYTES_PER_VOXEL_AND_FEATURE
from napari_s2dc.engine.labelled_scans import LabelledScan, classes_in
from napari_s2dc.engine.progress import TrainingProgress, finish
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume


def settings_of(**finetune: float) -> FewshotSettings:
    return FewshotSettings(
        mode="finetune",
        zero="background",
        preset="mr",
        device="cpu",
        finetune=replace(FinetuneSettings(steps=4, crop_vox=32), **finetune),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def scan() -> LabelledScan:
    """A bright ball beside a brighter one."""
    z, y, x = np.indices((32, 60, 32))
    labels = np.zeros((32, 60, 32), np.uint16)
    labels[(z - 16) ** 2 + (y - 18) ** 2 + (x - 16) ** 2 < 80] = 3
    labels[(z - 16) ** 2 + (y - 42) ** 2 + (x - 16) ** 2 < 80] = 300
    noise = np.random.default_rng(0).random(labels.shape)
    image = (10 + 5 * noise + 30 * (labels == 3) + 60 * (labels == 300)).astype(np.float32)
    return LabelledScan(Volume(image, np.eye(4), "scan"), Volume(labels, np.eye(4), "labels"))


@pytest.fixture(scope="module")
def pretrained(tiny: SwinEncoder) -> SwinEncoder:
    """The tiny encoder, with metadata as one that was trained has."""
    encoder = SwinEncoder(tiny.config)
    encoder.load_state_dict(tiny.state_dict())
    encoder.metadata = {"steps": 10}
    return encoder


def run_of(scan: LabelledScan, encoder: SwinEncoder, **finetune: float) -> FinetuneRun:
    settings = settings_of(**finetune)
    return FinetuneRun([scan], encoder, classes_in([scan], settings), settings)


def tensors_of(model: SegmentationModel) -> dict[str, torch.Tensor]:
    return model.encoder.swin.state_dict() | model.tensors


def same(one: SegmentationModel, other: SegmentationModel) -> bool:
    mine, theirs = tensors_of(one), tensors_of(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_learns_two_balls(scan: LabelledScan, tiny: SwinEncoder, tmp_path: Path) -> None:
    run = run_of(scan, tiny, steps=14, averaging=0.5)
    before = tiny.swin.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    seen = list(run.train())
    assert [one.done for one in seen] == list(range(1, 15))
    assert all(isinstance(one, TrainingProgress) and one.total == 14 for one in seen)
    losses = [one.loss for one in seen if isinstance(one, TrainingProgress)]
    assert losses[-1] < 0.6 * losses[0]
    for name, tensor in tiny.swin.state_dict().items():
        assert torch.equal(tensor, before[name])
    model = run.model()
    assert model.metadata["steps"] == 14
    assert model.metadata["background_labelled"]
    loaded = SegmentationModel.load(model.save(tmp_path / "model.safetensors"))
    assert same(loaded, model)
    image = normalize(scan.image.array, model.preset)
    steps = segment_with_network(image, loaded, SegmentSettings(), torch.device("cpu"))
    found, _ = finish(steps)
    for output, label in ((1, 3), (2, 300)):
        truth = scan.labels.array == label
        common = np.sum((found == output) & truth)
        assert 2 * common / (np.sum(found == output) + truth.sum()) > 0.7


def test_stopped_and_continued_is_the_same_as_in_one_go(
    scan: LabelledScan, tiny: SwinEncoder
) -> None:
    whole, parts = run_of(scan, tiny), run_of(scan, tiny)
    finish(whole.train())
    steps = parts.train()
    next(steps)
    next(steps)
    steps.close()
    halfway = parts.model()
    assert halfway.metadata["steps"] == parts.steps_done == 2
    assert [one.done for one in parts.train()] == [3, 4]
    assert same(whole.model(), parts.model())
    assert not same(halfway, parts.model())
    assert [one.done for one in parts.train(1)] == [5]


def test_crops_one_by_one_give_the_gradient_of_crops_together(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gigabytes = 32 * 64 * 32 * 12 * BYTES_PER_VOXEL_AND_FEATURE / 1e9
    losses, gradients = [], []
    for memory_gb in (1.01 * gigabytes, 2.01 * gigabytes):
        run = run_of(scan, tiny, crops_per_step=2, memory_gb=memory_gb)
        parameters = [
            run._learner.network.last.weight,
            run._learner.network.swinViT.layers1[0].blocks[0].mlp.linear1.weight,
        ]
        monkeypatch.setattr(
            run._optimizer,
            "step",
            lambda parameters=parameters: gradients.append(
                [one.grad.clone() for one in parameters]
            ),
        )
        losses.append(next(run.train()).loss)  # type: ignore[attr-defined]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for one, other in zip(*gradients, strict=True):
        # Normalisation over a few tokens makes much of rounding, so not number by number.
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.995
        assert float(one.norm()) == pytest.approx(float(other.norm()), rel=0.02)


def test_a_budget_too_small_for_one_crop_is_one_sentence(
    scan: LabelledScan, tiny: SwinEncoder
) -> None:
    with pytest.raises(S2DCError, match=r"32 x 64 x 32 voxels takes about .* GB"):
        run_of(scan, tiny, memory_gb=0.01)


def test_a_pretrained_encoder_is_frozen_at_first(
    scan: LabelledScan, pretrained: SwinEncoder
) -> None:
    run = run_of(scan, pretrained, frozen_share=0.25)
    steps = run.train()
    next(steps)
    state = pretrained.swin.state_dict()
    first = run.model().encoder.swin.state_dict()
    assert all(torch.equal(first[name], state[name]) for name in state)
    next(steps)
    second = run.model().encoder.swin.state_dict()
    assert not torch.equal(
        second["layers4.0.blocks.0.mlp.linear1.weight"],
        state["layers4.0.blocks.0.mlp.linear1.weight"],
    )


def test_layers_of_a_pretrained_encoder_have_rates_of_their_own(
    scan: LabelledScan, pretrained: SwinEncoder, tiny: SwinEncoder
) -> None:
    run = run_of(scan, pretrained, encoder_rate=0.5, layer_decay=0.5)
    shares = {(group["of_encoder"], group["share"]) for group in run._optimizer.param_groups}
    assert shares == {(True, 0.5 * 0.5**n) for n in range(5)} | {(False, 1.0)}
    fresh = run_of(scan, tiny, encoder_rate=0.5)
    assert {group["share"] for group in fresh._optimizer.param_groups} == {1.0}


def test_the_best_on_held_out_scans_is_kept(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(held_out_every=1)
    run = FinetuneRun([scan], tiny, classes_in([scan], settings), settings, held_out=[scan])
    scores = iter([0.2, 0.6, 0.4, 0.5])
    monkeypatch.setattr(finetune, "_mean_dice", lambda *_: next(scores))
    models = []
    for progress in run.train():
        assert isinstance(progress, TrainingProgress)
        models.append(run.model())
    assert progress.dice == 0.5
    assert same(models[-1], models[1])
    assert not same(models[0], models[1])
    assert models[-1].metadata["metrics"] == {"held_out_dice": 0.6}


def test_without_held_out_scans_the_dice_is_that_of_crops(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_MEASURE_EVERY", 2)
    run = run_of(scan, tiny, steps=2)
    messages = [one for one in run.train() if isinstance(one, TrainingProgress)]
    assert [one.dice is None for one in messages] == [True, False]
    assert 0 <= float(messages[-1].dice or 0) <= 1
    assert run._best is None


def test_dice_counts_labelled_voxels_only() -> None:
    targets = np.array([-1, -1, 0, 1, 1, 2], np.int16)
    found = np.array([1, 2, 0, 1, 0, 2], np.uint8)
    assert finetune._mean_dice(found, targets) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(finetune._mean_dice(found, np.full(6, -1, np.int16)))


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_learned(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(scan, tiny)
    steps = run.train()
    next(steps)
    kept = run.model()
    real = finetune.voxel_loss
    monkeypatch.setattr(finetune, "voxel_loss", lambda *given: real(*given) * math.nan)
    with pytest.raises(S2DCError, match=r"no number any more at step 2.*learning_rate"):
        next(steps)
    assert same(run.model(), kept)
    monkeypatch.undo()
    assert next(run.train()).done == 2
    assert all(tensor.isfinite().all() for tensor in tensors_of(run.model()).values())


def test_out_of_memory_is_one_sentence(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 12 bytes")

    run = run_of(scan, tiny)
    monkeypatch.setattr(finetune, "voxel_loss", full)
    with pytest.raises(S2DCError, match=r"not enough memory.*crop_vox"):
        finish(run.train())


def test_an_operation_that_apples_graphics_lack_is_one_sentence(
    scan: LabelledScan, tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object) -> None:
        raise NotImplementedError("The operator 'aten::grid_sampler_3d' is not implemented for MPS")

    run = run_of(scan, tiny)
    monkeypatch.setattr(run, "_step", lacking)
    with pytest.raises(NotImplementedError):  # on a CPU that is a fault
        next(run.train())
    monkeypatch.setattr(run, "_fabric", SimpleNamespace(device=torch.device("mps")))
    with pytest.raises(S2DCError, match=r"lacks an operation.*\(cpu\)"):
        next(run.train())


def test_strokes_of_one_class_and_background_are_enough(tiny: SwinEncoder) -> None:
    labels = np.zeros((32, 40, 32), np.uint8)
    labels[10, 10, 10:12] = 5
    labels[20, 20, 20] = 1
    image = np.random.default_rng(0).random(labels.shape, np.float32) + labels
    scan = LabelledScan(Volume(image, np.eye(4), "a"), Volume(labels, np.eye(4), "b"))
    settings = replace(settings_of(steps=2), zero="unlabelled", background=1)
    run = FinetuneRun([scan], tiny, classes_in([scan], settings), settings)
    finish(run.train())
    assert [one.label for one in run.model().classes] == [5]
    assert math.isfinite(run.model().metadata["loss"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"crop_vox": 16},
        {"learning_rate": math.nan},
        {"averaging": 1.0},
        {"frozen_share": 2},
    ],
)
def test_settings_out_of_range_are_one_sentence(
    scan: LabelledScan, tiny: SwinEncoder, wrong: dict[str, float]
) -> None:
    with pytest.raises(ConfigurationError, match=f"finetune.{next(iter(wrong))}"):
        run_of(scan, tiny, **wrong)


def test_names_of_the_decoder_are_those_of_monai(scan: LabelledScan, tiny: SwinEncoder) -> None:
    names = {n for n in tiny.to_swin_unetr(3).state_dict() if not n.startswith(ENCODER_PREFIX)}
    model = run_of(scan, tiny).model()
    assert set(model.tensors) == names | {"coarse.4.weight", "coarse.8.weight"}
