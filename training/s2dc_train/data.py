"""From the data settings to batches for training and whole scans for evaluation."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from napari_s2dc.errors import ConfigurationError
from s2dc_train.cache import ScanCache, build_cache
from s2dc_train.cached_scan import CachedScan
from s2dc_train.config import DataConfig
from s2dc_train.data_settings import check_settings, subvolume_size
from s2dc_train.interruption import SIGNALS
from s2dc_train.preflight import PreflightReport, nothing_left, preflight
from s2dc_train.sources import ScanEntry, find_scans
from s2dc_train.subvolumes import CounterSampler, SubVolumeDataset
from s2dc_train.synthetic import Synthesis

# Shown by the command line, and by its first process only.
_log = logging.getLogger("s2dc_train")

__all__ = ["CounterSampler", "FullVolume", "S2DCDataModule", "SubVolumeDataset"]


@dataclass(frozen=True)
class FullVolume:
    """A whole preprocessed scan for evaluation.

    Parameters
    ----------
    name : str
        File name of the scan.
    image : torch.Tensor
        (Z, Y, X) float32 in [0, 1].
    labels : torch.Tensor or None
        (Z, Y, X) int32, 0 = background, where the scan has a label map.
    spacing_mm : tuple of float
        Spacing (z, y, x).
    """

    name: str
    image: torch.Tensor
    labels: torch.Tensor | None
    spacing_mm: tuple[float, float, float]


def _leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker live until the parent has finished its step, whoever gets the signal."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _subject(scan: CachedScan) -> str:
    """Subject of a scan as BIDS names it, such as ``sub-01``; empty without one."""
    found = re.findall(r"(?:^|[/_])(sub-[A-Za-z0-9]+)", scan.entry.image.as_posix())
    return found[-1] if found else ""


class S2DCDataModule(LightningDataModule):
    """From the data settings to batches, and to whole volumes for evaluation.

    Parameters
    ----------
    config : DataConfig
        Data settings.
    seed : int
        Seed of order and places.
    run_dir : pathlib.Path, optional
        Holds the cache when ``config.cache_dir`` is empty.

    Attributes
    ----------
    start_sample : int
        Global number of the first training sample; set it before fitting to resume.
    preflight_report : PreflightReport
        Filled by :meth:`setup`, as are all the following.
    skipped : list of tuple
        (path, reason) of scans that are not used.
    train_entries, validation_entries : list of ScanEntry
        The split: the last scans in the order of their paths are held out, the last ones with
        label maps where there are enough.
    train_scans, validation_scans : list of CachedScan
        The same scans in the cache.
    notes : list of str
        Sentences on the split that a user should read.
    """

    def __init__(self, config: DataConfig, *, seed: int = 0, run_dir: Path | None = None) -> None:
        super().__init__()
        check_settings(config)
        if not config.cache_dir and run_dir is None:
            raise ConfigurationError("No cache folder is named.", "Set --data.cache_dir.")
        self.config = config
        self.seed = seed
        folder = Path(config.cache_dir).expanduser() if config.cache_dir else None
        # Absolute, as the scans are: threads write there.
        self.cache_folder = (folder or Path(run_dir or "", "cache")).absolute()
        self.start_sample = 0
        self._start_step = 0
        self._prepared: tuple[PreflightReport, list[CachedScan]] | None = None
        self.preflight_report: PreflightReport | None = None
        self.skipped: list[tuple[Path, str]] = []
        self.train_scans: list[CachedScan] = []
        self.validation_scans: list[CachedScan] = []
        self.notes: list[str] = []

    @property
    def train_entries(self) -> list[ScanEntry]:
        """Scans trained on."""
        return [scan.entry for scan in self.train_scans]

    @property
    def validation_entries(self) -> list[ScanEntry]:
        """Scans held out."""
        return [scan.entry for scan in self.validation_scans]

    def prepare_data(self) -> None:
        """Check and preprocess every scan; under Lightning one process of each node does it.

        Raises
        ------
        S2DCError
            No scan can be used, or the cache cannot be written.
        """
        if self._prepared is not None:
            return
        report = preflight(find_scans(self.config), self.config)
        _log.info(f"Scans found:\n{report}")
        cached, failed = build_cache(report, self.cache_folder, self.config)
        if not cached:
            raise nothing_left([*report.skipped, *failed])
        self._prepared = report.with_cached(cached, failed), cached
        for path, why in [*failed, *self._prepared[0].label_problems]:
            _log.info(f"Not used: {path}: {why}")

    def setup(self, stage: str | None = None) -> None:
        """Split the scans; every rank follows the list of rank 0, so that all agree."""
        if self.train_scans:
            return
        world_size = self.trainer.world_size if self.trainer else 1
        if self._prepared is None and (world_size == 1 or self._rank == 0):
            self.prepare_data()
        if world_size > 1 and self.trainer:
            self._prepared = self.trainer.strategy.broadcast(self._prepared, src=0)
        assert self._prepared is not None
        self.preflight_report, scans = self._prepared
        if self._rank != 0:
            # Without a shared disk each node has its own cache, and its own modification times.
            cache = ScanCache(self.cache_folder, self.config)
            scans = [cache.get(scan.entry) for scan in scans]
        self.skipped = list(self.preflight_report.skipped)
        self._split(scans)
        for note in self.notes:
            _log.info(note)

    def _split(self, scans: list[CachedScan]) -> None:
        wanted = self.config.validation_volumes
        held_out = min(wanted, len(scans) // 2)
        # Structures can be probed only where label maps are on both sides of the split.
        labelled = [scan for scan in scans if scan.has_labels]
        chosen = (labelled if len(labelled) > held_out else scans)[-held_out:] if held_out else []
        self.train_scans = [scan for scan in scans if scan not in chosen]
        self.validation_scans = chosen or scans
        self._part_subjects()
        if not held_out:
            self.notes.append(
                "There is only one usable scan: figures are measured on the scan that is trained "
                "on, so they do not show what is learned for other scans."
            )
        elif held_out < wanted:
            self.notes.append(
                f"Only {held_out} of the {len(scans)} usable scans "
                f"{'is' if held_out == 1 else 'are'} held out instead of {wanted}, "
                "so that at least half remain to train on."
            )

    def _part_subjects(self) -> None:
        """Leave scans out of training whose subject (in BIDS names) is held out."""
        held_out = {_subject(scan) for scan in self.validation_scans} - {""}
        strangers = [scan for scan in self.train_scans if _subject(scan) not in held_out]
        if not strangers and held_out and self.train_scans != self.validation_scans:
            self.notes.append(
                "Every scan is of a held-out subject: figures are measured on people that are "
                "trained on, so they do not show what is learned for others."
            )
        elif len(strangers) < len(self.train_scans):
            self.notes.append(
                f"{len(self.train_scans) - len(strangers)} more scans of the held-out subjects are "
                "not trained on."
            )
            self.train_scans = strangers

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def train_dataset(self) -> SubVolumeDataset:
        """Random sub-volumes of the training scans."""
        return SubVolumeDataset(
            self.train_scans,
            subvolume_size(self.config),
            seed=self.seed,
            foreground_fraction=self.config.foreground_fraction,
            synthesis=Synthesis(self.config.synthetic_share, self.config.cross_contrast, self.seed),
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless batches of this rank, beginning at ``start_sample``."""
        workers = self.config.workers
        on_gpu = (
            self.trainer.strategy.root_device.type == "cuda"
            if self.trainer
            else torch.cuda.is_available()
        )
        return DataLoader(
            self.train_dataset,
            batch_size=self.config.batch_size,
            sampler=CounterSampler(
                self.start_sample,
                rank=self._rank,
                world_size=self.trainer.world_size if self.trainer else 1,
                batch_size=self.config.batch_size,
            ),
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def validation_items(self) -> Iterator[dict[str, Any]]:
        """One fixed sub-volume of each held-out scan, as :class:`SubVolumeDataset` returns them."""
        dataset = SubVolumeDataset(self.validation_scans, subvolume_size(self.config))
        for volume in range(len(self.validation_scans)):
            yield dataset.centred(volume)

    def labelled_volumes(self, *, held_out: bool) -> Iterator[FullVolume]:
        """Held-out or training scans that have label maps, each opened when its turn comes."""
        for scan in self.validation_scans if held_out else self.train_scans:
            if scan.has_labels:
                yield self._full(scan)

    def _full(self, scan: CachedScan) -> FullVolume:
        cut = scan.open().cut((0, 0, 0), scan.shape)
        return FullVolume(
            name=scan.entry.image.name,
            image=torch.from_numpy(cut["image"]),
            labels=torch.from_numpy(cut["labels"]) if "labels" in cut else None,
            spacing_mm=scan.spacing_mm,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next sample that no step has used; prefetched ones count not."""
        trainer = self.trainer
        used = 0
        if trainer:
            steps = trainer.global_step - self._start_step
            per_step = trainer.world_size * trainer.accumulate_grad_batches
            used = steps * per_step * self.config.batch_size
        return {
            "next_sample": self.start_sample + used,
            "step": trainer.global_step if trainer else 0,
            "seed": self.seed,
            "scans": [entry.image.name for entry in self.train_entries],
            "made-up anatomies": self._synthetic,
        }

    @property
    def _synthetic(self) -> list[float]:
        """Made-up anatomies: share, and whether each view has a contrast of its own."""
        share = self.config.synthetic_share
        return [share, float(bool(share) and self.config.cross_contrast)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint left the data; say so when the data are not the same."""
        self.start_sample = int(state_dict["next_sample"])
        self._start_step = int(state_dict["step"])
        now = {
            "seed": self.seed,
            "scans": [entry.image.name for entry in self.train_entries],
            "made-up anatomies": self._synthetic,
        }
        # Older checkpoints knew scans alone.
        before = {"made-up anatomies": [0.0, 0.0], **state_dict}
        for name, value in now.items():
            if before[name] != value:
                note = f"Other {name} than before the resume, so other samples follow."
                self.notes.append(note)
                _log.info(note)
