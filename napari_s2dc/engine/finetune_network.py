"""Swin UNETR of a segmentation: MONAI's network, executed without waste, and made of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from napari_s2dc.method.swin import _convolution, _instance_norm, _sum

if TYPE_CHECKING:
    from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["ENCODER_PREFIX", "decoded", "logits_of", "network_of", "segment_crops"]

ENCODER_PREFIX = "swinViT."
"""What names of the encoder's tensors begin with in the network."""


def network_of(model: SegmentationModel) -> SwinUNETR:
    """Build the network that a fine-tuned model stands for.

    Parameters
    ----------
    model : SegmentationModel
        Of kind ``finetune``.

    Returns
    -------
    SwinUNETR
        MONAI's network, on the CPU, in evaluation mode.

    Raises
    ------
    ValueError
        The tensors of the model are no such decoder.
    """
    network = model.encoder.to_swin_unetr(model.outputs).cpu()
    report = network.load_state_dict(model.tensors, strict=False)
    missing = [name for name in report.missing_keys if not name.startswith(ENCODER_PREFIX)]
    if missing or report.unexpected_keys:
        raise ValueError(f"no decoder of a Swin UNETR: {missing}, {report.unexpected_keys}")
    return network.eval()


def decoded(network: SwinUNETR, images: Tensor) -> Tensor:
    """Features of every voxel that the last layer makes classes of.

    Equal to what MONAI's forward pass computes up to rounding. On a CPU a step takes a quarter less
    time, because torch leaves small convolutions to a slow path unless they are sent to oneDNN.

    Parameters
    ----------
    network : SwinUNETR
        As of :meth:`napari_s2dc.method.encoder.SwinEncoder.to_swin_unetr`.
    images : Tensor (B, 1, Z, Y, X)
        Normalised to [0, 1]; sides are multiples of 32.

    Returns
    -------
    Tensor (B, C, Z, Y, X)
        Features.
    """
    stages = network.swinViT(images, True)
    x = _basic(network.encoder10, stages[4])
    x = _up(network.decoder5, x, stages[3])
    x = _up(network.decoder4, x, _basic(network.encoder4, stages[2]))
    x = _up(network.decoder3, x, _basic(network.encoder3, stages[1]))
    x = _up(network.decoder2, x, _basic(network.encoder2, stages[0]))
    return _up(network.decoder1, x, _basic(network.encoder1, images))


def logits_of(network: SwinUNETR, features: Tensor) -> Tensor:
    """Apply the last layer to features of some voxels.

    Parameters
    ----------
    network : SwinUNETR
        As for :func:`decoded`.
    features : Tensor (..., C)
        Channels last.

    Returns
    -------
    Tensor (..., outputs)
        Logits.
    """
    last = cast(nn.Conv3d, network.out.conv.conv)
    return F.linear(features, last.weight.flatten(1), last.bias)


def segment_crops(network: SwinUNETR, images: Tensor) -> Tensor:
    """Logits (B, outputs, Z, Y, X) of images (B, 1, Z, Y, X), as ``network(images)`` gives."""
    features = decoded(network, images).permute(0, 2, 3, 4, 1)
    return logits_of(network, features).permute(0, 4, 1, 2, 3)


def _basic(block: nn.Module, x: Tensor) -> Tensor:
    return _residual(cast(UnetrBasicBlock, block).layer, x)


def _up(block: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    block = cast(UnetrUpBlock, block)
    return _residual(block.conv_block, torch.cat([block.transp_conv(x), skip], 1))


def _residual(block: UnetResBlock, x: Tensor) -> Tensor:
    residual = x
    if hasattr(block, "conv3"):
        residual = _instance_norm(_convolution(block.conv3, x))
    out = F.leaky_relu_(_instance_norm(_convolution(block.conv1, x)), 0.01)
    out = _instance_norm(_convolution(block.conv2, out))
    return F.leaky_relu_(_sum(out, residual), 0.01)
