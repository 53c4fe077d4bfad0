"""Windows of a scan become one grid of features: the same as MONAI's, where the scan is."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch.nn import functional as F

from napari_s2dc.engine import encode as encoding
from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed, embed_volume, plan
from napari_s2dc.engine.progress import Progress, finish
from napari_s2dc.engine.window_plan import WindowPlan, plan_windows
from napari_s2dc.engine.windows import run_windows
from napari_s2dc.errors import ConfigurationError, VolumeError
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.preprocess import foreground_mask, normalize
from napari_s2dc.volumes.volume import Volume


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# --- the plain function ------------------------------------------------------------------------


def test_one_window_is_embedded_as_the_encoder_does(tiny: SwinEncoder) -> None:
    image = torch.from_numpy(_random(48, 48, 48))
    expected = tiny(image[None, None])[2][0].detach()
    found = embed(image.numpy(), tiny, stage=2, window_vox=48)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_v2", [True, False])
def test_a_stage_is_that_of_the_whole_encoder(use_v2: bool) -> None:
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=4, use_v2=use_v2)).eval()
    image = torch.rand(2, 1, 32, 32, 64)
    with torch.no_grad():
        for stage, expected in enumerate(encoder(image)):
            torch.testing.assert_close(encoder.stage(image, stage), expected)


@pytest.mark.parametrize(
    ("shape", "stage", "window", "overlap", "at_once"),
    [
        ((40, 72, 56), 2, 32, 0.25, 4),
        ((33, 50, 70), 1, 32, 0.5, 3),
        ((30, 64, 90), 3, 48, 0.25, 1),
        ((64, 40, 40), 4, 32, 0.0, 2),
    ],
)
def test_features_are_those_of_monai(
    tiny: SwinEncoder,
    shape: tuple[int, int, int],
    stage: int,
    window: int,
    overlap: float,
    at_once: int,
) -> None:
    image = _random(*shape)
    found = embed(
        image, tiny, stage=stage, window_vox=window, overlap=overlap, windows_at_once=at_once
    )
    windows = plan_windows(shape, tiny.config, stage=stage, window_vox=window, overlap=overlap)
    stride = windows.stride
    padded = [
        max(length, -(-side // stride) * stride)
        for side, length in zip(shape, windows.window, strict=True)
    ]
    padding = [
        part
        for old, new in zip(reversed(shape), reversed(padded), strict=True)
        for part in (0, new - old)
    ]
    # Windows are spread evenly: MONAI is asked for the overlap that gives them the same steps,
    # int(window * (1 - overlap)), and half a voxel more keeps whole tokens whole.
    places = [sorted({start[axis] for start in windows.starts}) for axis in range(3)]
    steps = [
        there[1] if len(there) > 1 else n for there, n in zip(places, windows.window, strict=True)
    ]
    shares = [
        (n - step - 0.5) / n if step < n else 0.0
        for n, step in zip(windows.window, steps, strict=True)
    ]
    tiny.eval()
    with torch.no_grad():
        expected = sliding_window_inference(
            F.pad(torch.from_numpy(image)[None, None], padding),
            windows.window,
            2,
            lambda batch: tiny(batch)[stage],
            overlap=shares,
            mode="gaussian",
        )
    tiny.train()
    z, y, x = windows.tokens
    expected = expected[0, :, :z, :y, :x]
    assert windows.windows > 1
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_windows_lie_where_the_scan_is(tiny: SwinEncoder) -> None:
    """A scan that repeats with the step of the windows has features that repeat too."""
    features = embed(
        np.tile(_random(32, 32, 32), (2, 2, 3)), tiny, stage=2, window_vox=32, overlap=0.0
    )
    assert features.shape == (48, 8, 8, 12)
    torch.testing.assert_close(features[..., :4], features[..., 8:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[:, :4], features[:, 4:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[..., :4], features[..., 1:5], atol=1e-2)


def test_a_scan_of_any_size_has_a_token_for_every_voxel(tiny: SwinEncoder) -> None:
    features = embed(np.zeros((30, 33, 50), np.float32), tiny, stage=2, window_vox=32)
    assert features.shape == (48, 4, 5, 7)
    assert features.isfinite().all()


@pytest.mark.parametrize("setting", [{"stage": 5}, {"window_vox": 40}, {"overlap": 1.0}])
def test_settings_out_of_range_are_one_sentence(
    tiny: SwinEncoder, setting: dict[str, float]
) -> None:
    wanted: dict[str, Any] = {"stage": 2, "window_vox": 32} | setting
    with pytest.raises(ConfigurationError):
        embed(np.zeros((32, 32, 32), np.float32), tiny, **wanted)


# --- a scan --------------------------------------------------------------------------------------


def test_a_scan_is_embedded_as_its_normalised_image(
    embedding: Embedding, torso: Volume, tiny: SwinEncoder
) -> None:
    expected = embed(normalize(torso.array, "ct"), tiny, stage=2, window_vox=32)
    assert embedding.features.dtype == torch.float16
    torch.testing.assert_close(embedding.features.float(), expected, rtol=1e-3, atol=1e-3)
    assert embedding.grid == (4, 6, 6)
    assert embedding.metadata["preset"] == "ct"
    assert embedding.metadata["notice"] == ""
    share = foreground_mask(torso.array).reshape(4, 8, 6, 8, 6, 8).mean((1, 3, 5))
    assert (embedding.foreground.numpy() == (share >= 0.5)).all()


def test_progress_counts_every_window(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    seen = list(embed_volume(torso, tiny, settings))
    assert seen == [Progress(done, 4, "windows") for done in range(5)]
    assert plan(torso.shape, tiny, settings).windows == 4


def test_windows_left_out_change_nothing_in_the_tissue(tiny: SwinEncoder) -> None:
    tissue = torch.zeros(4, 12, 12, dtype=torch.bool)
    tissue[:, :3, :3] = tissue[:2, -2:, -2:] = True
    some_windows = plan_windows(
        (32, 96, 96), tiny.config, stage=2, window_vox=32, overlap=0.25, tissue=tissue
    )
    axes = [sorted({start[axis] for start in some_windows.starts}) for axis in range(3)]
    everywhere = replace(some_windows, starts=tuple(product(*axes)))
    assert 2 * some_windows.windows <= everywhere.windows
    image = _random(32, 96, 96)

    def features(windows: WindowPlan) -> torch.Tensor:
        steps = run_windows(image, tiny, windows, windows_at_once=3, dtype=torch.float32)
        with closing(steps):
            while True:
                try:
                    next(steps)
                except StopIteration as stop:
                    found: torch.Tensor = stop.value
                    return found

    some, all_of_them = features(some_windows), features(everywhere)
    near = F.max_pool3d(tissue[None].float(), 3, stride=1, padding=1)[0] > 0
    torch.testing.assert_close(some[:, near], all_of_them[:, near], rtol=1e-4, atol=1e-5)
    unseen = (some == 0).all(0)
    assert unseen.sum() > 100
    assert not (all_of_them == 0).all(0)[unseen].all()


def test_air_is_not_encoded(tiny: SwinEncoder, settings: EmbedSettings) -> None:
    image, _ = phantom((32, 48, 48), seed=1, contrast="t1")
    wide = np.full((64, 112, 96), image.array.min(), image.array.dtype)
    wide[24:56, 16:64, 40:88] = image.array
    volume = Volume(wide, image.affine, name="in air")
    seen = list(embed_volume(volume, tiny, settings))
    found = finish(embed_volume(volume, tiny, settings))
    assert seen[0].total == plan(volume.shape, tiny, settings).windows == 60
    assert seen[-1].done == seen[-1].total <= 18
    encoded = (found.features != 0).any(0)
    near = F.max_pool3d(found.foreground[None].float(), 3, stride=1, padding=1)[0] > 0
    assert encoded[near].all()
    assert not encoded[:, 10:].any()
    alone = finish(embed_volume(volume, tiny, replace(settings, roi=((16, 64), (8, 72), (32, 96)))))
    assert alone.offset_vox == (16, 8, 32)
    assert torch.equal(alone.foreground, found.foreground[2:8, 1:9, 4:12])


def test_two_runs_share_an_encoder_that_never_changes(
    torso: Volume, settings: EmbedSettings, embedding: Embedding, tiny: SwinEncoder
) -> None:
    assert tiny.training
    other = replace(settings, stage=1)
    alone = finish(embed_volume(torso, tiny, other))
    runs = [embed_volume(torso, tiny, one) for one in (settings, other)]
    results: list[Embedding] = []
    while len(results) < 2:
        for run in runs:  # in turn, as two threads may do
            try:
                next(run)
            except StopIteration as stop:
                results.append(stop.value)
            assert tiny.training
    assert torch.equal(results[0].features, embedding.features)
    assert torch.equal(results[1].features, alone.features)


def test_a_run_on_another_device_leaves_the_encoder_where_it_is(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The device "meta" stands for a graphics processor: weights that get there are gone here.
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    here = encoding._attempts(torch.device("cpu"), settings, tiny.config)
    elsewhere = [replace(way, device=torch.device("meta")) for way in here]
    monkeypatch.setattr(encoding, "_attempts", lambda *_: elsewhere)
    with pytest.raises(NotImplementedError, match="meta"):
        finish(embed_volume(torso, tiny, settings))
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_on_the_encoders_own_device_no_weights_are_copied(tiny: SwinEncoder) -> None:
    own = encoding._copy_on(tiny, torch.device("cpu")).eval()
    pairs = list(zip(own.parameters(), tiny.parameters(), strict=True))
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    assert tiny.training


def test_autograd_is_only_off_inside(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    steps = embed_volume(torso, tiny, settings)
    for _ in range(3):
        next(steps)
        assert torch.is_grad_enabled()
    steps.close()


def test_cancelling_leaves_nothing_behind(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    import gc
    import threading

    def tensors() -> int:
        gc.collect()
        # by type, because isinstance would wake up lazy modules
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def cancel_after(count: int) -> None:
        steps = embed_volume(torso, tiny, settings)
        for _ in range(count):
            next(steps)
        steps.close()

    cancel_after(2)
    before, threads = tensors(), threading.active_count()
    for number in range(10):
        cancel_after(number % 4)
    assert tensors() <= before
    assert threading.active_count() == threads


def test_a_region_lies_where_it_was_cut(torso: Volume, tiny: SwinEncoder) -> None:
    settings = EmbedSettings(window_vox=32, device="cpu", roi=((0, 32), (8, 40), (16, 48)))
    found = finish(embed_volume(torso, tiny, settings))
    image = normalize(torso.array, "ct")[0:32, 8:40, 16:48]
    expected = embed(image, tiny, stage=2, window_vox=32)
    torch.testing.assert_close(found.features.float(), expected, rtol=1e-3, atol=1e-3)
    assert found.shape == (32, 32, 32)
    assert found.offset_vox == (0, 8, 16)
    assert found.token_of_voxel((0, 7, 16)) is None
    assert found.token_of_voxel((31, 8, 31)) == (3, 0, 1)
    whole = foreground_mask(torso.array)[0:32, 8:40, 16:48]
    share = whole.reshape(4, 8, 4, 8, 4, 8).mean((1, 3, 5))
    assert (found.foreground.numpy() == (share >= 0.5)).all()


def test_the_stage_is_that_of_the_encoder_unless_asked_for(
    torso: Volume, settings: EmbedSettings
) -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    assert plan(torso.shape, encoder, settings).stage == 2
    encoder.metadata = {"token_stage": 1, "preprocessing": {"preset": "ct_lung"}}
    found = finish(embed_volume(torso, encoder, settings))
    assert found.stride == 4
    assert found.metadata["preset"] == "ct_lung"
    asked = finish(embed_volume(torso, encoder, replace(settings, stage=3, preset="mr")))
    assert asked.stride == 16
    assert asked.metadata["preset"] == "mr"


def test_the_plan_tells_windows_and_memory(tiny: SwinEncoder) -> None:
    settings = EmbedSettings(device="cpu")
    large = plan((160, 256, 256), tiny, settings)
    assert large.windows == 2 * 4 * 4
    assert large.sentence == f"at most 32 windows, about {large.bytes_needed / 1e9:.1f} GB"
    small = plan((48, 48, 48), tiny, settings)
    assert small.sentence.startswith("1 window,")
    assert small.bytes_needed < large.bytes_needed / 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"roi": ((0, 8), (0, 8), (40, 49))},
        {"roi": ((8, 8), (0, 8), (0, 8))},
        {"roi": ((0, 8), (0, 8))},
        {"device": "tpu"},
        {"stage": 7},
        {"preset": "xray"},
    ],
)
def test_wrong_settings_are_one_sentence(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError):
        finish(embed_volume(torso, tiny, replace(settings, **wrong)))


def test_an_encoder_of_several_images_is_refused(torso: Volume, settings: EmbedSettings) -> None:
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=4, in_channels=2))
    with pytest.raises(ConfigurationError, match="takes 2 images"):
        finish(embed_volume(torso, encoder, settings))


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_a_scan_without_values_is_refused(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, value: float
) -> None:
    broken = torso.with_array(np.full(torso.shape, value, np.float32))
    with pytest.raises(VolumeError):
        finish(embed_volume(broken, tiny, settings))


def test_a_missing_device_is_one_sentence(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        finish(embed_volume(torso, tiny, replace(settings, device="cuda")))


def test_an_mr_scan_is_told_by_its_values(tiny: SwinEncoder, settings: EmbedSettings) -> None:
    image, _ = phantom((32, 48, 48), seed=1, contrast="t1")
    found = finish(embed_volume(image, tiny, settings))
    assert found.metadata["preset"] == "mr"
