"""The sliding window: one stage of the encoder, blending on the token grid."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.large_arrays import zeros
from napari_s2dc.engine.window_plan import WindowPlan
from napari_s2dc.method.encoder import SwinEncoder

__all__ = ["Scale", "run_windows"]

Scale = Callable[[np.ndarray], np.ndarray]


class _Blend:
    """Weighted mean of overlapping windows on the token grid.

    Windows come with z growing, so that only one slab, as deep as a window and as wide as all of
    them, is summed in float32; planes that no further window reaches are divided and stored.
    Tokens in no window are 0.
    """

    def __init__(self, plan: WindowPlan, channels: int, weight: Tensor, dtype: torch.dtype) -> None:
        firsts = [min(start[axis] for start in plan.starts) // plan.stride for axis in range(3)]
        ends = [
            (max(start[axis] for start in plan.starts) + plan.window[axis]) // plan.stride
            for axis in range(3)
        ]
        self.weight = weight
        self.first, *self.corner = firsts
        height, width = (end - first for first, end in zip(firsts[1:], ends[1:], strict=True))
        depth = plan.window[0] // plan.stride
        self.sums = torch.zeros(channels, depth, height, width)
        self.weights = torch.zeros(depth, height, width)
        self.result = zeros((channels, *plan.tokens), dtype)

    def add(self, start: Sequence[int], weighted: Tensor) -> None:
        """Add the weighted features (C, wz, wy, wx) of the window that starts at a token."""
        if start[0] > self.first:
            self._store(start[0] - self.first)
        y, x = (
            slice(a - first, a - first + n)
            for a, first, n in zip(start[1:], self.corner, self.weight.shape[1:], strict=True)
        )
        self.sums[:, :, y, x] += weighted
        self.weights[:, y, x] += self.weight

    def _store(self, planes: int) -> None:
        """Store planes, of which there may be more than the slab has, and move the slab on."""
        done = min(planes, self.sums.shape[1])
        y0, x0 = self.corner
        target = self.result[:, self.first : self.first + done, y0:, x0:]
        target = target[:, :, : self.sums.shape[2], : self.sums.shape[3]]
        taken, height, width = target.shape[1:]
        mean = self.sums[:, :taken, :height, :width]
        weights = self.weights[:taken, :height, :width]
        mean /= torch.where(weights > 0, weights, 1.0)
        target.copy_(mean)
        self.first += planes
        for array, axis in ((self.sums, 1), (self.weights, 0)):
            kept = array.shape[axis] - done
            if kept > 0:
                array.narrow(axis, 0, kept).copy_(array.narrow(axis, done, kept).clone())
            array.narrow(axis, kept, done).zero_()

    def finish(self) -> Tensor:
        """Give the features (C, tz, ty, tx)."""
        self._store(self.sums.shape[1])
        return self.result


def _cut(image: np.ndarray, start: Sequence[int], window: Sequence[int], scale: Scale) -> Tensor:
    """One window (1, *window) of the image, 0 where it reaches past the far edge."""
    part = scale(image[tuple(slice(a, a + n) for a, n in zip(start, window, strict=True))])
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
    scale: Scale = np.asarray,
) -> Generator[int, None, Tensor]:
    """Encode window by window and blend the windows with Gaussian weights.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Scan of the plan's shape.
    encoder : SwinEncoder
        On the device that is to do the work; in evaluation mode while this runs.
    plan : WindowPlan
        Where the windows lie.
    windows_at_once : int
        Windows encoded together.
    dtype : torch.dtype
        Type of the result.
    scale : callable
        Maps intensities to [0, 1], window by window: a scan that is normalised as a whole takes
        more memory than its features. Left out where the image is normalised already.

    Yields
    ------
    int
        Windows done, after each batch of them.

    Returns
    -------
    Tensor (C, tz, ty, tx)
        On the CPU; the same values as MONAI's ``sliding_window_inference`` with these windows, and
        0 for tokens in none of them.
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
                windows = torch.stack([_cut(image, start, plan.window, scale) for start in starts])
                features = encoder.stage(windows.to(device), plan.stage).float()
                features = (features * weight_there).cpu()
            for start, weighted in zip(starts, features, strict=True):
                blend.add([place // plan.stride for place in start], weighted)
            done += len(starts)
            yield done
        return blend.finish()
    finally:
        encoder.train(training)
