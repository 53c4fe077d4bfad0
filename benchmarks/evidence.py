"""What the bundled encoder knows, beside others with the same architecture and beside intensities.

    python -m benchmarks.evidence DATA --mouse MOUSE --hippocampus HIPPOCAMPUS --ct CT \
        --masked MASKED --write

where MOUSE, HIPPOCAMPUS and CT are encoders pretrained on the target set (as
``benchmarks.fewshot`` says) and MASKED is what ``benchmarks.masked_modelling`` made of the run of
the bundled encoder. Finished figures are kept in ``--runs``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch

from benchmarks.ablations import VARIANTS, run_of
from benchmarks.descriptors import mind, raw_patches
from benchmarks.evidence_tasks import (
    Candidate,
    Descriptor,
    contrast_accuracy,
    matching_accuracy,
    structure_figures,
    transfer_dice,
)
from benchmarks.fewshot_organs import EVERYWHERE, OrgansWork
from benchmarks.fewshot_runs import Run, results_of
from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, SEEDS, names_in, require_unseen
from benchmarks.fewshot_strokes import STROKES
from benchmarks.fewshot_volumes import VolumesWork, read_scan, spread_over_seeds
from benchmarks.fewshot_ways import NETWORKS
from benchmarks.matching_truth import MIND_MATCHING, RAW_MATCHING
from benchmarks.report import machine, table, write_section
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.encoders import bundled_encoder, weights_hash
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
CONTRAST_VIEWS = 2
TRANSFER_PAIRS = 10


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
    """

    name: str
    encoders: Mapping[str, Path]
    untrained: bool = False
    descriptor: Descriptor | None = None
    matching: MatchSettings | None = None
    network_encoders: Mapping[str, Path] = field(default_factory=dict)

    def candidate(self, data: str, seed: int) -> Candidate:
        """Give the encoder or descriptor for a set."""
        encoder = SwinEncoder.from_checkpoint(self.encoders[data]).eval()
        if self.untrained:
            torch.manual_seed(seed)
            fresh = SwinEncoder(encoder.config).eval()
            fresh.metadata = encoder.metadata
            encoder = fresh
        return Candidate(encoder, self.descriptor, self.matching)


class Figures:
    """Figures that were measured, as a file, so that the benchmark goes on where it was."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, list[float]] = json.loads(file.read_text()) if file.is_file() else {}

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
                temporary.write_text(json.dumps(self.known, indent=1))
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
    """Tabulate matching between a CT-like and a T2-like rendering of one anatomy."""
    body = []
    views = range(FIRST_VIEW, FIRST_VIEW + CONTRAST_VIEWS)
    for row in rows:
        found = []
        for seed in SEEDS:
            candidate = row.candidate(CT_SET, seed)
            found.append(
                figures(
                    candidate,
                    f"contrast, {len(views)} views",
                    lambda c=candidate: contrast_accuracy(c, views),
                )
            )
        same, cross = ([pair[place] for pair in found] for place in (0, 1))
        ratio = [b / a for a, b in zip(same, cross, strict=True)]
        body.append([row.name, *map(spread_over_seeds, (same, cross, ratio))])
    return table(["features", "same contrast", "CT to T2 and back", "ratio"], body)


def transfer_table(rows: Sequence[Row], data: Path, figures: Figures) -> str:
    """Labels carried between the mouse brains that are tests."""
    scans = scans_of(data, MOUSE.name)[-TESTS[MOUSE.name] :]
    body = []
    for row in rows:
        found = []
        for seed in SEEDS:
            candidate = row.candidate(MOUSE.name, seed)
            what = f"transfer, {TRANSFER_PAIRS} pairs"
            found.append(
                figures(
                    candidate, what, lambda c=candidate: transfer_dice(c, scans, TRANSFER_PAIRS)
                )
            )
        body.append([row.name, *(spread_over_seeds(dice) for dice in zip(*found, strict=True))])
    return table(["features", "Dice, plan alone", "Dice, registered"], body)


def fewshot_table(rows: Sequence[Row], data: Path, runs: Path, jobs: int) -> str:
    """One labelled scan, or strokes on one, by encoder."""
    body = []
    for row in rows:
        if row.descriptor:
            continue
        cells = [row.name]
        for which in (MOUSE, HIPPOCAMPUS):
            path = row.encoders[which.name]
            network = row.network_encoders.get(which.name, path)
            work = VolumesWork(data / which.name, which, path, network)
            way = NETWORKS[0] if row.untrained else NETWORKS[1]
            ways = [way] if row.untrained else [way, "Quick"]
            cells += _one_labelled(work, ways, runs, jobs)
        if row.untrained:
            cells.append("–")
        else:
            path = row.encoders[CT_SET]
            wanted = [Run(CT_SET + EVERYWHERE, "Quick", STROKES, seed) for seed in SEEDS]
            work_on_ct = OrgansWork(data / CT_SET, path)
            digest = weights_hash(SwinEncoder.from_checkpoint(path))
            found = results_of(wanted, work_on_ct, runs, digest, jobs)
            cells.append(spread_over_seeds([mean(result.dice) for result in found.values()]))
        body.append(cells)
    header = ["encoder"]
    for which in (MOUSE, HIPPOCAMPUS):
        header += [f"{which.name}: Fine-tune", "Quick"]
    return table([*header, f"{CT_SET}: strokes, Quick"], body)


def _one_labelled(work: VolumesWork, ways: Sequence[str], runs: Path, jobs: int) -> list[str]:
    cells = []
    for way in ways:
        path = work.network_encoder if way in NETWORKS else work.encoder
        # From scratch, the weights of the encoder do not count.
        untrained = way == NETWORKS[0]
        digest = "scratch" if untrained else weights_hash(SwinEncoder.from_checkpoint(path))
        wanted = [Run(work.data.name, way, 1, seed) for seed in SEEDS]
        found = results_of(wanted, work, runs, digest, jobs)
        cells.append(spread_over_seeds([mean(result.dice) for result in found.values()]))
    return [*cells, *["–"] * (2 - len(cells))]


def rows_of(options: argparse.Namespace) -> list[Row]:
    """List the rows of the evidence, or those of the ablations."""
    bundled = dict.fromkeys(SETS, options.bundled)
    if options.ablations:
        files = {name: run_of(options.ablations, name) / "encoder.safetensors" for name in VARIANTS}
        there = {name: file for name, file in files.items() if file.is_file()}
        return [Row(name, dict.fromkeys(SETS, file)) for name, file in there.items()]
    rows = [Row("bundled", bundled), Row("the same, untrained", bundled, untrained=True)]
    target = (options.mouse, options.hippocampus, options.ct)
    if all(target):
        for which, path in ((MOUSE, options.mouse), (HIPPOCAMPUS, options.hippocampus)):
            metadata = SwinEncoder.from_checkpoint(path).metadata
            require_unseen(metadata, names_in(options.data / which.name), which)
        coarse = {MOUSE.name: options.mouse_coarse} if options.mouse_coarse else {}
        encoders = dict(zip(SETS, target, strict=True))
        rows.append(Row("pretrained on the target set", encoders, network_encoders=coarse))
    if options.masked:
        rows.append(Row("masked-image modelling", dict.fromkeys(SETS, options.masked)))
    for item in options.also:
        name, _, path = item.partition("=")
        rows.append(Row(name, dict.fromkeys(SETS, Path(path))))
    rows.append(Row("intensities: MIND", bundled, descriptor=mind, matching=MIND_MATCHING))
    raw = Row("intensities: voxels", bundled, descriptor=raw_patches, matching=RAW_MATCHING)
    rows.append(raw)
    return rows


PARTS = ("patches", "contrast", "transfer", "fewshot")
SEEN = (
    "The bundled encoder was trained without labels on other scans of the same three kinds "
    f"({MOUSE.name}: nine brains that are no tests; {HIPPOCAMPUS.name}: ten; CTs of three other "
    "patients), an average brain, four phantoms as CT and made-up anatomies; no set is wholly new "
    "to it."
)
TEXTS = {
    "patches": (
        "Matching: the most similar patch of a random view of the same scan is the true one "
        f"({', '.join(f'{VIEWS[name]} views of each test of {name}' for name in SETS)}; features "
        "alone, no transport and no prior). 5-NN and linear: the structure of a patch named from "
        f"{KNOWN[MOUSE.name]} and {KNOWN[HIPPOCAMPUS.name]} other subjects; {CT_SET} has one "
        "labelled scan, so its patches are named from other slabs of the same scan, which measures "
        "less. Patches of 8 voxels a side."
    ),
    "contrast": (
        "Four phantom torsos, each shown as CT and as T2-weighted MR; the same random views; the "
        "most similar patch. Torsos of other seeds by the same formulas are among the made-up "
        "anatomies of the training, in random contrasts, so this is no test on a new kind of scan."
    ),
    "transfer": (
        f"{TRANSFER_PAIRS} ordered pairs of the tests of {MOUSE.name}. Plan alone: shares of "
        "labels through the transport plan; registered: as `s2dc transfer` does, by intensities "
        "too; a pair for which no map is found counts as 0, which is every pair of the "
        "intensities: what counts as confident was chosen for encoders."
    ),
    "fewshot": (
        "One labelled scan (three draws), tests as in the tables of few labels above; strokes of "
        "the background in the slice of every organ. A dash: does not apply or was not run "
        "(`--jobs 0` leaves out what is not there)."
    ),
}
SPREAD = (
    f"Mean ± standard deviation over {len(SEEDS)} seeds: draws of the known or labelled subjects, "
    "and random weights where nothing was trained. Every encoder was trained once, so its own "
    "chance is not in it."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data sets, decathlon folders")
    parser.add_argument("--bundled", type=Path, help="encoder; default: the bundled one")
    parser.add_argument("--mouse", type=Path, help="encoder pretrained on mouse_brain")
    parser.add_argument("--mouse-coarse", type=Path, help="the like at 0.3 mm, for Fine-tune")
    parser.add_argument("--hippocampus", type=Path, help="encoder pretrained on hippocampus")
    parser.add_argument("--ct", type=Path, help="encoder pretrained on CT")
    parser.add_argument("--masked", type=Path, help="encoder of benchmarks.masked_modelling")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME=ENCODER", help="more rows, as yours"
    )
    parser.add_argument(
        "--ablations", type=Path, help="runs of benchmarks.ablations in place of all other rows"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="what is finished")
    parser.add_argument("--jobs", type=int, default=2, help="few-shot runs at a time")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    options.bundled = options.bundled or bundled_encoder()
    keep_large_buffers()
    options.runs.mkdir(parents=True, exist_ok=True)
    figures, rows = Figures(options.runs / "figures.json"), rows_of(options)
    made: dict[str, Callable[[], str]] = {
        "patches": lambda: patches_table(rows, options.data, figures),
        "contrast": lambda: contrast_table(rows, figures),
        "transfer": lambda: transfer_table(rows, options.data, figures),
        "fewshot": lambda: fewshot_table(rows, options.data, options.runs, options.jobs),
    }
    facts = SEEN
    if options.ablations:
        trained = SwinEncoder.from_checkpoint(next(iter(rows[0].encoders.values()))).metadata
        facts = f"Each trained alike for {trained['training']['steps']} steps, seed 0."
    for part in options.parts:
        kind = "Ablations" if options.ablations else "Evidence"
        if options.ablations:
            given = "--ablations RUNS"
        else:
            given = (
                "--mouse MOUSE --mouse-coarse COARSE --hippocampus HIPPOCAMPUS --ct CT "
                "--masked MASKED --also NAME=ENCODER"
            )
        section = "\n\n".join(
            [
                f"## {kind}, {part}",
                machine(torch.device("cpu")),
                " ".join([TEXTS[part], facts, SPREAD]),
                made[part](),
                f"    python -m benchmarks.evidence DATA {given} --parts {part} --write",
            ]
        )
        print(section, flush=True)
        if options.write:
            write_section(f"{kind.lower()} {part}", section)


if __name__ == "__main__":
    main()
