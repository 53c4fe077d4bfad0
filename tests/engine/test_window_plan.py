"""Windows lie over the tissue, overlap as asked for, and are no more than have to be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from napari_s2dc.engine.window_plan import WindowPlan, plan_windows
from napari_s2dc.method.encoder import STRIDES, EncoderConfig

CONFIG = EncoderConfig(feature_size=12, window_size=4)


def _plan(
    shape: tuple[int, ...],
    *,
    stage: int = 2,
    window_vox: int = 96,
    overlap: float = 0.25,
    tissue: torch.Tensor | None = None,
) -> WindowPlan:
    return plan_windows(
        shape, CONFIG, stage=stage, window_vox=window_vox, overlap=overlap, tissue=tissue
    )


def _covered(windows: WindowPlan) -> torch.Tensor:
    """How many windows each token lies in, on a grid that holds all of them."""
    sides = [
        max(tokens, windows.window[axis] // windows.stride)
        for axis, tokens in enumerate(windows.tokens)
    ]
    count = torch.zeros(sides, dtype=torch.int32)
    for start in windows.starts:
        part = tuple(
            slice(a // windows.stride, (a + n) // windows.stride)
            for a, n in zip(start, windows.window, strict=True)
        )
        count[part] += 1
    z, y, x = windows.tokens
    return count[:z, :y, :x]


def _random_cases() -> list[tuple[tuple[int, ...], int, int, float, torch.Tensor]]:
    """Scans of all sizes with two boxes of tissue somewhere."""
    random = np.random.default_rng(0)
    cases = []
    for _ in range(60):
        stage = int(random.integers(0, 5))
        stride = STRIDES[stage]
        shape = tuple(int(side) for side in random.integers(20, 200, 3))
        grid = [-(-side // stride) for side in shape]
        tissue = torch.zeros(grid, dtype=torch.bool)
        for _ in range(2):
            corners = [sorted(random.integers(0, tokens + 1, 2)) for tokens in grid]
            tissue[tuple(slice(int(a), int(b) + 1) for a, b in corners)] = True
        window_vox = int(random.choice([32, 64, 96]))
        cases.append((shape, stage, window_vox, float(random.choice([0.0, 0.25, 0.5])), tissue))
    return cases


def test_every_token_of_tissue_and_its_neighbours_lie_in_windows() -> None:
    for shape, stage, window_vox, overlap, tissue in _random_cases():
        windows = _plan(shape, stage=stage, window_vox=window_vox, overlap=overlap, tissue=tissue)
        if not tissue.any():
            assert (_covered(windows) > 0).all()
            continue
        near = torch.nn.functional.max_pool3d(tissue[None].float(), 3, stride=1, padding=1)[0] > 0
        assert (_covered(windows)[near] > 0).all()


def test_windows_overlap_at_least_as_asked_for_and_lie_in_the_scan() -> None:
    for shape, stage, window_vox, overlap, tissue in _random_cases():
        windows = _plan(shape, stage=stage, window_vox=window_vox, overlap=overlap, tissue=tissue)
        stride = windows.stride
        for axis in range(3):
            side = windows.window[axis]
            assert 32 <= side <= window_vox
            assert side % max(8, stride) == 0
            places = sorted({start[axis] for start in windows.starts})
            assert all(place % stride == 0 for place in places)
            assert places[0] >= 0
            assert places[-1] + side <= max(side, windows.tokens[axis] * stride)
        whole = _plan(shape, stage=stage, window_vox=window_vox, overlap=overlap)
        for axis in range(3):
            side = whole.window[axis]
            places = sorted({start[axis] for start in whole.starts})
            most = max(stride, side * (1 - overlap))
            assert all(b - a <= most for a, b in pairwise(places))


def test_no_tissue_takes_more_than_the_plan_without_it() -> None:
    """What is shown before the tissue is looked for is the most it may be."""
    for shape, stage, window_vox, overlap, tissue in _random_cases():
        most = _plan(shape, stage=stage, window_vox=window_vox, overlap=overlap)
        windows = _plan(shape, stage=stage, window_vox=window_vox, overlap=overlap, tissue=tissue)
        assert windows.windows <= most.windows
        assert windows.voxels <= most.voxels
        assert windows.bytes_needed == most.bytes_needed


def test_a_brain_in_air_takes_two_short_windows() -> None:
    tissue = torch.zeros(10, 16, 14, dtype=torch.bool)
    tissue[2:7, 1:15, 2:11] = True
    windows = _plan((80, 128, 112), tissue=tissue)
    assert windows.window == (56, 80, 88)
    assert windows.starts == ((8, 0, 8), (8, 48, 8))
    assert _plan((80, 128, 112)).window == (80, 80, 80)


def test_a_scan_a_little_longer_than_a_window_takes_two_shorter_ones() -> None:
    windows = _plan((96, 104, 96))
    assert windows.window == (96, 80, 96)
    assert windows.starts == ((0, 0, 0), (0, 24, 0))


def test_windows_without_tissue_are_left_out() -> None:
    """Two things in opposite corners: the other corners of their box are air."""
    tissue = torch.zeros(30, 30, 4, dtype=torch.bool)
    tissue[:4, :4] = True
    tissue[-3:, -3:] = True
    windows = _plan((240, 240, 32), window_vox=64, tissue=tissue)
    assert windows.windows == 2
    assert _plan((240, 240, 32), window_vox=64).windows == 25


def test_no_tissue_at_all_means_everything() -> None:
    nothing = torch.zeros(6, 6, 6, dtype=torch.bool)
    assert _plan((48, 48, 48), tissue=nothing) == _plan((48, 48, 48))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_the_work_grows_with_the_scan(overlap: float) -> None:
    voxels = [
        _plan((64, 64, side), window_vox=64, overlap=overlap).voxels for side in range(32, 400, 8)
    ]
    most = 64 * 64 * 1.001 / (1 - overlap)
    for side, encoded in zip(range(32, 400, 8), voxels, strict=True):
        assert encoded <= most * (side + 64)
