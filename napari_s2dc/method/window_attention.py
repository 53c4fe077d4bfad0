"""Attention of Swin blocks within windows, without masks, padding or stored attention matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.method.window_attention_cpu import blockwise_attention
from napari_s2dc.method.window_plan import relative_bias, window_plan


def window_attention(
    qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool
) -> Tensor:
    """Attention within the windows of a token grid.

    Parameters
    ----------
    qkv : Tensor (B, Z, Y, X, 3 C)
        Queries, keys and values of every token; heads follow each other in C.
    qkv_bias : Tensor (3 C,)
        What a token of zeros gives; MONAI fills the last windows with such tokens.
    table : Tensor ((2 side - 1)³, heads)
        Relative position biases.
    side : int
        Side of a window in tokens.
    shifted : bool
        Move the windows by half their side.

    Returns
    -------
    Tensor (B, Z, Y, X, C)
        Values mixed by attention.

    Notes
    -----
    Equal to MONAI's ``SwinTransformerBlock`` up to rounding, with less work:

    - Where MONAI adds −100 between regions of a shifted window, the regions are boxes of their own
      here. Both agree as long as the scores of a query do not differ by about 80.
    - Tokens that only fill up a window share one key k₀ and one value. As keys they are one token
      whose bias is log Σ exp(b) over their biases, since Σ exp(q·k₀ + b) = exp(q·k₀) Σ exp(b). As
      queries they are left out.
    """
    if qkv.device.type == "cpu":
        return blockwise_attention(qkv, qkv_bias, table, side, shifted)
    return fused_attention(qkv, qkv_bias, table, side, shifted)


def fused_attention(
    qkv: Tensor, qkv_bias: Tensor, table: Tensor, side: int, shifted: bool
) -> Tensor:
    """:func:`window_attention` by ``scaled_dot_product_attention``, on any device.

    Parameters
    ----------
    qkv, qkv_bias, table, side, shifted
        As there.

    Returns
    -------
    Tensor (B, Z, Y, X, C)
        As there.
    """
    heads = table.shape[1]
    batch, depth, height, width, triple = qkv.shape
    result = qkv.new_empty(batch, depth, height, width, triple // 3)
    for group in window_plan((depth, height, width), side, shifted, qkv.device):
        parts = group.boxes(qkv).reshape(-1, group.tokens, 3, heads, triple // 3 // heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if group.padding is not None:
            filled = qkv_bias.to(qkv.dtype).view(3, 1, heads, 1, -1).expand(-1, len(key), -1, 1, -1)
            key, value = torch.cat([key, filled[1]], 2), torch.cat([value, filled[2]], 2)
        bias = relative_bias(group, table).to(qkv.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        target = group.boxes(result)
        target.copy_(mixed.transpose(1, 2).reshape(target.shape))
    return result
