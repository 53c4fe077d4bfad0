"""What a fine-tuning begins with: settings that can be used, network, optimiser, crops at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from napari_s2dc.engine.fewshot_settings import FinetuneSettings
from napari_s2dc.engine.finetune_network import ENCODER_PREFIX, SegmentationNetwork
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SwinEncoder

__all__ = [
    "BYTES_PER_VOXEL_AND_FEATURE",
    "check_settings",
    "crops_together",
    "make_optimizer",
    "new_network",
]

BYTES_PER_VOXEL_AND_FEATURE = 170.0
"""Memory of a step for a voxel of a crop, over the feature size of the encoder. Measured: 120 to
168 for crops of 64 and 96 voxels at feature sizes 12 and 24."""

_CPU_GB = 4.0
_WEIGHT_DECAY = 1e-2
_BETAS = (0.9, 0.99)  # the second one is short, because there are only hundreds of steps


def check_settings(settings: FinetuneSettings) -> None:
    """Refuse settings that nothing can be trained with, by ConfigurationError."""
    least = {"steps": 1, "crop_vox": 32, "crops_per_step": 1, "voxels_per_crop": 1}
    least |= {"held_out_every": 1, "carried_scans": 1}
    for name, lowest in least.items():
        if getattr(settings, name) < lowest:
            raise ConfigurationError(
                f"finetune.{name} is {getattr(settings, name)}, but must be at least {lowest}."
            )
    highest = {"learning_rate": 1.0, "encoder_rate": 1.0, "layer_decay": 1.0, "averaging": 0.9999}
    highest |= {"frozen_share": 1.0, "augmentation": 3.0, "carried_share": 1.0}
    for name, most in highest.items():
        if not 0 <= getattr(settings, name) <= most:
            raise ConfigurationError(
                f"finetune.{name} is {getattr(settings, name):g}, but must be from 0 to {most:g}."
            )


def new_network(encoder: SwinEncoder, voxels: np.ndarray, seed: int) -> SegmentationNetwork:
    """Network with the encoder; its last layer begins with how frequent the outputs are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SegmentationNetwork(encoder, len(voxels)).cpu()
    frequency = np.maximum(voxels, 0.5) / max(1, voxels.sum())
    bias = network.last.bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(torch.from_numpy(np.log(frequency)))
    return network.train()


def make_optimizer(
    network: SegmentationNetwork, encoder: SwinEncoder, settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for every layer of a pretrained encoder."""
    by_share: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        of_encoder, share = name.startswith(ENCODER_PREFIX), 1.0
        if of_encoder and encoder.metadata:
            share = settings.encoder_rate * settings.layer_decay ** (4 - _layer_of(name))
        by_share.setdefault((of_encoder, share), []).append(parameter)
    groups = [
        {"params": parameters, "share": share, "of_encoder": of_encoder}
        for (of_encoder, share), parameters in by_share.items()
    ]
    rate = settings.learning_rate
    return torch.optim.AdamW(groups, lr=rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)


def _layer_of(name: str) -> int:
    """Layer, 1 to 4, of a parameter of the encoder; 0 for the embedding of patches."""
    part = name.removeprefix(ENCODER_PREFIX)
    return int(part.removeprefix("layers")[0]) if part.startswith("layers") else 0


def crops_together(
    network: SegmentationNetwork,
    shape: tuple[int, int, int],
    settings: FinetuneSettings,
    device: torch.device,
) -> int:
    """Count the crops that fit into the memory budget at once, at least one."""
    crop_gb = math.prod(shape) * network.last.in_channels * BYTES_PER_VOXEL_AND_FEATURE / 1e9
    budget_gb = settings.memory_gb
    if not budget_gb:
        on_gpu = device.type == "cuda"
        budget_gb = torch.cuda.mem_get_info(device)[0] / 2e9 if on_gpu else _CPU_GB
    if crop_gb > budget_gb and settings.memory_gb:
        raise S2DCError(
            f"A crop of {' x '.join(map(str, shape))} voxels takes about {crop_gb:.1f} GB, but "
            f"--finetune.memory_gb is {budget_gb:g}.",
            "Lower --finetune.crop_vox, or allow more memory.",
        )
    return max(1, int(budget_gb / crop_gb))
