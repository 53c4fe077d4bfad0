"""Windows where there is little memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from napari_s2dc.engine import encode as encoding
from napari_s2dc.engine.embed import EmbedSettings, embed, embed_volume
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.window_plan import bytes_of_window
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume

GPU = torch.device("cuda")


@pytest.fixture
def room_for_three(tiny: SwinEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the memory is for three windows of 32 voxels."""
    free = 6 * bytes_of_window(tiny.config, (32, 32, 32))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))


@pytest.fixture
def small_memory(room_for_three: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stand for a graphics processor: two windows at once, and room for 32 voxels a side only."""
    seen: list[tuple[int, ...]] = []
    cpu = torch.device("cpu")
    stage_of = SwinEncoder.stage

    def features(encoder: SwinEncoder, windows: torch.Tensor, stage: int) -> torch.Tensor:
        seen.append(tuple(windows.shape))
        if len(windows) > 1 or max(windows.shape[2:]) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return stage_of(encoder, windows, stage)

    real = encoding._attempts

    def attempts(_: torch.device, settings: EmbedSettings, config: EncoderConfig) -> list[Any]:
        ways = real(GPU, settings, config)
        return [replace(way, device=cpu) for way in ways]

    monkeypatch.setattr(encoding, "_attempts", attempts)
    monkeypatch.setattr(SwinEncoder, "stage", features)
    return seen


def test_without_memory_windows_get_smaller(
    torso: Volume, tiny: SwinEncoder, small_memory: list[tuple[int, ...]]
) -> None:
    settings = EmbedSettings(window_vox=64, device="cpu")
    found = finish(embed_volume(torso, tiny, settings))
    assert [shape[0] for shape in small_memory[:3]] == [1, 1, 1]
    assert found.metadata["window_vox"] == 32
    assert "windows of 32 were used" in found.metadata["notice"]
    expected = embed(normalize(torso.array, "ct"), tiny, stage=2, window_vox=32, windows_at_once=1)
    torch.testing.assert_close(found.features.float(), expected, rtol=1e-3, atol=1e-3)
    assert tiny.training


def test_without_memory_fewer_windows_run_at_once(
    torso: Volume, tiny: SwinEncoder, small_memory: list[tuple[int, ...]]
) -> None:
    found = finish(embed_volume(torso, tiny, EmbedSettings(window_vox=32, device="cpu")))
    assert [shape[0] for shape in small_memory] == [3, 1, 1, 1, 1]
    assert found.metadata["notice"] == ""
    assert found.metadata["window_vox"] == 32


def test_the_last_way_is_the_cpu(tiny: SwinEncoder, room_for_three: None) -> None:
    ways = encoding._attempts(GPU, EmbedSettings(window_vox=96), tiny.config)
    assert [(way.device.type, way.window_vox) for way in ways] == [
        ("cuda", 96),
        ("cuda", 64),
        ("cpu", 96),
    ]
    assert "CPU was used" in ways[-1].notice


def test_as_many_windows_as_fit(tiny: SwinEncoder, room_for_three: None) -> None:
    window_bytes = bytes_of_window(tiny.config, (32, 32, 32))
    assert encoding.windows_at_once(GPU, window_bytes) == 3
    assert encoding.windows_at_once(GPU, 100 * window_bytes) == 1
    assert encoding.windows_at_once(GPU, 1) == encoding.windows_at_once(GPU) == 16
    assert encoding.windows_at_once(torch.device("cpu"), window_bytes) == 1


def test_what_torch_keeps_is_free(
    tiny: SwinEncoder, room_for_three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_bytes = bytes_of_window(tiny.config, (32, 32, 32))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50 * window_bytes)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30 * window_bytes)
    assert encoding.windows_at_once(GPU, window_bytes) == 13
    ways = encoding._attempts(GPU, EmbedSettings(window_vox=32), tiny.config)
    assert [way.windows_at_once for way in ways] == [13, 4, 1, 1]


def test_no_memory_at_all_is_one_sentence(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(*_: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory")

    monkeypatch.setattr(SwinEncoder, "stage", features)
    with pytest.raises(S2DCError, match="not enough memory"):
        finish(embed_volume(torso, tiny, settings))


def test_other_errors_of_the_encoder_pass(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(*_: object) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SwinEncoder, "stage", features)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        finish(embed_volume(torso, tiny, settings))
    assert tiny.training


def test_the_cpu_takes_over_where_apples_graphics_lack_an_operation(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    windows_on = encoding._windows_on

    def windows(image: Any, encoder: SwinEncoder, plan: Any, attempt: Any, scale: Any) -> Any:
        tried.append((attempt.device.type, attempt.window_vox))
        if attempt.device.type == "mps":
            raise NotImplementedError("The operator 'aten::roll' is not implemented for MPS.")
        return (yield from windows_on(image, encoder, plan, attempt, scale))

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(encoding, "_windows_on", windows)
    monkeypatch.setattr(encoding, "_free", lambda _: None)
    found = finish(embed_volume(torso, tiny, replace(settings, device="mps")))
    assert tried == [("mps", settings.window_vox), ("cpu", settings.window_vox)]
    assert found.metadata["device"] == "cpu"
    assert "lacks an operation" in found.metadata["notice"]


def test_other_errors_pass_where_the_cpu_takes_over(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def windows(image: Any, encoder: SwinEncoder, plan: Any, attempt: Any, scale: Any) -> Any:
        if attempt.device.type == "mps":
            raise NotImplementedError("The operator 'aten::roll' is not implemented for MPS.")
        raise RuntimeError("shape mismatch")
        yield  # a generator, as the original is

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(encoding, "_windows_on", windows)
    monkeypatch.setattr(encoding, "_free", lambda _: None)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        finish(embed_volume(torso, tiny, replace(settings, device="mps")))


def test_apples_graphics_have_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert encoding.device_of("auto").type == "cpu"
    assert encoding.device_of("mps").type == "mps"
