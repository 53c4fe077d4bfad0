"""Where the windows of a scan lie: over its tissue, as few and as small as will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.large_arrays import IN_MEMORY_BYTES
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import STRIDES, EncoderConfig

__all__ = ["WindowPlan", "bytes_of_window", "plan_windows"]

Triple = tuple[int, int, int]

_SMALLEST_WINDOW = 32
_WHOLE_SIDES = 8
"""Sides of windows are multiples of this and of the token. Time on a CPU goes with the voxels:
between 370 and 550 ns each for 15 shapes from 32 to 96 voxels a side, multiples of 16 or not."""
_SHORTEST = 5 / 6
"""Least share of `window_vox` that windows have where one is not enough, since they see less around
them the shorter they are. Clicks in a CT of 112 x 101 x 122 voxels (``benchmarks.probing``) had a
mean average precision of 0.248 with windows of 96, 0.237 at 80, 0.214 at 72 and 0.191 at 64."""
_LAYER_MAPS = 20
"""Maps of the first layer, float32, that a window takes on a CPU: 13 to 19 were measured for 64 to
128 voxels a side, feature sizes 12, 24 and 48, attention windows 4 and 7."""
_MARGIN_TOKENS = 1
"""Background round the tissue that is encoded too: values are interpolated between tokens. Labels
carried between mouse brains (8 pairs) had a mean Dice of 0.828 with 1, 2 or 3."""


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows of a scan lie and what embedding it takes.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x) that are embedded.
    stage : int
        Encoder stage.
    stride : int
        Voxels per token side.
    window : tuple of int
        Voxels (z, y, x) of a window.
    starts : tuple of (z, y, x)
        First voxel of every window, z slowest; whole tokens.
    bytes_needed : int
        Estimate of the memory beyond the scan and the weights, wherever the tissue lies.
    """

    shape: Triple
    stage: int
    stride: int
    window: Triple
    starts: tuple[Triple, ...]
    bytes_needed: int

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.starts)

    @property
    def voxels(self) -> int:
        """Voxels that are encoded, those of several windows several times."""
        return self.windows * math.prod(self.window)

    @property
    def tokens(self) -> Triple:
        """Tokens (tz, ty, tx) of the result."""
        return _grid(self.shape, self.stride)

    @property
    def sentence(self) -> str:
        """What embedding takes at most, in words to show before the tissue is looked for."""
        number = "1 window" if self.windows == 1 else f"at most {self.windows} windows"
        gigabytes = self.bytes_needed / 1e9
        amount = "less than 0.1 GB" if gigabytes < 0.1 else f"about {gigabytes:.1f} GB"
        return f"{number}, {amount}"


def plan_windows(
    shape: Sequence[int],
    config: EncoderConfig,
    *,
    stage: int,
    window_vox: int,
    overlap: float,
    windows_at_once: int = 1,
    tissue: Tensor | None = None,
) -> WindowPlan:
    """Lay overlapping windows over the tissue of a scan.

    Along each axis there are as few windows as `window_vox` and `overlap` allow for the box that
    holds the tissue and one more token on each side, and they are as short as these few may be,
    but not much shorter than `window_vox` where there are several. Windows without any of these
    tokens are left out.

    Parameters
    ----------
    shape : sequence of int
        Voxels (z, y, x).
    config : EncoderConfig
        Architecture; decides the memory.
    stage : int
        Encoder stage, 0 to 4.
    window_vox : int
        Largest side of a window in voxels; at least 32, a multiple of 16 and of the token side.
    overlap : float
        Least share of a window that the next one covers again, 0 up to (not including) 1.
    windows_at_once : int
        Windows that are encoded together.
    tissue : Tensor (tz, ty, tx), optional
        Boolean: tokens that are wanted. All are when it is left out or has none; a plan for any
        tissue has no more windows than that, encodes no more voxels and needs no more memory.

    Raises
    ------
    ConfigurationError
        A setting is out of range.
    """
    if not 0 <= stage < len(STRIDES):
        raise ConfigurationError(f"There is no encoder stage {stage}.", "Use 0 to 4.")
    stride = STRIDES[stage]
    multiple = max(16, stride)
    if window_vox < _SMALLEST_WINDOW or window_vox % multiple or not 0 <= overlap < 1:
        raise ConfigurationError(
            f"A window of {window_vox} voxels that overlaps by {overlap:g} cannot be used.",
            f"Use a multiple of {multiple}, at least 32, and an overlap from 0 to below 1.",
        )
    grid = _grid(shape, stride)
    wanted = None
    if tissue is not None and bool(tissue.any()):
        side = 2 * _MARGIN_TOKENS + 1
        grown = F.max_pool3d(tissue[None, None].float(), side, stride=1, padding=_MARGIN_TOKENS)
        wanted = grown[0, 0] > 0
    axes = [
        _along(first * stride, end * stride, tokens * stride, window_vox, overlap, stride)
        for (first, end), tokens in zip(_box(wanted, grid), grid, strict=True)
    ]
    window = _triple([side for side, _ in axes])
    starts = [_triple(start) for start in product(*(places for _, places in axes))]
    return WindowPlan(
        shape=_triple(shape),
        stage=stage,
        stride=stride,
        window=window,
        starts=tuple(
            start for start in starts if wanted is None or _holds(wanted, start, window, stride)
        ),
        bytes_needed=_bytes_needed(
            shape, config, stage, window_vox, min(windows_at_once, len(starts))
        ),
    )


def _triple(numbers: Sequence[int]) -> Triple:
    z, y, x = (int(number) for number in numbers)
    return z, y, x


def _grid(shape: Sequence[int], stride: int) -> Triple:
    return _triple([-(-side // stride) for side in shape])


def _box(wanted: Tensor | None, grid: Triple) -> list[tuple[int, int]]:
    """First token and end along each axis of what is wanted."""
    if wanted is None:
        return [(0, tokens) for tokens in grid]
    places = wanted.nonzero()
    first, last = places.amin(0).tolist(), places.amax(0).tolist()
    return [(a, b + 1) for a, b in zip(first, last, strict=True)]


def _along(
    first: int, end: int, limit: int, window_vox: int, overlap: float, stride: int
) -> tuple[int, list[int]]:
    """Side of the windows along an axis and where they begin, to cover from `first` to `end`.

    All in voxels and whole tokens. Windows reach past `limit`, where the grid ends, only where
    the grid is shorter than one of them.
    """

    def step_of(side: int) -> int:
        return max(stride, int(side * (1 - overlap)) // stride * stride)

    length = end - first
    more = max(0, -(-(length - window_vox) // step_of(window_vox)))  # windows after the first
    multiple = max(_WHOLE_SIDES, stride)
    shortest = _SHORTEST * window_vox if more else _SMALLEST_WINDOW
    side = next(
        side
        for side in range(_SMALLEST_WINDOW, window_vox + 1, multiple)
        if side >= shortest and side + more * step_of(side) >= length
    )
    # Evenly, but for the last one, as MONAI lays them; what is too wide goes to both sides.
    step = -(-(length - side) // (more * stride)) * stride if more else 0
    spare = max(0, side - length)
    start = max(0, min(first - spare // 2 // stride * stride, limit - max(side, length)))
    last = start + max(0, length - side)
    return side, [min(start + number * step, last) for number in range(more + 1)]


def _holds(wanted: Tensor, start: Triple, window: Triple, stride: int) -> bool:
    """Whether a window has any token that is wanted."""
    part = tuple(
        slice(a // stride, (a + length) // stride) for a, length in zip(start, window, strict=True)
    )
    return bool(wanted[part].any())


def _bytes_needed(
    shape: Sequence[int], config: EncoderConfig, stage: int, window_vox: int, together: int
) -> int:
    """Estimate the memory of an embedding: mask of the tissue, features, a batch of windows."""
    # Tissue that is shorter than the scan may be covered by fewer, but longer windows.
    multiple = max(_WHOLE_SIDES, STRIDES[stage])
    window = [
        min(window_vox, max(_SMALLEST_WINDOW, -(-side // multiple) * multiple)) for side in shape
    ]
    voxels = math.prod(shape)
    features = math.prod(_grid(shape, STRIDES[stage])) * config.feature_size * 2**stage
    # The mask, twice while it is made; features in half precision, at most what is held in memory;
    # sums of one slab in float32.
    held = min(2 * features, IN_MEMORY_BYTES)
    fixed = 2 * voxels + held + 4 * features * min(1.0, window[0] / shape[0])
    return int(fixed + together * bytes_of_window(config, window))


def bytes_of_window(config: EncoderConfig, window: Sequence[int]) -> int:
    """Estimate the memory that encoding a window of (z, y, x) voxels takes, in float32."""
    return _LAYER_MAPS * 4 * math.prod(window) // 2**3 * config.feature_size
