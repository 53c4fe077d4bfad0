"""The tables of ``benchmarks.evidence``: rows of encoders and descriptors, measured once each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean

import torch

from benchmarks.evidence_tasks import (
    Candidate,
    Descriptor,
    by_plan,
    contrast_accuracy,
    matching_accuracy,
    pet_accuracy,
    structure_figures,
    structures_across,
    structures_by_place,
    transfer_across,
    transfer_dice,
)
from benchmarks.fewshot_organs import EVERYWHERE, OrgansWork
from benchmarks.fewshot_runs import Result, Run, results_of
from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, SEEDS, LabelledSet, names_in
from benchmarks.fewshot_strokes import STROKES
from benchmarks.fewshot_volumes import VolumesWork, read_scan, spread_over_seeds
from benchmarks.fewshot_ways import CARRIED, PRETRAINED, SCRATCH
from benchmarks.report import table
from napari_s2dc.engine.encoders import weights_hash
from napari_s2dc.engine.match import MatchSettings
from napari_s2dc.files import replace_atomically
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

CT_SET = "totalseg_ct"
SETS = (MOUSE.name, HIPPOCAMPUS.name, CT_SET)
KNOWN = {MOUSE.name: 5, HIPPOCAMPUS.name: 20, CT_SET: 0}
"""Labelled subjects that name the patches of the tests, drawn from twice as many."""
TESTS = {MOUSE.name: 5, HIPPOCAMPUS.name: 20}
VIEWS = {MOUSE.name: 4, HIPPOCAMPUS.name: 2, CT_SET: 10}
"""Random views of each test scan, every second one in-plane."""
FIRST_VIEW = 100
CONTRAST_VIEWS = range(FIRST_VIEW, FIRST_VIEW + 2)
TRANSFER_PAIRS = 10
PLAN_WAYS = 3
"""Ways of ``by_plan``; descriptors have the first alone."""


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Parameters
    ----------
    name : str
        Shown.
    encoders : mapping
        File of the encoder by name of the set.
    untrained : bool
        Random weights of the same architecture instead, drawn anew for each seed.
    descriptor : callable, optional
        In place of the encoder's features.
    matching : MatchSettings, optional
        How transport plans are made of them.
    network_encoders : mapping
        Files of encoders for Fine-tune, by name of the set, where others were pretrained at its
        spacing.
    by_seed : mapping
        Files of encoders trained with each seed, in place of `encoders`.
    """

    name: str
    encoders: Mapping[str, Path]
    untrained: bool = False
    descriptor: Descriptor | None = None
    matching: MatchSettings | None = None
    network_encoders: Mapping[str, Path] = field(default_factory=dict)
    by_seed: Mapping[int, Path] = field(default_factory=dict)

    def candidate(self, data: str, seed: int) -> Candidate:
        """Give the encoder or descriptor for a set."""
        path = self.by_seed[seed] if self.by_seed else self.encoders[data]
        encoder = SwinEncoder.from_checkpoint(path).eval()
        if self.untrained:
            torch.manual_seed(seed)
            fresh = SwinEncoder(encoder.config).eval()
            fresh.metadata = encoder.metadata
            encoder = fresh
        return Candidate(encoder, self.descriptor, self.matching)

    def files(self, data: str, folder: Path) -> dict[int, Path]:
        """Give the file of the encoder for a set by seed; random weights are put in a folder."""
        if self.by_seed:
            return dict(self.by_seed)
        if not self.untrained:
            return dict.fromkeys(SEEDS, self.encoders[data])
        files = {seed: folder / f"untrained_{seed}.safetensors" for seed in SEEDS}
        for seed, file in files.items():
            if not file.is_file():
                encoder = self.candidate(data, seed).encoder
                encoder.save(file, encoder.metadata)
        return files


class Figures:
    """Figures that were measured, as a file, so that the benchmark goes on where it was."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, list[float]] = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        )

    def __call__(
        self, candidate: Candidate, what: str, measure: Callable[[], Sequence[float]]
    ) -> list[float]:
        """Return the figures of a candidate, measured now when they are not there."""
        described = candidate.descriptor
        who = described.__name__ if described else weights_hash(candidate.encoder)
        preset = candidate.encoder.metadata.get("preprocessing", {}).get("preset", "auto")
        key = f"{who} {preset} {what}"
        if key not in self.known:
            self.known[key] = [float(value) for value in measure()]
            print(f"{what}: {self.known[key]}", flush=True)
            with replace_atomically(self.file) as temporary:
                temporary.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        return self.known[key]


def scans_of(data: Path, name: str) -> list[tuple[Volume, Volume]]:
    """Read the scans of a set with labels: the pool of the known, then the tests."""
    names = names_in(data / name)
    if name != CT_SET:
        tests = (MOUSE if name == MOUSE.name else HIPPOCAMPUS).tests
        names = names[: 2 * KNOWN[name]] + names[-tests:][: TESTS[name]]
    scans = [read_scan(data / name, one) for one in names]
    return [(scan.image, scan.labels) for scan in scans]


def patches_table(rows: Sequence[Row], data: Path, figures: Figures) -> str:
    """Tabulate matching with known truth, and 5-NN and linear probe of structures."""
    scans = {name: scans_of(data, name) for name in SETS}
    body = []
    for row in rows:
        cells = [row.name]
        for name in SETS:
            columns: list[list[float]] = []
            for seed in SEEDS:
                candidate = row.candidate(name, seed)
                tests = [image for image, _ in scans[name][2 * KNOWN[name] :]]
                views = range(FIRST_VIEW, FIRST_VIEW + VIEWS[name])
                matched = figures(
                    candidate,
                    f"{name} matching, {TESTS.get(name, 1)} tests, {VIEWS[name]} views",
                    lambda c=candidate, t=tests, v=views: [matching_accuracy(c, t, v)],
                )
                named = figures(
                    candidate,
                    f"{name} structures by {KNOWN[name]}, draw {seed if KNOWN[name] else 0}",
                    lambda c=candidate, n=name, s=seed: structure_figures(c, scans[n], KNOWN[n], s),
                )
                columns.append([*matched, *named])
            cells += [spread_over_seeds(values) for values in zip(*columns, strict=True)]
        body.append(cells)
    header = ["features"]
    for name in SETS:
        header += [f"{name}: matching", "5-NN", "linear"]
    return table(header, body)


def contrast_table(rows: Sequence[Row], figures: Figures) -> str:
    """Tabulate matching within and between renderings of one anatomy."""
    body = []
    for row in rows:
        found = []
        for seed in SEEDS:
            candidate = row.candidate(CT_SET, seed)
            same, cross = figures(
                candidate,
                f"contrast, {len(CONTRAST_VIEWS)} views",
                lambda c=candidate: contrast_accuracy(c, CONTRAST_VIEWS)[0],
            )
            (pet,) = figures(
                candidate,
                f"PET, {len(CONTRAST_VIEWS)} views",
                lambda c=candidate: [pet_accuracy(c, CONTRAST_VIEWS)],
            )
            found.append((same, cross, cross / same, pet))
        body.append([row.name, *map(spread_over_seeds, zip(*found, strict=True))])
    header = ["features", "same contrast", "CT to T2 and back", "ratio", "within PET"]
    return table(header, body)


def plans_table(rows: Sequence[Row], figures: Figures) -> str:
    """Tabulate what transport plans find within and between renderings, and labels carried so."""
    body = []
    for row in rows:
        found = []
        for seed in SEEDS:
            candidate = row.candidate(CT_SET, seed)
            ways = figures(
                candidate,
                f"plans in one pose, {len(CONTRAST_VIEWS)} views",
                lambda c=candidate: list(
                    chain.from_iterable(contrast_accuracy(c, CONTRAST_VIEWS, by_plan(c)))
                ),
            )
            carried = figures(
                candidate, "transfer across, as the command", lambda c=candidate: transfer_across(c)
            )
            figures_of_ways = []
            for same, cross in zip(ways[::2], ways[1::2], strict=True):
                figures_of_ways += [same, cross, cross / same]
            found.append([*figures_of_ways, *carried])
        cells = [spread_over_seeds(values) for values in zip(*found, strict=True)]
        missing = ["–"] * (3 * PLAN_WAYS + 2 - len(cells))
        body.append([row.name, *cells[:-2], *missing, *cells[-2:]])
    header = ["features"]
    for way in ("as they lie", "in one pose", "map alone"):
        header += [f"{way}: same contrast", "CT to T2 and back", "ratio"]
    return table([*header, "Dice, plan alone", "Dice, registered"], body)


def across_table(rows: Sequence[Row], figures: Figures) -> str:
    """Tabulate structures of phantoms named from others in the same and in another contrast."""
    body = []
    for row in rows:
        candidates = [row.candidate(CT_SET, seed) for seed in SEEDS]
        found = [
            figures(one, "structures across", lambda c=one: structures_across(c))
            for one in candidates
        ]
        shares = [[*four, (four[2] + four[3]) / (four[0] + four[1])] for four in found]
        body.append([row.name, *map(spread_over_seeds, zip(*shares, strict=True))])
    place = f"{structures_by_place():.3f}"
    body.append(["place in the scan alone", *[place] * 4, "1.000"])
    header = ["features", "CT from CT", "T2 from T2", "T2 from CT", "CT from T2"]
    return table([*header, "across / same"], body)


def transfer_table(rows: Sequence[Row], data: Path, figures: Figures) -> str:
    """Labels carried between the mouse brains that are tests, and between the hippocampi."""
    sets = {name: scans_of(data, name)[-tests:] for name, tests in TESTS.items()}
    body = []
    for row in rows:
        cells = [row.name]
        for name, scans in sets.items():
            what, found = f"transfer of {name}, {TRANSFER_PAIRS} pairs", []
            for seed in SEEDS:
                candidate = row.candidate(name, seed)
                work = partial(transfer_dice, candidate, scans, TRANSFER_PAIRS)
                found.append(figures(candidate, what, work))
            cells += [spread_over_seeds(dice) for dice in zip(*found, strict=True)]
        body.append(cells)
    header = ["features"]
    for name in sets:
        header += [f"{name}: Dice, plan alone", "registered"]
    return table(header, body)


def fewshot_table(rows: Sequence[Row], data: Path, runs: Path, jobs: int) -> str:
    """One labelled scan, or strokes on one, by encoder."""
    body = []
    for row in rows:
        if row.descriptor:
            continue
        cells = [row.name]
        for which in (MOUSE, HIPPOCAMPUS):
            files = row.files(which.name, runs)
            network = row.network_encoders.get(which.name)
            if row.untrained:
                network = row.encoders[which.name]  # its weights do not count from scratch
            networks = dict.fromkeys(SEEDS, network) if network else files

            def work_of(path: Path, which: LabelledSet = which) -> VolumesWork:
                return VolumesWork(data / which.name, which, path, path)

            tuned = Task(which.name, SCRATCH if row.untrained else PRETRAINED, 1)
            cells.append(_over_seeds(tuned, networks, work_of, runs, jobs))
            carried = Task(which.name, CARRIED, 1)
            none = row.untrained  # labels are carried by what an encoder has learned
            cells.append("–" if none else _over_seeds(carried, networks, work_of, runs, jobs))
            quick = Task(which.name, "Quick", 1)
            cells.append(_over_seeds(quick, files, work_of, runs, jobs))
        strokes = Task(CT_SET + EVERYWHERE, "Quick", STROKES)
        files = row.files(CT_SET, runs)
        cells.append(
            _over_seeds(strokes, files, lambda path: OrgansWork(data / CT_SET, path), runs, jobs)
        )
        body.append(cells)
    header = ["encoder"]
    for which in (MOUSE, HIPPOCAMPUS):
        header += [f"{which.name}: Fine-tune", "with labels carried", "Quick"]
    return table([*header, f"{CT_SET}: strokes, Quick"], body)


@dataclass(frozen=True)
class Task:
    """What is learned in a column.

    Parameters
    ----------
    data, way : str
        Data set, and how labels are learned.
    shots : int
        Labelled scans.
    """

    data: str
    way: str
    shots: int


def _over_seeds(
    task: Task,
    files: Mapping[int, Path],
    work_of: Callable[[Path], Callable[[Run], Result]],
    runs: Path,
    jobs: int,
) -> str:
    """Learn with the encoder of every seed; mean Dice and its spread."""
    dice = []
    for path in dict.fromkeys(files.values()):
        # From scratch, the weights of the encoder do not count.
        scratch = task.way == SCRATCH
        digest = "scratch" if scratch else weights_hash(SwinEncoder.from_checkpoint(path))
        seeds = [seed for seed, file in files.items() if file == path]
        wanted = [Run(task.data, task.way, task.shots, seed) for seed in seeds]
        found = results_of(wanted, work_of(path), runs, digest, jobs)
        dice += [mean(result.dice) for result in found.values()]
    return spread_over_seeds(dice)
