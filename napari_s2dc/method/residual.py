"""MONAI's residual blocks with the same results, executed without waste."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from napari_s2dc.method.convolution import convolve, is_quicker
from napari_s2dc.method.kernels import have_kernels, normalise_and_rectify

__all__ = ["add", "residual_block"]

_FEW_VALUES = 20480
"""Batch times channels times two sides up to which torch does not take oneDNN by itself."""


def residual_block(block: UnetResBlock, x: Tensor) -> Tensor:
    """Apply a residual block to features (B, C, Z, Y, X) that are channels last in memory.

    Equal to ``block(x)`` up to rounding.
    """
    residual = x
    if have_kernels(x) and not hasattr(block, "conv3"):
        out = _rectified(_convolution(block.conv1, x), None)
        return _rectified(_convolution(block.conv2, out), residual)
    if hasattr(block, "conv3"):
        residual = _instance_norm(_convolution(block.conv3, x))
    out = F.leaky_relu_(_instance_norm(_convolution(block.conv1, x)), 0.01)
    out = _instance_norm(_convolution(block.conv2, out))
    return F.leaky_relu_(add(out, residual), 0.01)


def add(fresh: Tensor, other: Tensor) -> Tensor:
    """Sum in the memory of the first, unless autocast made it less precise than the second."""
    return fresh.add_(other) if fresh.dtype == other.dtype else fresh + other


def _rectified(x: Tensor, residual: Tensor | None) -> Tensor:
    """Leaky rectifier of instance-normalised features and a residual, by one kernel."""
    added = None if residual is None else residual.permute(0, 2, 3, 4, 1)
    rectified = normalise_and_rectify(x.permute(0, 2, 3, 4, 1), added, 1e-5, 0.01)
    return rectified.permute(0, 4, 1, 2, 3)


def _instance_norm(x: Tensor) -> Tensor:
    """Instance normalisation of features (B, C, Z, Y, X) that are channels last in memory.

    ``instance_norm`` copies such features into another order; ``batch_norm`` of one sample is the
    same and does not.
    """
    normalised = [F.batch_norm(one, None, None, training=True) for one in x.split(1)]
    return normalised[0] if len(normalised) == 1 else torch.cat(normalised)


def _convolution(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution, on the CPU always by oneDNN.

    Large ones are done with half of their multiplications. torch leaves images of few values to a
    path that is three times slower. What it decides by cannot be set, but tensors in oneDNN's own
    layout are not asked. Under autocast on the CPU, convolutions stay in float32: in bfloat16 the
    gradient of a small one's kernel is now and then NaN, from memory that oneDNN 3 in torch 2.13
    does not fill.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return _convolution(convolution, x.float())
    inner = cast(nn.Conv3d, convolution.conv)
    if x.device.type == "cuda" and x.dtype != torch.float32:
        # cuDNN is quicker if kernels lie in memory as the features do (benchmarks/README.md)
        kernel = inner.weight.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, kernel, inner.bias, inner.stride, cast(Any, inner.padding))
    tokens, kernel = x.permute(0, 2, 3, 4, 1), inner.weight
    if inner.stride == (1, 1, 1) and inner.bias is None and is_quicker(tokens, kernel):
        return convolve(tokens, kernel).permute(0, 4, 1, 2, 3)
    # Neither a compiler nor autocast knows tensors in that layout
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return cast(Tensor, convolution(x))
    left_out = (
        (x.device.type, x.dtype, len(x)) == ("cpu", torch.float32, 1)
        and x.shape[:4].numel() <= _FEW_VALUES
        and torch.backends.mkldnn.is_available()
    )
    return cast(Tensor, convolution(x.to_mkldnn()).to_dense() if left_out else convolution(x))
