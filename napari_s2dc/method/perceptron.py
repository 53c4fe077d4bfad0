"""Perceptrons of Swin blocks on the CPU, some tokens at a time and with no hidden layer kept.

The hidden layer is four times as large as the tokens. As many tokens go together as keep it in
cache; the backward pass computes it again, so that of a block's second half nothing is held but its
input and its first weights, scaled.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.mlp import MLPBlock
from torch import Tensor, nn

from napari_s2dc.method.operators import define

__all__ = ["add_perceptron", "plain_layer_norm"]

_VALUES_AT_ONCE = 3 << 16
"""Input values (rows times C) computed together, where the hidden layer takes 3 MB in float32."""


def add_perceptron(norm: nn.LayerNorm, perceptron: MLPBlock, tokens: Tensor) -> Tensor:
    """Add to tokens (..., C) what a perceptron makes of them, layer-normalised.

    Equal to ``tokens + perceptron(norm(tokens))`` up to rounding, for layers with biases, GELU
    between them and no dropout. On the CPU, of one precision; under autocast the operator itself
    computes as if there were none.
    """
    first, second = perceptron.linear1, perceptron.linear2
    # Scale and shift of the norm go into the weights behind it
    weight = first.weight * norm.weight
    bias = first.bias + first.weight @ norm.bias
    added = torch.ops.napari_s2dc.add_perceptron(
        tokens.flatten(0, -2), weight, bias, second.weight, second.bias, norm.eps
    )
    return cast(Tensor, added).view(tokens.shape)


def plain_layer_norm(tokens: Tensor, epsilon: float) -> Tensor:
    """Layer norm over channels, neither scaled nor shifted.

    Without weights of 1 and 0, torch takes a path that is nearly twice as slow from 24 channels on.
    """
    channels = tokens.shape[-1:]
    one, zero = tokens.new_ones(channels), tokens.new_zeros(channels)
    return F.layer_norm(tokens, channels, one, zero, epsilon)


def _rows_at_once(tokens: Tensor) -> int:
    return max(1, _VALUES_AT_ONCE // tokens.shape[1])


def _add(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    second_weight: Tensor,
    second_bias: Tensor,
    epsilon: float,
) -> Tensor:
    """Tokens (R, C) plus the second layer of GELU of the first (H, C) of the normalised ones."""
    added = torch.empty_like(tokens)
    rows = _rows_at_once(tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        for part, out in zip(tokens.split(rows), added.split(rows), strict=True):
            hidden = torch.addmm(bias, plain_layer_norm(part, epsilon), weight.t())
            torch.addmm(second_bias, F.gelu(hidden), second_weight.t(), out=out).add_(part)
    return added


def _add_shape(tokens: Tensor, *_: object) -> Tensor:
    return torch.empty_like(tokens)


def _gradients(
    incoming: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    second_weight: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of tokens, weights and biases from the gradient of what :func:`_add` gives."""
    channels = tokens.shape[1:]
    d_tokens = torch.empty_like(tokens)
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    d_second = torch.zeros_like(second_weight)
    one, zero = tokens.new_ones(channels), tokens.new_zeros(channels)
    rows = _rows_at_once(tokens)
    parts = zip(tokens.split(rows), incoming.split(rows), d_tokens.split(rows), strict=True)
    with torch.autocast(tokens.device.type, enabled=False):
        for part, gradient, out in parts:
            normalised, mean, deviation = torch.native_layer_norm(
                part, channels, one, zero, epsilon
            )
            hidden = torch.addmm(bias, normalised, weight.t())
            d_second.addmm_(gradient.t(), F.gelu(hidden))
            d_hidden = torch.ops.aten.gelu_backward(gradient @ second_weight, hidden)
            d_weight.addmm_(d_hidden.t(), normalised)
            d_bias += d_hidden.sum(0)
            d_part, _, _ = torch.ops.aten.native_layer_norm_backward(
                d_hidden @ weight, part, channels, mean, deviation, one, zero, [True, False, False]
            )
            torch.add(d_part, gradient, out=out)
    return d_tokens, d_weight, d_bias, d_second, incoming.sum(0)


def _gradients_shape(incoming: Tensor, *given: Any) -> tuple[Tensor, ...]:
    alike = (torch.empty_like(tensor) for tensor in given[:-1])
    return (*alike, incoming.new_empty(incoming.shape[1]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.epsilon = inputs[5]


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.napari_s2dc.add_perceptron_gradients(
        incoming, *ctx.saved_tensors, ctx.epsilon
    )
    return (*gradients, None)


define("add_perceptron", _add, _add_shape, device="CPU", backward=_backward, remember=_remember)
define("add_perceptron_gradients", _gradients, _gradients_shape, device="CPU")
