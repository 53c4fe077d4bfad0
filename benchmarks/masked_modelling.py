"""Masked-image modelling with the encoder, data and steps of a finished run of ``s2dc-train``.

The rival of ``benchmarks.evidence``: blocks of the crops are hidden, and one linear layer on the
encoder's tokens fills them in (SimMIM, Xie et al., CVPR 2022, in 3D). The crops are those of the
second view, so that they are turned, scaled and shaded as S²DC's.
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
from monai.networks.utils import pixelshuffle
from s2dc_train.config import RunConfig, run_config
from s2dc_train.data import S2DCDataModule
from s2dc_train.module import S2DCModule
from torch import Tensor, nn
from tqdm import tqdm

from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.method.encoder import STRIDES, SwinEncoder

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


class Filling(nn.Module):
    """Encoder and one linear layer on the tokens of its matched and its last stage.

    Parameters
    ----------
    encoder : SwinEncoder
        What is trained and kept.
    stage : int
        Stage whose tokens each fill in their own voxels.
    """

    def __init__(self, encoder: SwinEncoder, stage: int) -> None:
        super().__init__()
        self.encoder, self.stage = encoder, stage
        channels = encoder.stage_channels
        self.head = nn.Conv3d(channels[stage] + channels[-1], STRIDES[stage] ** 3, 1)

    def forward(self, crops: Tensor) -> Tensor:
        """Fill in crops (N, 1, c, c, c)."""
        stages = self.encoder(crops)
        tokens = stages[self.stage]
        last = F.interpolate(stages[-1], size=tokens.shape[2:], mode="trilinear")
        filled: Tensor = pixelshuffle(
            self.head(torch.cat([tokens, last], dim=1)), 3, STRIDES[self.stage]
        )
        return filled


def train(config: RunConfig, run: Path, steps: int) -> SwinEncoder:
    """Train and return the encoder.

    Parameters
    ----------
    config : RunConfig
        Of the finished run: its data, encoder, optimizer and schedule are used.
    run : Path
        Folder of the finished run, whose cache of scans is read.
    steps : int
        How many.
    """
    torch.manual_seed(config.seed)
    config.trainer.max_steps = steps
    config.model.initial_weights = ""
    module = S2DCModule(config)
    encoder = module.student.encoder
    network = Filling(encoder, config.model.token_stage)
    # The views, the schedule and the rule which weights decay are the trainer's own.
    module.student, module.teacher = network, nn.Identity()
    plan = module.configure_optimizers()
    optimizer, schedule = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    folder = config.data.cache_dir or str(run / "cache")
    data = S2DCDataModule(replace(config.data, cache_dir=folder), seed=config.seed)
    data.setup()
    generator = torch.Generator().manual_seed(config.seed)
    progress = tqdm(islice(data.train_dataloader(), steps), total=steps, mininterval=30)
    for batch in progress:
        crops = module.views(batch).second
        seen, hidden = hide(crops, generator)
        asked = hidden * (crops > 0)
        error = (network(seen) - crops).abs()
        loss = (error * asked).sum() / asked.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.trainer.gradient_clip)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
    return encoder


def main(arguments: Sequence[str] | None = None) -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="finished run folder of s2dc-train")
    parser.add_argument("out", type=Path, help="encoder file to write")
    parser.add_argument("--steps", type=int, help="default: those of the run alone")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    config = run_config(yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf-8")))
    finished = SwinEncoder.from_checkpoint(options.run / "encoder.safetensors").metadata
    steps = options.steps or int(finished["training"]["steps"])
    encoder = train(config, options.run, steps)
    facts = {**finished, "name": "masked-image modelling", "training": {"steps": steps}}
    encoder.save(options.out, facts)


if __name__ == "__main__":
    main()
