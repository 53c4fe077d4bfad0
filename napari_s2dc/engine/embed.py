"""Features of a whole scan: MONAI's sliding window over the encoder."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import STRIDES, SwinEncoder

__all__ = ["OVERLAP", "WINDOW_VOX", "embed"]

WINDOW_VOX = 96
"""Side of a window. Wider than the small presets' crops: on mouse brains (crops of 48) structures
agreed better across subjects at 96, see ``docs/benchmarks.md``."""
OVERLAP = 0.25


@torch.no_grad()
def embed(
    image: np.ndarray,
    encoder: SwinEncoder,
    *,
    stage: int,
    window_vox: int = WINDOW_VOX,
    overlap: float = OVERLAP,
    windows_at_once: int = 4,
) -> Tensor:
    """Encode a scan window by window and blend the windows on one token grid.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Scan normalised to [0, 1].
    encoder : SwinEncoder
        On the device that is to do the work; used in evaluation mode.
    stage : int
        Encoder stage, 0 to 4; a token is a cube of ``STRIDES[stage]`` voxels.
    window_vox : int
        Side of a window in voxels; at least 32, a multiple of 16 and of the token side. Along an
        axis on which the scan is shorter, the window is only as long as it needs to be.
    overlap : float
        Least share of a window that the next one covers again, 0 up to (not including) 1.
    windows_at_once : int
        Windows encoded together.

    Returns
    -------
    Tensor (C, tz, ty, tx)
        float32 on the CPU. Token ``i`` of an axis covers voxels ``[i * stride, (i + 1) * stride)``;
        the last one may reach past the scan, where the image counts as 0.

    Raises
    ------
    ConfigurationError
        A setting is out of range.
    """
    from monai.inferers import sliding_window_inference

    if not 0 <= stage < len(STRIDES):
        raise ConfigurationError(f"There is no encoder stage {stage}.", "Use 0 to 4.")
    stride = STRIDES[stage]
    multiple = max(16, stride)
    if window_vox < 32 or window_vox % multiple or not 0 <= overlap < 1:
        raise ConfigurationError(
            f"A window of {window_vox} voxels that overlaps by {overlap:g} cannot be used.",
            f"Use a multiple of {multiple}, at least 32, and an overlap from 0 to below 1.",
        )
    tokens = [-(-side // stride) for side in image.shape]
    window = [min(window_vox, max(32, -(-side // multiple) * multiple)) for side in image.shape]
    padding: list[int] = []
    for side, length in zip(reversed(image.shape), reversed(window), strict=True):
        # Whole tokens, so that windows at the far edge begin on a token too.
        padding += [0, max(length, -(-side // stride) * stride) - side]
    device = next(encoder.parameters()).device
    volume = F.pad(torch.as_tensor(image, dtype=torch.float32)[None, None], padding)

    def share(length: int) -> float:
        # Windows advance by whole tokens; half a voxel keeps rounding from taking one off.
        step = max(stride, int(length * (1 - overlap)) // stride * stride)
        return (length - step - 0.5) / length if step < length else 0.0

    training = encoder.training
    encoder.eval()
    try:
        features = sliding_window_inference(
            volume,
            window,
            windows_at_once,
            lambda windows: encoder(windows)[stage].float(),
            overlap=[share(length) for length in window],
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
    finally:
        encoder.train(training)
    assert isinstance(features, Tensor)
    return features[0, :, : tokens[0], : tokens[1], : tokens[2]]
