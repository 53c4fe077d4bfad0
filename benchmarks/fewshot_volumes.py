"""Few labelled volumes: every way on the same splits, judged on scans that nothing was told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from benchmarks.fewshot_forest import VOXELS
from benchmarks.fewshot_runs import Memo, Result, Run, results_of
from benchmarks.fewshot_splits import MOUSE, SEEDS, LabelledSet, names_in, require_unseen, split_of
from benchmarks.fewshot_ways import (
    CARRIED,
    CARRIED_TO_SCRATCH,
    NETWORKS,
    WAYS,
    Case,
    LabelledScan,
)
from benchmarks.report import table
from napari_s2dc.engine.encoders import weights_hash
from napari_s2dc.engine.evaluate import evaluate_labels
from napari_s2dc.engine.fewshot_settings import FinetuneSettings
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume

_MEMO = Memo()


@lru_cache(maxsize=128)
def read_scan(folder: Path, name: str) -> LabelledScan:
    """Read a scan of a decathlon folder with its labels."""
    return LabelledScan(
        read_volume(folder / "imagesTr" / name),
        read_volume(folder / "labelsTr" / name, labels=True),
    )


@dataclass(frozen=True)
class VolumesWork:
    """Learn from the labelled scans of a split and segment its tests.

    Parameters
    ----------
    folder : Path
        Decathlon folder.
    data : LabelledSet
        How it is split.
    encoder, network_encoder : Path
        Pretrained on all but the tests, without labels; the second one is for Swin UNETR.
    """

    folder: Path
    data: LabelledSet
    encoder: Path
    network_encoder: Path

    def __call__(self, run: Run) -> Result:
        """Do a run in this process."""
        split = split_of(names_in(self.folder), self.data, run.seed)
        labelled = split.labelled[: run.shots]
        scans = [read_scan(self.folder, name) for name in labelled]
        others = [
            self.folder / "imagesTr" / name
            for name in names_in(self.folder)
            if name not in labelled and name not in split.tests
        ]
        begun = _MEMO.now()
        encoder = self.network_encoder if run.way in NETWORKS else self.encoder
        case = Case(scans, encoder, run.seed, self.data.network_spacing_mm, others)
        segment = WAYS[run.way](case, _MEMO)
        training = _MEMO.now() - begun
        dice, distance, seconds = [], [], []
        for name in split.tests:
            test = read_scan(self.folder, name)
            begun = _MEMO.now()
            found = segment(test.image)
            seconds.append(_MEMO.now() - begun)
            kind = test.labels.array.dtype
            score = evaluate_labels(test.labels.with_array(found.astype(kind)), test.labels)
            dice.append(score.mean_dice)
            distance.append(score.mean_hd95_mm)
        return Result(dice, distance, training, float(np.mean(seconds)))


def by_shots(
    results: dict[Run, Result], way: str, shots: int
) -> tuple[list[float], list[float], list[Result]]:
    """Mean Dice and HD95 over the tests of every seed, and the results themselves."""
    chosen = [
        result
        for run, result in sorted(results.items(), key=lambda item: item[0].seed)
        if (run.way, run.shots) == (way, shots)
    ]
    distances = [float(np.nanmean(result.hd95_mm)) for result in chosen]
    return [mean(result.dice) for result in chosen], distances, chosen


def result_table(results: dict[Run, Result], ways: Sequence[str], shots: Sequence[int]) -> str:
    """Tabulate Dice, distance and seconds; a row for every way."""
    header = ["way", *(f"Dice, {number} labelled" for number in shots)]
    header += [f"HD95 with {number}, mm" for number in shots]
    header += [f"training with {', '.join(map(str, shots))}, s", "a test scan, s"]
    rows = []
    for way in ways:
        figures = [by_shots(results, way, number) for number in shots]
        if not any(chosen for _, _, chosen in figures):
            continue
        trained = [
            f"{mean(one.training_seconds for one in chosen):.0f}" if chosen else "–"
            for _, _, chosen in figures
        ]
        tested = mean(one.test_seconds for _, _, chosen in figures for one in chosen)
        row = [way, *(spread_over_seeds(dice) for dice, _, _ in figures)]
        row += [f"{mean(distance):.2f}" if distance else "–" for _, distance, _ in figures]
        row += [", ".join(trained), f"{tested:.1f}"]
        rows.append(row)
    return table(header, rows)


def spread_over_seeds(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds; how many there are where some are missing."""
    if not values:
        return "–"
    if len(values) == len(SEEDS):
        return f"{mean(values):.3f} ± {stdev(values):.3f}"
    return f"{mean(values):.3f} ({len(values)} seeds)"


def volumes_section(
    folder: Path,
    data: LabelledSet,
    encoder: Path,
    *,
    network_encoder: Path,
    ways: Sequence[str],
    runs: Path,
    jobs: int,
) -> str:
    """Run every way with every number of labelled scans and seed; describe and tabulate.

    Parameters
    ----------
    folder : Path
        Decathlon folder.
    data : LabelledSet
        How it is split.
    encoder, network_encoder : Path
        Pretrained on all but the tests; the second one is for Swin UNETR.
    ways : sequence of str
        Keys of ``WAYS``.
    runs : Path
        Folder of what is finished.
    jobs : int
        Processes, each with one thread.
    """
    names = names_in(folder)
    work = VolumesWork(folder, data, encoder, network_encoder)
    results: dict[Run, Result] = {}
    for path, learners in (
        (encoder, [way for way in ways if way not in NETWORKS]),
        (network_encoder, [way for way in ways if way in NETWORKS]),
    ):
        trained = SwinEncoder.from_checkpoint(path)
        require_unseen(trained.metadata, names, data)
        wanted = [
            Run(data.name, way, number, seed)
            for way in learners
            for number in data.shots
            for seed in SEEDS
        ]
        results |= results_of(wanted, work, runs, weights_hash(trained), jobs)
    pool = len(names) - data.tests
    text = (
        f"{data.name}: {', '.join(map(str, data.shots))} labelled of the {pool} scans that the "
        f"encoder was pretrained on without labels; tests are the other {data.tests}, which no "
        f"training saw. Mean over the classes and the tests, then mean ± standard deviation over "
        f"{len(SEEDS)} seeds, each with scans of its own, the smaller choice within the larger. "
        "Seconds are processor time of one thread, embeddings and filters included."
    )
    there = {run.way for run in results}
    if "random forest" in there:
        text += f" The forest learns from {VOXELS} voxels of the labelled scans, or all of fewer."
    if "label transfer" in there and data == MOUSE:
        text += (
            " How long the registration of label transfer goes on and its weights were chosen on "
            "some pairs of these scans, tests among them."
        )
    if there & set(NETWORKS):
        where = data.network_spacing_mm
        text += (
            f" Swin UNETR takes {FinetuneSettings().steps} steps on crops, pretrained or not"
            + (
                f", at {' × '.join(map(str, where))} mm, as its own pretraining did"
                if where
                else ""
            )
            + "."
        )
    if there & {CARRIED, CARRIED_TO_SCRATCH}:
        most = FinetuneSettings().carried_scans
        text += (
            f" Where labels are carried, the pretrained encoder matches the labelled scans with "
            f"the others of the {pool}, at most {most}, whose own labels are not looked at, and "
            "half of the crops come from those; also where the network begins from scratch."
        )
    return "\n\n".join([text, result_table(results, ways, data.shots)])
