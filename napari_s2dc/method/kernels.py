"""The encoder's Triton kernels for NVIDIA GPUs, where this machine can compile them.

Triton comes with torch's CUDA builds for Linux. It takes a second to import and seconds to compile
(once, then it has the kernels on disk), so this happens when an encoder's weights first move to a
GPU. Without it, or on GPUs older than Ampere, torch's own operations are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.method.attention_plan import attention_plan, relative_bias

__all__ = ["have_kernels", "layer_norm", "load_kernels", "normalise_and_rectify", "tiled_attention"]

_log = logging.getLogger(__name__)

_OLDEST = (8, 0)
"""Compute capability of Ampere, whose matrix units take bfloat16."""

_MOST_CHANNELS = 384
"""Of our layer norm; with more, torch's is as quick, and each number is a kernel to compile."""

_asked = _usable = False


def load_kernels(device: torch.device) -> None:
    """Define the operators if a device can run them; the first GPU that is asked for decides.

    Parameters
    ----------
    device : torch.device
        Where the encoder's weights are.
    """
    global _asked, _usable
    if _asked or device.type != "cuda":
        return
    _asked = True
    if (
        torch.version.cuda is None
        or torch.cuda.get_device_capability(device) < _OLDEST
        or importlib.util.find_spec("triton") is None
    ):
        return
    try:
        for name in ("window_attention_gpu", "norms_gpu"):
            importlib.import_module(f"napari_s2dc.method.{name}")
        _usable = _works(device)
        reason = "they give other results"
    except Exception as error:  # Triton has many kinds: no C compiler, no disk, no such GPU
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if not _usable:
        _log.warning(
            f"The encoder's kernels for this GPU cannot be used ({reason}); PyTorch's own "
            "operations are used instead: slower, with the same results."
        )


def have_kernels(x: Tensor) -> bool:
    """Whether the operators are defined and a tensor lies where they run."""
    return _usable and x.device.type == "cuda"


@torch.inference_mode()
def _works(device: torch.device) -> bool:
    """Whether attention in one window is what torch's is."""
    images, heads, features, side = (1, 2, 2, 2), 2, 16, 2
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(9, 3 * heads * features, generator=generator).to(device)
    table = torch.randn((2 * side - 1) ** 3, heads, generator=generator).to(device)
    mixed = tiled_attention(tokens, table, list(images), side, False)
    # All of them are one box, in order
    bias = relative_bias(attention_plan(images, side, False, device).groups[0], table)[:, 0].mT
    query, key, value = tokens[:8].view(8, 3, heads, features).permute(1, 2, 0, 3)
    expected = F.scaled_dot_product_attention(query[None], key[None], value[None], bias[None])
    expected = expected[0].transpose(0, 1).flatten(1)
    return bool((mixed - expected).norm() < 1e-3 * expected.norm())


def tiled_attention(
    qkv: Tensor, table: Tensor, images: list[int], side: int, shifted: bool
) -> Tensor:
    """Attention within the windows of a token grid.

    Parameters
    ----------
    qkv : Tensor (B · Z · Y · X + 1, 3 C)
        Queries, keys and values of every token, and of one that only fills up windows; heads follow
        each other in C.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.
    images : list of int
        Images, and tokens on their axes z, y, x.
    side : int
        Side of a window in tokens.
    shifted : bool
        Move the windows by half their side.

    Returns
    -------
    Tensor (B · Z · Y · X, C)
        Values mixed by attention.
    """
    mixed: Tensor
    mixed, _ = torch.ops.napari_s2dc.tiled_attention(qkv, table, images, side, shifted)
    return mixed


def layer_norm(
    tokens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    spare: int = 0,
) -> Tensor:
    """Layer norm over channels.

    Parameters
    ----------
    tokens : Tensor (R, C)
        Features.
    weight, bias : Tensor (C,) or None
        Scale and shift; None for neither.
    epsilon : float
        Added to the variance.
    dtype : torch.dtype
        Of the result.
    spare : int
        Rows of zeros behind the others.

    Returns
    -------
    Tensor (R + spare, C)
        Normalised features.
    """
    channels = tokens.shape[-1:]
    if channels[0] > _MOST_CHANNELS and not spare:
        return F.layer_norm(tokens, channels, weight, bias, epsilon).to(dtype)
    normalised: Tensor
    normalised, _ = torch.ops.napari_s2dc.layer_norm(tokens, weight, bias, epsilon, dtype, spare)
    return normalised


def normalise_and_rectify(
    tokens: Tensor, residual: Tensor | None, epsilon: float, slope: float
) -> Tensor:
    """Leaky rectifier of instance-normalised features, to which a residual may be added.

    Parameters
    ----------
    tokens : Tensor (B, Z, Y, X, C)
        Features; every channel of a sample is normalised by itself.
    residual : Tensor (B, Z, Y, X, C) or None
        Added before the rectifier.
    epsilon : float
        Added to the variance.
    slope : float
        Of the rectifier below 0; positive.

    Returns
    -------
    Tensor (B, Z, Y, X, C)
        In the precision of `tokens`.
    """
    flat = None if residual is None else residual.flatten(1, 3)
    out, _ = torch.ops.napari_s2dc.normalise_and_rectify(tokens.flatten(1, 3), flat, epsilon, slope)
    rectified: Tensor = out.view(tokens.shape)
    return rectified
