"""The encoder's Triton kernels for NVIDIA GPUs, where this machine can compile them.

Triton comes with torch's CUDA builds for Linux. It takes a second to import and seconds to compile
(once, then it has the kernels on disk), so this happens when an encoder's weights first move to a
GPU: the operators are tried there, forward and backward, and used if they give what torch's give.
Without Triton, beside software OpenGL, and on GPUs older than Ampere, torch's own operations are
used.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from napari_s2dc.method.window_attention import window_attention

__all__ = [
    "have_kernels",
    "hide_triton",
    "layer_norm",
    "load_kernels",
    "normalise_and_rectify",
    "tiled_attention",
]

_log = logging.getLogger(__name__)

_OLDEST = (8, 0)
"""Compute capability of Ampere, whose matrix units take bfloat16."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_MOST_FEATURES = 32
"""Of a head; with more, programs of float32 want more shared memory than some GPUs have."""

_MOST_CHANNELS = 384
"""Of our layer norm; with more, torch's takes 25 µs, and each number is a kernel to compile."""

_MAPS = Path("/proc/self/maps")
"""What this process has loaded, on Linux."""

_lock = Lock()
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
    with _lock:
        if not _asked:
            _usable = _load(device)
            _asked = True


def _load(device: torch.device) -> bool:
    if (
        torch.version.cuda is None
        or torch.cuda.get_device_capability(device) < _OLDEST
        or not ("triton" in sys.modules or importlib.util.find_spec("triton"))
    ):
        return False
    if _would_crash():
        return _not_used("software OpenGL has loaded an LLVM that Triton's does not go with")
    try:
        for name in ("window_attention_gpu", "norms_gpu"):
            importlib.import_module(f"napari_s2dc.method.{name}")
        return _works(device) or _not_used("they give other results")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton has many kinds: no C compiler, no disk, no such GPU
        return _not_used(str(error).strip().partition("\n")[0] or type(error).__name__)


def _not_used(reason: str) -> bool:
    _log.warning(
        f"The encoder's kernels for this GPU cannot be used ({reason}); PyTorch's own operations "
        "are used instead: slower, with the same results."
    )
    return False


def _would_crash() -> bool:
    """Whether Mesa's software OpenGL has loaded its LLVM, beside which Triton's does not load."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is None  # hidden
    loaded = _MAPS.read_text(encoding="utf-8", errors="replace") if _MAPS.is_file() else ""
    return "libLLVM" in loaded


def hide_triton() -> None:
    """Keep torch from importing Triton where that would crash; torch then does without.

    It imports Triton with its compiler, which comes with the first optimiser, on a CPU, too. To be
    called before.
    """
    if "triton" not in sys.modules and importlib.util.find_spec("triton") and _would_crash():
        sys.modules["triton"] = None  # type: ignore[assignment]


def have_kernels(x: Tensor, features: int = 1) -> bool:
    """Whether the operators are there for a tensor, and for heads of so many features."""
    return _usable and x.device.type == "cuda" and x.dtype in _TYPES and features <= _MOST_FEATURES


@torch.inference_mode(False)
@torch.enable_grad()
def _works(device: torch.device) -> bool:
    """Whether all operators give what torch's give, and the same gradients, in a small grid."""
    # Triton's interpreter, where there is no GPU, takes bfloat16 for integers
    half = torch.bfloat16 if device.type == "cuda" else torch.float16
    images, heads, side = [1, 5, 6, 7], 2, 5
    channels = 16 * heads
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(device).requires_grad_()

    tokens, table = some(*images, channels), some((2 * side - 1) ** 3, heads)
    weight, bias, residual = some(channels), some(channels), some(*images, channels)
    # Without taking from the random numbers of a training
    qkv = skip_init(nn.Linear, channels, 3 * channels, device=device)
    qkv.weight.data = some(3 * channels, channels).data * channels**-0.5
    qkv.bias.data = some(3 * channels).data
    same = skip_init(nn.Linear, channels, channels, bias=False, device=device)
    same.weight.data = torch.eye(channels, device=device)

    def ours(dtype: torch.dtype) -> Tensor:
        rows = layer_norm(tokens.flatten(0, 3).to(dtype), weight, bias, 1e-5, dtype, spare=1)
        narrow = F.linear(rows, qkv.weight.to(dtype), qkv.bias.to(dtype))
        mixed = tiled_attention(narrow, table, images, side, True).view(tokens.shape)
        return normalise_and_rectify(mixed, residual.to(dtype), 1e-5, 0.01)

    def torchs(_: torch.dtype) -> Tensor:
        normalised = F.layer_norm(tokens, (channels,), weight, bias)
        mixed = window_attention(normalised, qkv, same, table, side, True)
        mixed = F.instance_norm(mixed.movedim(-1, 1)).movedim(1, -1)
        return F.leaky_relu(mixed + residual, 0.01)

    def with_gradients(way: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        found = way(dtype).float()
        leaves = [tokens, table, weight, bias, residual, *qkv.parameters()]
        return [found, *torch.autograd.grad(found.pow(2).sum(), leaves)]

    with torch.autocast(device.type, enabled=False):
        expected = with_gradients(torchs, torch.float32)
        # Products of float32 may be shortened to 10 bits by the user's settings
        return all(
            bool((one - other).norm() < allowed * other.norm())
            for dtype, allowed in ((torch.float32, 0.01), (half, 0.1))
            for one, other in zip(with_gradients(ours, dtype), expected, strict=True)
        )


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
