"""Arrays above a budget lie in a file, with the same values, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from napari_s2dc.engine import large_arrays
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is a file's, as the system says."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, _, _, _, inode, *_ = line.split()
        first, end = (int(place, 16) for place in span.split("-"))
        if first <= tensor.data_ptr() < end:
            return int(inode) != 0
    raise AssertionError("the tensor lies nowhere")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test's own, and a budget of 1000 bytes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(large_arrays, "IN_MEMORY_BYTES", 1000)
    return tmp_path


def test_only_what_is_larger_than_the_budget_is_a_file(temporary: Path) -> None:
    small, large = (large_arrays.zeros((2, side, 5), torch.float16) for side in (50, 51))
    assert not is_mapped(small)
    assert is_mapped(large)
    for one in (small, large):
        assert one.dtype == torch.float16
        assert one.is_contiguous()
        assert not one.any()
    large[1] = 3
    assert large.sum() == 3 * large[1].numel()
    del one, large
    gc.collect()
    assert not list(temporary.iterdir())


def test_without_room_on_the_disk_memory_is_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert not is_mapped(large_arrays.zeros((1001,), torch.uint8))


def test_an_embedding_in_a_file_is_the_same(
    tiny: SwinEncoder, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = phantom((48, 40, 72), seed=3)
    settings = EmbedSettings(window_vox=48, device="cpu")

    def embedding() -> Embedding:
        return finish(embed_volume(image, tiny, settings))

    mapped = embedding()
    monkeypatch.setattr(large_arrays, "IN_MEMORY_BYTES", 2**30)
    held = embedding()
    assert is_mapped(mapped.features)
    assert not is_mapped(held.features)
    torch.testing.assert_close(mapped.features, held.features, rtol=0, atol=0)
    torch.testing.assert_close(mapped.unit(), held.unit(), rtol=0, atol=0)
