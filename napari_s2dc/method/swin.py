"""MONAI's ``SwinTransformer`` with the same weights and results, executed without waste."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_s2dc.method.borders import tissue_borders
from napari_s2dc.method.kernels import have_kernels, layer_norm, load_kernels, tiled_attention
from napari_s2dc.method.perceptron import add_perceptron, plain_layer_norm
from napari_s2dc.method.residual import add, residual_block
from napari_s2dc.method.window_attention import window_attention

_EPSILON = 1e-5
"""Of the norm of a stage's features, as MONAI has it."""

_FULL_LINE = 16
"""Channels in float32 that fill a cache line."""


class FastSwinTransformer(SwinTransformer):
    """Swin transformer for scans; parameters and names are those of MONAI's class.

    Tokens stay (B, Z, Y, X, C) in memory from the first layer to the last. For three dimensions,
    cubic windows, no dropout, biases of queries, keys and values, and patches merged as by MONAI's
    ``PatchMerging``.

    Attributes
    ----------
    borders : bool
        Look at the borders of tissues in place of intensities.
    """

    borders = False

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # What moves a network to another device leads through here, before a compiler sees it
        moved = super()._apply(fn, recurse)
        load_kernels(next(self.parameters()).device)
        return moved

    def forward(self, x: Tensor, normalize: bool = True) -> list[Tensor]:
        """Features of all five stages.

        Parameters
        ----------
        x : Tensor (B, C, Z, Y, X)
            Image.
        normalize : bool
            Layer-normalise every stage over its channels.

        Returns
        -------
        list of Tensor
            Stage s: (B, embed_dim * 2**s, Z / 2**(s+1), Y / 2**(s+1), X / 2**(s+1)), channels last
            in memory.
        """
        return [_output(tokens, normalize) for tokens in self._stages(x, 4)]

    def stages(self, x: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Layer-normalised features of some stages; layers behind the last are not computed.

        Parameters
        ----------
        x : Tensor (B, C, Z, Y, X)
            Image.
        numbers : sequence of int
            Stages, 0 to 4.

        Returns
        -------
        list of Tensor
            As those of :meth:`forward`.
        """
        found = {
            number: _output(tokens, normalize=True)
            for number, tokens in enumerate(self._stages(x, max(numbers)))
            if number in numbers
        }
        return [found[number] for number in numbers]

    def _stages(self, x: Tensor, last: int) -> Iterator[Tensor]:
        """Tokens (B, Z, Y, X, C) of stages 0 to `last`."""
        tokens = _channels_last(self.patch_embed(tissue_borders(x) if self.borders else x))
        yield tokens
        layers = (self.layers1, self.layers2, self.layers3, self.layers4)
        for number in range(last):
            if self.use_v2:
                convolutions = (self.layers1c, self.layers2c, self.layers3c, self.layers4c)
                tokens = _residual_block(
                    cast(UnetrBasicBlock, convolutions[number][0]).layer, tokens
                )
            tokens = _layer(cast(BasicLayer, layers[number][0]), tokens)
            yield tokens


def _channels_last(x: Tensor) -> Tensor:
    """Tokens (B, Z, Y, X, C), contiguous, of features (B, C, Z, Y, X)."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def _channels_first(tokens: Tensor) -> Tensor:
    """Features (B, C, Z, Y, X) of tokens (B, Z, Y, X, C), in the same memory."""
    return tokens.permute(0, 4, 1, 2, 3)


def _output(tokens: Tensor, normalize: bool) -> Tensor:
    if not normalize:
        return _channels_first(tokens)
    # Of this precision under autocast, as MONAI's
    dtype = torch.float32 if torch.is_autocast_enabled("cuda") else tokens.dtype
    return _channels_first(_plain(tokens, _EPSILON, dtype))


def _residual_block(block: UnetResBlock, tokens: Tensor) -> Tensor:
    return _channels_last(residual_block(block, _channels_first(tokens)))


def _layer(layer: BasicLayer, tokens: Tensor) -> Tensor:
    for number, block in enumerate(layer.blocks):
        tokens = _block(cast(SwinTransformerBlock, block), tokens, shifted=number % 2 == 1)
    return _merge(cast(PatchMerging, layer.downsample), tokens)


def _block(block: SwinTransformerBlock, tokens: Tensor, shifted: bool) -> Tensor:
    def attend(tokens: Tensor) -> Tensor:
        attention = block.attn
        if have_kernels(tokens, tokens.shape[-1] // attention.num_heads):
            return add(_attend_by_kernels(block.norm1, attention, tokens, shifted), tokens)
        mixed = window_attention(
            _normalised(block.norm1, tokens),
            attention.qkv,
            attention.proj,
            attention.relative_position_bias_table,
            attention.window_size[0],
            shifted,
        )
        return add(mixed, tokens)

    tokens = _maybe_again(attend, tokens, block.use_checkpoint)
    # Under autocast, products have another precision than what lies between them
    if tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return add_perceptron(block.norm2, block.mlp, tokens)

    def transform(tokens: Tensor) -> Tensor:
        return add(block.mlp(_normalised(block.norm2, tokens)), tokens)

    return _maybe_again(transform, tokens, block.use_checkpoint)


def _attend_by_kernels(
    norm: nn.LayerNorm, attention: WindowAttention, tokens: Tensor, shifted: bool
) -> Tensor:
    """Attention within windows, as by :func:`window_attention` of the normalised tokens."""
    # MONAI fills windows up with tokens that are 0 after the norm: one more row
    rows = layer_norm(
        tokens.flatten(0, 3), norm.weight, norm.bias, norm.eps, _of_products(tokens), spare=1
    )
    mixed = tiled_attention(
        attention.qkv(rows),
        attention.relative_position_bias_table,
        list(tokens.shape[:4]),
        attention.window_size[0],
        shifted,
    )
    return cast(Tensor, attention.proj(mixed).view(tokens.shape))


def _normalised(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Layer norm over channels.

    On the CPU, scale and shift of few channels are an operation of their own where their gradients
    are wanted: torch's threads add those up in one cache line, which takes up to five times as long
    as all else that the norm's gradient needs.
    """
    if have_kernels(tokens):
        rows = tokens.flatten(0, -2)
        dtype = _of_products(tokens)
        return layer_norm(rows, norm.weight, norm.bias, norm.eps, dtype).view(tokens.shape)
    few = tokens.device.type == "cpu" and len(norm.weight) < _FULL_LINE
    if few and torch.is_grad_enabled():
        return torch.addcmul(norm.bias, plain_layer_norm(tokens, norm.eps), norm.weight)
    return cast(Tensor, norm(tokens))


def _plain(tokens: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Layer norm over channels, neither scaled nor shifted; of some precision by our kernels."""
    if have_kernels(tokens):
        return layer_norm(tokens.flatten(0, -2), None, None, epsilon, dtype).view(tokens.shape)
    return plain_layer_norm(tokens, epsilon)


def _of_products(tokens: Tensor) -> torch.dtype:
    """Precision of products with weights, so that what goes into them need not be copied."""
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return tokens.dtype


def _maybe_again(part: Callable[[Tensor], Tensor], tokens: Tensor, again: bool) -> Tensor:
    """Run a part, and once more in the backward pass if asked, instead of keeping its values."""
    if again and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(part, tokens, use_reentrant=False))
    return part(tokens)


def _merge(merging: PatchMerging, tokens: Tensor) -> Tensor:
    _, depth, height, width, _ = tokens.shape
    if depth % 2 or height % 2 or width % 2:
        tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
    # Eight neighbours behind each other, (B, Z / 2, Y / 2, X / 2, 8 C), x before y before z
    halves = tokens.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    corners = halves.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)
    # Weights are brought into that order, which is less work than to bring tokens into MONAI's
    # Scale and shift of the norm go into the weights behind it
    norm, weight = merging.norm, merging.reduction.weight
    scaled, bias = _by_corner(weight * norm.weight), (weight * norm.bias).sum(1)
    return F.linear(_plain(corners, norm.eps, _of_products(corners)), scaled, bias)


def _by_corner(weights: Tensor) -> Tensor:
    """Weights (..., 8 C) for corners that follow each other by x, then y, then z."""
    corners = weights.chunk(8, -1)
    return torch.cat([corners[number] for number in _MONAIS_CORNERS], -1)


# Where MONAI's merging has the corners (z, y, x) = 000, 001, 010, 011, 100, 101, 110, 111: it takes
# them as 000, 100, 010, 001, 110, 101, 011, 111
_MONAIS_CORNERS = [0, 3, 2, 6, 1, 5, 4, 7]
