"""Norms of the encoder on NVIDIA GPUs by Triton kernels.

With few channels, as a Swin encoder has them in its large stages, torch's layer norm takes ten
times as long as reading and writing would, and its instance norm copies features that are channels
last. Everything is computed in float32, whatever the precision of what goes in and out.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from napari_s2dc.method.operators import define

_VALUES_AT_ONCE = 1024
"""Of one program."""

_BLOCK = {"columns": 16, "at_once": _VALUES_AT_ONCE // 16}
"""Channels and rows of one program of the instance norm: as many channels as fill a sector."""

_PROGRAMS = 512
"""That share the sums over all rows; a few for each multiprocessor."""


def _sizes(channels: int) -> dict[str, Any]:
    """Constants of a kernel whose programs hold some rows of C values."""
    padded = triton.next_power_of_2(channels)
    at_once = max(1, _VALUES_AT_ONCE // padded)
    return {"channels": channels, "padded": padded, "at_once": at_once}


# Layer norm -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=("rows",))
def _layer_norm_kernel(
    x, weight, bias, out, statistics, rows, epsilon,
    affine: tl.constexpr, channels: tl.constexpr, padded: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    feature = tl.arange(0, padded)
    there = (row < rows)[:, None] & (feature < channels)[None, :]
    places = row.to(tl.int64)[:, None] * channels + feature[None, :]
    values = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centred = tl.where(there, values - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / channels + epsilon)
    result = centred * inverse[:, None]
    if affine:
        scale = tl.load(weight + feature, mask=feature < channels, other=0.0).to(tl.float32)
        shift = tl.load(bias + feature, mask=feature < channels, other=0.0).to(tl.float32)
        result = result * scale[None, :] + shift[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=there)
    tl.store(statistics + row, mean, mask=row < rows)
    tl.store(statistics + rows + row, inverse, mask=row < rows)


@triton.jit(do_not_specialize=("rows",))
def _layer_norm_gradient_kernel(
    incoming, x, weight, statistics, d_x, sums, rows,
    affine: tl.constexpr, channels: tl.constexpr, padded: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    feature = tl.arange(0, padded)
    wanted = feature < channels
    d_scale = tl.zeros([at_once, padded], tl.float32)
    d_shift = tl.zeros([at_once, padded], tl.float32)
    if affine:
        scale = tl.load(weight + feature, mask=wanted, other=0.0).to(tl.float32)
    step = tl.num_programs(0) * at_once
    for first in range(tl.program_id(0) * at_once, rows, step):
        row = first + tl.arange(0, at_once)
        there = (row < rows)[:, None] & wanted[None, :]
        places = row.to(tl.int64)[:, None] * channels + feature[None, :]
        mean = tl.load(statistics + row, mask=row < rows, other=0.0)
        inverse = tl.load(statistics + rows + row, mask=row < rows, other=0.0)
        values = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
        gradient = tl.load(incoming + places, mask=there, other=0.0).to(tl.float32)
        normalised = tl.where(there, (values - mean[:, None]) * inverse[:, None], 0.0)
        if affine:
            d_scale += gradient * normalised
            d_shift += gradient
            gradient = gradient * scale[None, :]
        along = tl.sum(gradient * normalised, 1) / channels
        common = tl.sum(gradient, 1) / channels
        result = (gradient - normalised * along[:, None] - common[:, None]) * inverse[:, None]
        tl.store(d_x + places, result.to(d_x.dtype.element_ty), mask=there)
    if affine:
        place = tl.program_id(0) * channels + feature
        tl.store(sums + place, tl.sum(d_scale, 0), mask=wanted)
        behind = tl.num_programs(0) * channels
        tl.store(sums + behind + place, tl.sum(d_shift, 0), mask=wanted)


def _layer_norm(
    tokens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    spare: int,
) -> tuple[Tensor, Tensor]:
    """Normalise; also means and inverse deviations (2, R)."""
    tokens = tokens.contiguous()
    rows, channels = tokens.shape
    out = tokens.new_empty(rows + spare, channels, dtype=dtype)
    out[rows:] = 0
    statistics = tokens.new_empty(2, rows, dtype=torch.float32)
    constants = _sizes(channels)
    _layer_norm_kernel[(triton.cdiv(rows, constants["at_once"]),)](
        tokens, weight, bias, out, statistics, rows, epsilon, weight is not None, **constants
    )
    return out, statistics


def _layer_norm_shape(
    tokens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    spare: int,
) -> tuple[Tensor, Tensor]:
    return (
        tokens.new_empty(len(tokens) + spare, tokens.shape[1], dtype=dtype),
        tokens.new_empty(2, len(tokens), dtype=torch.float32),
    )


def _layer_norm_gradients(
    incoming: Tensor, tokens: Tensor, weight: Tensor | None, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens, and of scale and shift (2, C)."""
    incoming, tokens = incoming.contiguous(), tokens.contiguous()
    rows, channels = tokens.shape
    constants = _sizes(channels)
    programs = min(triton.cdiv(rows, constants["at_once"]), _PROGRAMS)
    d_tokens = torch.empty_like(tokens)
    sums = tokens.new_empty(2, programs if weight is not None else 0, channels, dtype=torch.float32)
    _layer_norm_gradient_kernel[(programs,)](
        incoming, tokens, weight, statistics, d_tokens, sums, rows, weight is not None, **constants
    )
    return d_tokens, sums.sum(1)


def _layer_norm_gradients_shape(
    incoming: Tensor, tokens: Tensor, weight: Tensor | None, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), statistics.new_empty(2, tokens.shape[1])


def _remember_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, weight, bias = inputs[:3]
    ctx.save_for_backward(tokens, weight, output[1])
    ctx.dtypes = [None if one is None else one.dtype for one in (weight, bias)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _layer_norm_backward(ctx: Any, incoming: Tensor, _: None) -> tuple[Tensor | None, ...]:
    d_tokens, sums = torch.ops.napari_s2dc.layer_norm_gradients(incoming, *ctx.saved_tensors)
    both = (
        None if dtype is None else one.to(dtype)
        for one, dtype in zip(sums.unbind(), ctx.dtypes, strict=True)
    )
    return (d_tokens, *both, None, None, None)


define(
    "layer_norm",
    _layer_norm,
    _layer_norm_shape,
    backward=_layer_norm_backward,
    remember=_remember_layer_norm,
    kernels=True,
)
define("layer_norm_gradients", _layer_norm_gradients, _layer_norm_gradients_shape, kernels=True)


# Instance norm ----------------------------------------------------------------------------------


@triton.jit
def _moments(x, sums, sample, rows, epsilon, feature, channels):
    """Mean and inverse deviation of a sample's channels from sums of differences from its row 0."""
    wanted = feature < channels
    origin = tl.load(x + sample * rows * channels + feature, mask=wanted, other=0.0).to(tl.float32)
    place = sums + sample * 2 * channels + feature
    apart = tl.load(place, mask=wanted, other=0.0) / rows
    squared = tl.load(place + channels, mask=wanted, other=0.0) / rows
    return origin + apart, tl.rsqrt(tl.maximum(squared - apart * apart, 0.0) + epsilon)


@triton.jit(do_not_specialize=("rows",))
def _sums_kernel(
    x, sums, rows,
    channels, columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(2) * columns + tl.arange(0, columns)
    wanted = feature < channels
    start = x + sample * rows * channels
    # Differences from one of the values lose little where the mean is large
    origin = tl.load(start + feature, mask=wanted, other=0.0).to(tl.float32)
    first = tl.zeros([at_once, columns], tl.float32)
    second = tl.zeros([at_once, columns], tl.float32)
    for begin in range(tl.program_id(0) * at_once, rows, tl.num_programs(0) * at_once):
        row = begin + tl.arange(0, at_once)
        there = (row < rows)[:, None] & wanted[None, :]
        places = row[:, None] * channels + feature[None, :]
        values = tl.load(start + places, mask=there, other=0.0).to(tl.float32)
        apart = tl.where(there, values - origin[None, :], 0.0)
        first += apart
        second += apart * apart
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + feature
    tl.store(sums + place, tl.sum(first, 0), mask=wanted)
    tl.store(sums + place + channels, tl.sum(second, 0), mask=wanted)


@triton.jit(do_not_specialize=("rows",))
def _rectify_kernel(
    x, residual, sums, out, rows, epsilon, slope,
    channels, with_residual: tl.constexpr, columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(2) * columns + tl.arange(0, columns)
    mean, inverse = _moments(x, sums, sample, rows, epsilon, feature, channels)
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    there = (row < rows)[:, None] & (feature < channels)[None, :]
    places = sample * rows * channels + row[:, None] * channels + feature[None, :]
    values = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
    result = (values - mean[None, :]) * inverse[None, :]
    if with_residual:
        result += tl.load(residual + places, mask=there, other=0.0).to(tl.float32)
    result = tl.where(result > 0, result, result * slope)
    tl.store(out + places, result.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=("rows",))
def _gradient_sums_kernel(
    incoming, x, out, sums, gradient_sums, rows, epsilon, slope,
    channels, columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(2) * columns + tl.arange(0, columns)
    wanted = feature < channels
    mean, inverse = _moments(x, sums, sample, rows, epsilon, feature, channels)
    common = tl.zeros([at_once, columns], tl.float32)
    along = tl.zeros([at_once, columns], tl.float32)
    for begin in range(tl.program_id(0) * at_once, rows, tl.num_programs(0) * at_once):
        row = begin + tl.arange(0, at_once)
        there = (row < rows)[:, None] & wanted[None, :]
        places = sample * rows * channels + row[:, None] * channels + feature[None, :]
        values = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
        gradient = tl.load(incoming + places, mask=there, other=0.0).to(tl.float32)
        result = tl.load(out + places, mask=there, other=0.0)
        gradient = tl.where(result > 0, gradient, gradient * slope)
        common += gradient
        along += gradient * (values - mean[None, :]) * inverse[None, :]
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + feature
    tl.store(gradient_sums + place, tl.sum(common, 0), mask=wanted)
    tl.store(gradient_sums + place + channels, tl.sum(along, 0), mask=wanted)


@triton.jit(do_not_specialize=("rows",))
def _rectify_gradient_kernel(
    incoming, x, out, sums, gradient_sums, d_x, d_residual, rows, epsilon, slope,
    channels, with_residual: tl.constexpr, columns: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(2) * columns + tl.arange(0, columns)
    wanted = feature < channels
    mean, inverse = _moments(x, sums, sample, rows, epsilon, feature, channels)
    place = gradient_sums + sample * 2 * channels + feature
    common = tl.load(place, mask=wanted, other=0.0) / rows
    along = tl.load(place + channels, mask=wanted, other=0.0) / rows
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    there = (row < rows)[:, None] & wanted[None, :]
    places = sample * rows * channels + row[:, None] * channels + feature[None, :]
    values = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
    gradient = tl.load(incoming + places, mask=there, other=0.0).to(tl.float32)
    result = tl.load(out + places, mask=there, other=0.0)
    gradient = tl.where(result > 0, gradient, gradient * slope)
    if with_residual:
        tl.store(d_residual + places, gradient.to(d_residual.dtype.element_ty), mask=there)
    normalised = (values - mean[None, :]) * inverse[None, :]
    d_values = (gradient - common[None, :] - normalised * along[None, :]) * inverse[None, :]
    tl.store(d_x + places, d_values.to(d_x.dtype.element_ty), mask=there)


def _sharing(tokens: Tensor) -> int:
    """Programs that share the sums of some channels of one sample (S, C)."""
    samples, rows, _ = tokens.shape
    return int(min(triton.cdiv(rows, _BLOCK["at_once"]), max(_PROGRAMS // samples, 32)))


def _rectify(
    tokens: Tensor, residual: Tensor | None, epsilon: float, slope: float
) -> tuple[Tensor, Tensor]:
    """Normalise and rectify; also sums (B, 2, C) of differences from row 0, and of squares."""
    tokens = tokens.contiguous()
    residual = None if residual is None else residual.contiguous()
    samples, rows, channels = tokens.shape
    blocks = triton.cdiv(channels, _BLOCK["columns"])
    sharing = _sharing(tokens)
    parts = tokens.new_empty(samples, sharing, 2, channels, dtype=torch.float32)
    _sums_kernel[(sharing, samples, blocks)](tokens, parts, rows, channels, **_BLOCK)
    sums, out = parts.sum(1), torch.empty_like(tokens)
    _rectify_kernel[(triton.cdiv(rows, _BLOCK["at_once"]), samples, blocks)](
        tokens, residual, sums, out, rows, epsilon, slope, channels, residual is not None, **_BLOCK
    )
    return out, sums


def _rectify_shape(
    tokens: Tensor, residual: Tensor | None, epsilon: float, slope: float
) -> tuple[Tensor, Tensor]:
    samples, _, channels = tokens.shape
    return (
        tokens.new_empty(tokens.shape),
        tokens.new_empty(samples, 2, channels, dtype=torch.float32),
    )


def _rectify_gradients(
    incoming: Tensor,
    tokens: Tensor,
    out: Tensor,
    sums: Tensor,
    epsilon: float,
    slope: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens and of the residual; of this nothing where there was none."""
    incoming, tokens = incoming.contiguous(), tokens.contiguous()
    samples, rows, channels = tokens.shape
    blocks = triton.cdiv(channels, _BLOCK["columns"])
    sharing = _sharing(tokens)
    parts = tokens.new_empty(samples, sharing, 2, channels, dtype=torch.float32)
    _gradient_sums_kernel[(sharing, samples, blocks)](
        incoming, tokens, out, sums, parts, rows, epsilon, slope, channels, **_BLOCK
    )
    d_tokens = torch.empty_like(tokens)
    d_residual = out.new_empty(out.shape if with_residual else 0)
    _rectify_gradient_kernel[(triton.cdiv(rows, _BLOCK["at_once"]), samples, blocks)](
        incoming, tokens, out, sums, parts.sum(1), d_tokens, d_residual, rows, epsilon, slope,
        channels, with_residual, **_BLOCK,
    )  # fmt: skip
    return d_tokens, d_residual


def _rectify_gradients_shape(
    incoming: Tensor,
    tokens: Tensor,
    out: Tensor,
    sums: Tensor,
    epsilon: float,
    slope: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), out.new_empty(out.shape if with_residual else 0)


def _remember_rectify(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.numbers = inputs[2:]
    ctx.residual = None if inputs[1] is None else inputs[1].dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _rectify_backward(ctx: Any, incoming: Tensor, _: None) -> tuple[Tensor | None, ...]:
    d_tokens, d_residual = torch.ops.napari_s2dc.normalise_and_rectify_gradients(
        incoming, *ctx.saved_tensors, *ctx.numbers, ctx.residual is not None
    )
    wanted = None if ctx.residual is None else d_residual.to(ctx.residual)
    return d_tokens, wanted, None, None


define(
    "normalise_and_rectify",
    _rectify,
    _rectify_shape,
    backward=_rectify_backward,
    remember=_remember_rectify,
    kernels=True,
)
define(
    "normalise_and_rectify_gradients", _rectify_gradients, _rectify_gradients_shape, kernels=True
)
