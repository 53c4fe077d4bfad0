"""Windows over a whole scan give what MONAI's sliding window gives, in little memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from napari_s2dc.engine import finetune_segment
from napari_s2dc.engine.fewshot_settings import SegmentationClass, SegmentSettings
from napari_s2dc.engine.finetune_network import (
    ENCODER_PREFIX,
    SegmentationNetwork,
    network_of,
)
from napari_s2dc.engine.finetune_segment import places_of, segment_with_network
from napari_s2dc.engine.progress import Progress, finish
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import resample
from napari_s2dc.volumes.volume import Volume

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny: SwinEncoder) -> SegmentationModel:
    torch.manual_seed(0)
    state = SegmentationNetwork(tiny, 3).state_dict()
    return SegmentationModel(
        kind="finetune",
        encoder=tiny,
        tensors={name: one for name, one in state.items() if not name.startswith(ENCODER_PREFIX)},
        classes=tuple(SegmentationClass(n, f"class {n}", (1.0, 0.0, 0.0)) for n in (1, 2)),
        preset="mr",
        metadata={"window_vox": [32, 64, 32]},
    )


def _image(*shape: int) -> np.ndarray:
    return 0.1 + 0.9 * np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize(
    ("shape", "overlap"), [((70, 64, 40), 0.25), ((20, 64, 30), 0.5), ((32, 100, 32), 0.0)]
)
def test_classes_are_those_of_monai(
    model: SegmentationModel, shape: tuple[int, int, int], overlap: float
) -> None:
    image = _image(*shape)
    found, uncertainty = finish(
        segment_with_network(image, model, SegmentSettings(overlap=overlap), CPU)
    )
    network = network_of(model)
    with torch.no_grad():
        expected = sliding_window_inference(
            torch.from_numpy(image)[None, None],
            (32, 64, 32),
            1,
            lambda part: network(part).softmax(1),
            overlap=overlap,
            mode="gaussian",
        )[0]
    assert found.shape == uncertainty.shape == shape
    assert (found == expected.argmax(0).numpy()).mean() > 0.998
    entropy = torch.special.entr(expected).sum(0) / np.log(3)
    assert np.abs(uncertainty - entropy.numpy()).max() < 0.01


def test_mirror_images_are_averaged(model: SegmentationModel) -> None:
    image = _image(32, 64, 32)
    settings = SegmentSettings(flips=True)
    found, uncertainty = finish(segment_with_network(image, model, settings, CPU))
    mirrored, _ = finish(segment_with_network(image[:, ::-1].copy(), model, settings, CPU))
    assert (found == mirrored[:, ::-1]).mean() > 0.998
    alone, _ = finish(segment_with_network(image, model, SegmentSettings(), CPU))
    assert (found == alone).mean() < 0.99
    assert uncertainty.max() <= 1


def test_progress_counts_windows_and_can_be_stopped(model: SegmentationModel) -> None:
    steps = segment_with_network(_image(32, 64, 60), model, SegmentSettings(), CPU)
    assert next(steps) == Progress(1, 3, "windows")
    steps.close()


def test_windows_go_one_by_one_where_several_do_not_fit(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _image(32, 64, 60)
    expected, _ = finish(segment_with_network(image, model, SegmentSettings(), CPU))
    forward, seen = SegmentationNetwork.forward, []

    def little_memory(network: SegmentationNetwork, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(network, images)

    monkeypatch.setattr(finetune_segment, "windows_at_once", lambda *_: 8)
    monkeypatch.setattr(SegmentationNetwork, "forward", little_memory)
    found, _ = finish(segment_with_network(image, model, SegmentSettings(), CPU))
    assert seen == [3, 2, 1, 1, 1]
    assert np.array_equal(found, expected)


def test_air_is_background_without_any_window(model: SegmentationModel) -> None:
    image = np.zeros((60, 130, 60), np.float32)
    image[5:20, 70:100, 10:30] = _image(15, 30, 20)
    steps = segment_with_network(image, model, SegmentSettings(), CPU)
    assert next(steps).total == 1
    found, uncertainty = finish(steps)
    assert found.shape == image.shape
    assert not found[40:].any()
    assert not uncertainty[40:].any()
    assert uncertainty[10:15, 80:90, 15:25].all()


def test_windows_far_from_tissue_are_left_out_and_change_nothing_in_it(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((180, 112, 56), np.float32)
    image[:20, :30, :20] = _image(20, 30, 20)
    image[150:, 72:, 32:] = _image(30, 40, 24)
    tissue = image > 0
    # A specimen beside, too small to count as tissue of the scan
    image[100:104, :4, 48:52] = _image(4, 4, 4)
    steps = segment_with_network(image, model, SegmentSettings(), CPU)
    fewer = next(steps).total
    found, uncertainty = finish(steps)
    monkeypatch.setattr(finetune_segment, "_near", lambda *_: True)
    steps = segment_with_network(image, model, SegmentSettings(), CPU)
    assert fewer < next(steps).total / 3
    everywhere, doubts = finish(steps)
    assert uncertainty[100:104, :4, 48:52].any()
    np.testing.assert_array_equal(found[tissue], everywhere[tissue])
    np.testing.assert_array_equal(uncertainty[tissue], doubts[tissue])
    for empty in (np.s_[60:70], np.s_[:100, 70:], np.s_[140:, :40]):
        assert not found[empty].any()
        assert not uncertainty[empty].any()


def test_a_scan_with_smaller_voxels_gets_smooth_borders(model: SegmentationModel) -> None:
    """On its own voxels the result is finer than labels made on the model's grid."""
    volume = Volume(_image(40, 80, 40), np.diag([1.0, 1.0, 1.0, 1.0]), "scan")
    grid = resample(volume, (1.6, 1.6, 1.6))
    places = places_of(volume, grid)
    steps = segment_with_network(grid.array, model, SegmentSettings(), CPU, places=places)
    found, uncertainty = finish(steps)
    coarse, _ = finish(segment_with_network(grid.array, model, SegmentSettings(), CPU))
    assert found.shape == uncertainty.shape == volume.shape
    nearest = coarse[
        np.ix_(
            *(
                np.rint(along).astype(int).clip(0, n - 1)
                for along, n in zip(places, coarse.shape, strict=True)
            )
        )
    ]
    assert 0.6 < (found == nearest).mean() < 1


def test_out_of_memory_is_one_sentence(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(SegmentationNetwork, "forward", full)
    with pytest.raises(S2DCError, match="not enough memory"):
        finish(segment_with_network(_image(32, 64, 32), model, SegmentSettings(), CPU))


def test_an_operation_that_apples_graphics_lack_is_one_sentence(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object) -> None:
        raise NotImplementedError("The operator 'aten::roll' is not implemented for MPS")

    monkeypatch.setattr(SegmentationNetwork, "forward", lacking)
    monkeypatch.setattr(SegmentationNetwork, "to", lambda network, _: network)
    arguments = _image(32, 64, 32), model, SegmentSettings()
    with pytest.raises(NotImplementedError):  # on a CPU that is a fault
        finish(segment_with_network(*arguments, CPU))
    with pytest.raises(S2DCError, match=r"lacks an operation.*\(cpu\)"):
        finish(segment_with_network(*arguments, torch.device("mps")))


def test_many_windows_leave_no_seam(model: SegmentationModel) -> None:
    """Where all windows see the same, the result is the same however many there are."""
    constant = replace(
        model, tensors={name: torch.zeros_like(one) for name, one in model.tensors.items()}
    )
    constant.tensors["out.conv.conv.bias"] = torch.tensor([0.0, 2.0, 1.0])
    found, uncertainty = finish(
        segment_with_network(_image(70, 100, 50), constant, SegmentSettings(), CPU)
    )
    assert (found == 1).all()
    expected = torch.special.entr(torch.tensor([0.0, 2.0, 1.0]).softmax(0)).sum() / np.log(3)
    assert np.abs(uncertainty - float(expected)).max() < 2e-3
