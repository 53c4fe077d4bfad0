"""What both sides of the step benchmark work on: the same scan, settings and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from s2dc_train.cached_scan import STEPS, CachedScan
from s2dc_train.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainerConfig,
    ViewConfig,
)
from s2dc_train.sources import ScanEntry
from s2dc_train.subvolumes import SubVolumeDataset
from torch import Tensor
from torch.utils.data import default_collate

from napari_s2dc.method.encoder import STRIDES
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.preprocess import foreground_mask, normalize

MARGIN_VOX = 16
"""The scan is larger than a sub-volume by this much on each side, so that places differ."""


@dataclass(frozen=True)
class Sizes:
    """How large a step is; both sides get the same.

    Parameters
    ----------
    size : str
        Encoder size.
    window : int
        Side of an attention window in tokens.
    crop : int
        Side of a crop in voxels.
    grid : sequence of 3 ints
        Crops along (z, y, x).
    batch : int
        Sub-volumes per step.
    token_stage : int
        Encoder stage whose tokens are matched.
    head : tuple of 2 ints
        Hidden and output width of both projection heads.
    """

    size: Literal["tiny", "small", "base"] = "tiny"
    window: int = 6
    crop: int = 48
    grid: Sequence[int] = (1, 2, 2)
    batch: int = 1
    token_stage: int = 2
    head: Sequence[int] = (512, 256)

    def config(self) -> RunConfig:
        """Return the settings of a run of this size; all else as the trainer has it.

        Every token takes part (``minimum_foreground`` is 0), because the released step has no mask.
        """
        hidden, output = self.head
        return RunConfig(
            data=DataConfig(crop_size=self.crop, grid=list(self.grid), batch_size=self.batch),
            model=ModelConfig(
                size=self.size,
                window_size=self.window,
                token_stage=self.token_stage,
                head_hidden=hidden,
                head_output=output,
            ),
            views=ViewConfig(minimum_foreground=0.0),
            loss=LossConfig(),
            optimizer=OptimizerConfig(),
            trainer=TrainerConfig(),
        )

    def __str__(self) -> str:
        tokens_per_side = self.crop // STRIDES[self.token_stage]
        z, y, x = self.grid
        per_problem = tokens_per_side**2 * y * x
        problem_count = self.batch * z * tokens_per_side
        return (
            f"encoder {self.size}, window {self.window}, {self.batch} × {z}×{y}×{x} crops of "
            f"{self.crop}³ voxels, {problem_count} matching problems of {per_problem} tokens "
            f"(stage {self.token_stage}), heads {self.head[0]} and {self.head[1]} wide"
        )


class Samples:
    """Sub-volumes of one phantom, read as the trainer reads them.

    Parameters
    ----------
    sizes : Sizes
        Size of a step.
    folder : Path
        Empty folder for the preprocessed scan.
    device : torch.device
        Where batches go.
    """

    def __init__(self, sizes: Sizes, folder: Path, device: torch.device) -> None:
        z, y, x = (count * sizes.crop for count in sizes.grid)
        shape = (z + 2 * MARGIN_VOX, y + 2 * MARGIN_VOX, x + 2 * MARGIN_VOX)
        image = normalize(phantom(shape)[0].array, "ct_soft_tissue")
        np.save(folder / "image.npy", np.round(image * STEPS).astype(np.uint16))
        np.save(folder / "foreground.npy", foreground_mask(image))
        scan = CachedScan(
            entry=ScanEntry(image=folder / "image.npy"),
            folder=folder,
            shape=shape,
            spacing_mm=(3.0, 3.0, 3.0),
            preset="ct_soft_tissue",
            intensity=(0.0, 1.0),
            foreground_box=((0, 0, 0), shape),
            has_labels=False,
            label_problem="",
        )
        self.dataset = SubVolumeDataset([scan], (z, y, x))
        self.batch = sizes.batch
        self.device = device

    def read(self, repetition: int) -> dict[str, Tensor]:
        """Batch number `repetition`, on the device."""
        first = repetition * self.batch
        items = [self.dataset[first + offset] for offset in range(self.batch)]
        return {key: value.to(self.device) for key, value in default_collate(items).items()}


def autocast(device: torch.device) -> torch.autocast:
    """Set the precision of both networks: bf16 on a GPU that has it, else 32 bit."""
    usable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=usable)
