"""The sliding window: where windows lie, one stage of the encoder, blending on the token grid."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import STRIDES, EncoderConfig, SwinEncoder

__all__ = ["WindowPlan", "plan_windows", "run_windows", "stage_features"]

Triple = tuple[int, int, int]

_SMALLEST_WINDOW = 32


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
        Estimate of the memory beyond the scan and the weights.
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
    def tokens(self) -> Triple:
        """Tokens (tz, ty, tx) of the result."""
        z, y, x = (-(-side // self.stride) for side in self.shape)
        return z, y, x

    @property
    def sentence(self) -> str:
        """What embedding takes, in words to show before it starts."""
        number = "1 window" if self.windows == 1 else f"{self.windows} windows"
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
) -> WindowPlan:
    """Lay overlapping windows over a scan.

    Parameters
    ----------
    shape : sequence of int
        Voxels (z, y, x).
    config : EncoderConfig
        Architecture; decides the memory.
    stage : int
        Encoder stage, 0 to 4.
    window_vox : int
        Side of a window in voxels; at least 32, a multiple of 16 and of the token side. Along an
        axis on which the scan is shorter, the window is only as long as it needs to be.
    overlap : float
        Least share of a window that the next one covers again, 0 up to (not including) 1.
    windows_at_once : int
        Windows that are encoded together.

    Raises
    ------
    ConfigurationError
        A setting is out of range.
    """
    from monai.data.utils import dense_patch_slices

    if not 0 <= stage < len(STRIDES):
        raise ConfigurationError(f"There is no encoder stage {stage}.", "Use 0 to 4.")
    stride = STRIDES[stage]
    multiple = max(16, stride)
    if window_vox < _SMALLEST_WINDOW or window_vox % multiple or not 0 <= overlap < 1:
        raise ConfigurationError(
            f"A window of {window_vox} voxels that overlaps by {overlap:g} cannot be used.",
            f"Use a multiple of {multiple}, at least 32, and an overlap from 0 to below 1.",
        )
    window = [
        min(window_vox, max(_SMALLEST_WINDOW, -(-side // multiple) * multiple)) for side in shape
    ]
    # Whole tokens, so that windows at the far edge begin on a token too.
    padded = [
        max(length, -(-side // stride) * stride) for side, length in zip(shape, window, strict=True)
    ]
    steps = [max(stride, int(length * (1 - overlap)) // stride * stride) for length in window]
    slices = dense_patch_slices(padded, window, steps)
    return WindowPlan(
        shape=_triple(shape),
        stage=stage,
        stride=stride,
        window=_triple(window),
        starts=tuple(_triple([part.start for part in cut]) for cut in slices),
        bytes_needed=_bytes_needed(shape, window, config, stage, windows_at_once),
    )


def _triple(numbers: Sequence[int]) -> Triple:
    z, y, x = (int(number) for number in numbers)
    return z, y, x


def _bytes_needed(
    shape: Sequence[int], window: Sequence[int], config: EncoderConfig, stage: int, together: int
) -> int:
    """Estimate the memory of an embedding: normalised scan, features, and one batch of windows."""
    voxels = math.prod(shape)
    features = math.prod(-(-side // STRIDES[stage]) for side in shape)
    features *= config.feature_size * 2**stage
    # Scan as float32 and its mask; features in half precision; sums of one slab in float32.
    fixed = 5 * voxels + 2 * features + 4 * features * min(1.0, window[0] / shape[0])
    # The first layer takes most: its attention bias, and about a dozen maps of all its channels.
    side = config.window_size
    tokens = math.prod(-(-(length // 2) // side) * side for length in window)
    bias = 4 * tokens * side**3 * (config.num_heads[0] + 2)
    maps = 12 * 4 * tokens * config.feature_size
    return int(fixed + together * (bias + maps))


def stage_features(encoder: SwinEncoder, windows: Tensor, stage: int) -> Tensor:
    """Features of one stage, without the time for the layers behind it.

    Parameters
    ----------
    encoder : SwinEncoder
        Encoder.
    windows : Tensor (B, 1, Z, Y, X)
        Normalised to [0, 1].
    stage : int
        Stage, 0 to 4.

    Returns
    -------
    Tensor (B, C, Z / stride, Y / stride, X / stride)
        Equal to ``encoder(windows)[stage]``.
    """
    return encoder.stage(windows, stage)


class _Blend:
    """Weighted mean of overlapping windows on the token grid.

    Windows come with z growing, so that only one slab, as deep as a window, is summed in float32;
    planes that no further window reaches are divided and stored.
    """

    def __init__(self, plan: WindowPlan, channels: int, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight
        grid = [
            (max(start[axis] for start in plan.starts) + plan.window[axis]) // plan.stride
            for axis in range(3)
        ]
        depth = plan.window[0] // plan.stride
        self.first = 0
        self.sums = torch.zeros(channels, depth, *grid[1:])
        self.weights = torch.zeros(depth, *grid[1:])
        self.result = torch.empty(channels, *plan.tokens, dtype=dtype)

    def add(self, start: Sequence[int], weighted: Tensor) -> None:
        """Add the weighted features (C, wz, wy, wx) of the window that starts at a token."""
        if start[0] > self.first:
            self._store(start[0] - self.first)
        _, y, x = (slice(a, a + n) for a, n in zip(start, self.weight.shape, strict=True))
        self.sums[:, :, y, x] += weighted
        self.weights[:, y, x] += self.weight

    def _store(self, planes: int) -> None:
        _, depth, height, width = self.result.shape
        taken = min(planes, depth - self.first)
        mean = self.sums[:, :taken, :height, :width]
        mean /= self.weights[:taken, :height, :width]
        self.result[:, self.first : self.first + taken] = mean
        self.first += planes
        for array, axis in ((self.sums, 1), (self.weights, 0)):
            kept = array.shape[axis] - planes
            if kept > 0:
                array.narrow(axis, 0, kept).copy_(array.narrow(axis, planes, kept).clone())
            array.narrow(axis, kept, planes).zero_()

    def finish(self) -> Tensor:
        """Give the features (C, tz, ty, tx)."""
        self._store(self.sums.shape[1])
        return self.result


def _cut(image: np.ndarray, start: Sequence[int], window: Sequence[int]) -> Tensor:
    """One window (1, *window) of the image, 0 where it reaches past the far edge."""
    part = image[tuple(slice(a, a + n) for a, n in zip(start, window, strict=True))]
    padding: list[int] = []
    for length, side in zip(reversed(window), reversed(part.shape), strict=True):
        padding += [0, length - side]
    return F.pad(torch.as_tensor(part, dtype=torch.float32)[None], padding)


def run_windows(
    image: np.ndarray,
    encoder: SwinEncoder,
    plan: WindowPlan,
    *,
    windows_at_once: int,
    dtype: torch.dtype,
) -> Generator[int, None, Tensor]:
    """Encode window by window and blend the windows with Gaussian weights.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Scan normalised to [0, 1], of the plan's shape.
    encoder : SwinEncoder
        On the device that is to do the work; in evaluation mode while this runs.
    plan : WindowPlan
        Where the windows lie.
    windows_at_once : int
        Windows encoded together.
    dtype : torch.dtype
        Type of the result.

    Yields
    ------
    int
        Windows done, after each batch of them.

    Returns
    -------
    Tensor (C, tz, ty, tx)
        On the CPU; the same values as MONAI's ``sliding_window_inference`` with these windows.
    """
    from monai.data.utils import compute_importance_map

    device = next(encoder.parameters()).device
    window_tokens = [length // plan.stride for length in plan.window]
    importance = compute_importance_map(plan.window, mode="gaussian", sigma_scale=0.125)
    weight = F.interpolate(importance[None, None], window_tokens, mode="nearest-exact")[0, 0]
    weight_there = weight.to(device)
    blend = _Blend(plan, encoder.stage_channels[plan.stage], weight, dtype)
    training = encoder.training
    encoder.eval()
    done = 0
    try:
        for first in range(0, plan.windows, windows_at_once):
            starts = plan.starts[first : first + windows_at_once]
            with torch.no_grad():
                windows = torch.stack([_cut(image, start, plan.window) for start in starts])
                features = stage_features(encoder, windows.to(device), plan.stage).float()
                features = (features * weight_there).cpu()
            for start, weighted in zip(starts, features, strict=True):
                blend.add([place // plan.stride for place in start], weighted)
            done += len(starts)
            yield done
        return blend.finish()
    finally:
        encoder.train(training)
