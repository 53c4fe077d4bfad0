"""MONAI's ``SwinTransformer`` with the same weights and results, executed without waste."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_s2dc.method.residual import add, residual_block
from napari_s2dc.method.window_attention import window_attention


class FastSwinTransformer(SwinTransformer):
    """Swin transformer for scans; parameters and names are those of MONAI's class.

    Tokens stay (B, Z, Y, X, C) in memory from the first layer to the last. For three dimensions,
    cubic windows, no dropout, and patches merged as by MONAI's ``PatchMerging``.
    """

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

    def stage(self, x: Tensor, number: int) -> Tensor:
        """Layer-normalised features of one stage; later layers are not computed.

        Parameters
        ----------
        x : Tensor (B, C, Z, Y, X)
            Image.
        number : int
            Stage, 0 to 4.

        Returns
        -------
        Tensor
            As one of :meth:`forward`.
        """
        *_, tokens = self._stages(x, number)
        return _output(tokens, normalize=True)

    def _stages(self, x: Tensor, last: int) -> Iterator[Tensor]:
        """Tokens (B, Z, Y, X, C) of stages 0 to `last`."""
        tokens = _channels_last(self.patch_embed(x))
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
    return _channels_first(F.layer_norm(tokens, tokens.shape[-1:]) if normalize else tokens)


def _residual_block(block: UnetResBlock, tokens: Tensor) -> Tensor:
    return _channels_last(residual_block(block, _channels_first(tokens)))


def _layer(layer: BasicLayer, tokens: Tensor) -> Tensor:
    for number, block in enumerate(layer.blocks):
        tokens = _block(cast(SwinTransformerBlock, block), tokens, shifted=number % 2 == 1)
    return _merge(cast(PatchMerging, layer.downsample), tokens)


def _block(block: SwinTransformerBlock, tokens: Tensor, shifted: bool) -> Tensor:
    def attend(tokens: Tensor) -> Tensor:
        attention = block.attn
        mixed = window_attention(
            _layer_norm(block.norm1, tokens),
            attention.qkv,
            attention.proj,
            attention.relative_position_bias_table,
            attention.window_size[0],
            shifted,
        )
        return add(mixed, tokens)

    def transform(tokens: Tensor) -> Tensor:
        return add(block.mlp(_layer_norm(block.norm2, tokens)), tokens)

    for part in (attend, transform):
        tokens = _maybe_again(part, tokens, block.use_checkpoint)
    return tokens


def _layer_norm(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Apply a layer norm.

    Its scale and shift are an operation of their own where their gradients are wanted: on the CPU,
    torch's threads add those of few channels up in one cache line, which takes up to five times as
    long as all else that the norm's gradient needs.
    """
    if not torch.is_grad_enabled():
        return cast(Tensor, norm(tokens))
    one, zero = torch.ones_like(norm.weight), torch.zeros_like(norm.bias)
    plain = F.layer_norm(tokens, norm.normalized_shape, one, zero, norm.eps)
    return torch.addcmul(norm.bias, plain, norm.weight)


def _maybe_again(part: Callable[[Tensor], Tensor], tokens: Tensor, again: bool) -> Tensor:
    """Run a part, and once more in the backward pass if asked, instead of keeping its values."""
    if again and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(part, tokens, use_reentrant=False))
    return part(tokens)


def _merge(merging: PatchMerging, tokens: Tensor) -> Tensor:
    _, depth, height, width, _ = tokens.shape
    if depth % 2 or height % 2 or width % 2:
        tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
    return cast(Tensor, merging.reduction(_layer_norm(merging.norm, _corners(tokens))))


def _corners(tokens: Tensor) -> Tensor:
    """Eight neighbours behind each other, (B, Z / 2, Y / 2, X / 2, 8 C), in MONAI's order."""
    order = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
    return torch.cat([tokens[:, z::2, y::2, x::2] for z, y, x in order], -1)
