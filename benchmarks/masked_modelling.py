"""Masked-image modelling with the encoder, data and steps of a finished run of ``s2dc-train``.

The rival of ``benchmarks.evidence``: blocks of the crops are hidden and MONAI's Swin UNETR fills
them in (SimMIM, Xie et al., CVPR 2022, in 3D); its encoder is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from s2dc_train.config import RunConfig, run_config
from s2dc_train.data import S2DCDataModule
from s2dc_train.module import S2DCModule
from torch import Tensor
from tqdm import tqdm

from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.tokens import split_crops

BLOCK_VOX = 8
HIDDEN_SHARE = 0.6


def hide(crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blacken random blocks.

    Parameters
    ----------
    crops : Tensor (N, 1, c, c, c)
        In [0, 1].
    generator : torch.Generator
        Draws the blocks.

    Returns
    -------
    seen, hidden : Tensor (N, 1, c, c, c)
        What is left to see, and where it is hidden, as 0 and 1.
    """
    cells = [side // BLOCK_VOX for side in crops.shape[2:]]
    chosen = torch.rand(len(crops), 1, *cells, generator=generator) < HIDDEN_SHARE
    hidden = F.interpolate(chosen.float(), size=crops.shape[2:], mode="nearest")
    return crops * (1 - hidden), hidden


def train(config: RunConfig, run: Path, steps: int) -> SwinEncoder:
    """Train and return the encoder.

    Parameters
    ----------
    config : RunConfig
        Of the finished run: its data, encoder, optimizer and schedule are used.
    run : Path
        Folder of the finished run, whose cache of scans is read.
    steps : int
        As many as the finished run took.
    """
    torch.manual_seed(config.seed)
    config.trainer.max_steps = steps
    module = S2DCModule(config)
    encoder = module.student.encoder
    network = encoder.to_swin_unetr(out_channels=1)
    # The schedule and the rule which weights decay are the trainer's own.
    module.student, module.teacher = network, torch.nn.Identity()
    plan = module.configure_optimizers()
    optimizer, schedule = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    folder = config.data.cache_dir or str(run / "cache")
    data = S2DCDataModule(replace(config.data, cache_dir=folder), seed=config.seed)
    data.setup()
    generator = torch.Generator().manual_seed(config.seed)
    progress = tqdm(islice(data.train_dataloader(), steps), total=steps, mininterval=30)
    for batch in progress:
        crops = split_crops(batch["image"][:, :1], config.data.crop_size)
        tissue = split_crops(batch["foreground"][:, None].float(), config.data.crop_size)
        seen, hidden = hide(crops, generator)
        asked = hidden * tissue
        error = (network(seen) - crops).abs()
        loss = (error * asked).sum() / asked.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.trainer.gradient_clip)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
    encoder.swin.load_state_dict(network.swinViT.state_dict())
    return encoder


def main(arguments: Sequence[str] | None = None) -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="finished run folder of s2dc-train")
    parser.add_argument("out", type=Path, help="encoder file to write")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    config = run_config(yaml.safe_load((options.run / "config.yaml").read_text()))
    finished = SwinEncoder.from_checkpoint(options.run / "encoder.safetensors").metadata
    steps = int(finished["training"]["steps"])
    encoder = train(config, options.run, steps)
    encoder.save(options.out, {**finished, "name": "masked-image modelling"})


if __name__ == "__main__":
    main()
