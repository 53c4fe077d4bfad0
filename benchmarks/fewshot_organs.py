"""A few strokes on organs of one CT: how well the rest of that scan is segmented."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.fewshot_runs import Memo, Result, Run, results_of
from benchmarks.fewshot_splits import SEEDS
from benchmarks.fewshot_strokes import LENGTH_VOX, STROKES, largest, strokes_on
from benchmarks.fewshot_volumes import read_scan, spread_over_seeds
from benchmarks.fewshot_ways import WAYS, Case, LabelledScan
from benchmarks.report import table
from napari_s2dc.engine.encoders import name_of, weights_hash
from napari_s2dc.engine.evaluate import evaluate_labels
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.foreground import foreground_mask

ORGANS = 8
_LAST_ORGAN = 22
"""TotalSegmentator numbers the organs from 1 to this; vertebrae, vessels and muscles follow."""
EVERYWHERE = " background everywhere"
"""Ends the name of the data in runs with background strokes in every organ's slice."""
_MEMO = Memo()


def painted_scan(
    folder: Path, seed: int, *, background_everywhere: bool
) -> tuple[LabelledScan, LabelledScan, list[int]]:
    """Read the labelled CT and paint strokes on it.

    Parameters
    ----------
    folder : Path
        Decathlon folder with one labelled scan.
    seed : int
        Of the strokes.
    background_everywhere : bool
        As for :func:`benchmarks.fewshot_strokes.strokes_on`.

    Returns
    -------
    truth : LabelledScan
        With the organs as labels, all other structures as background.
    painted : LabelledScan
        With the strokes as labels.
    organs : list of int
        The largest first.
    """
    scan = read_scan(folder, next((folder / "imagesTr").iterdir()).name)
    labels = scan.labels.array
    organs = largest(labels, range(1, _LAST_ORGAN + 1), ORGANS)
    strokes = strokes_on(
        labels,
        foreground_mask(scan.image.array),
        organs,
        seed,
        background_everywhere=background_everywhere,
    )
    truth = np.where(np.isin(labels, organs), labels, 0)
    return (
        LabelledScan(scan.image, scan.labels.with_array(truth.astype(strokes.dtype))),
        LabelledScan(scan.image, scan.labels.with_array(strokes)),
        organs,
    )


@dataclass(frozen=True)
class OrgansWork:
    """Learn from strokes and segment the scan that they were painted on.

    Parameters
    ----------
    folder : Path
        Decathlon folder with one labelled scan.
    encoder : Path
        Pretrained on other CTs.
    """

    folder: Path
    encoder: Path

    def __call__(self, run: Run) -> Result:
        """Do a run in this process; Dice and distance are those of the organs."""
        truth, painted, organs = painted_scan(
            self.folder, run.seed, background_everywhere=run.data.endswith(EVERYWHERE)
        )
        begun = _MEMO.now()
        segment = WAYS[run.way](Case([painted], self.encoder, run.seed), _MEMO)
        trained = _MEMO.now()
        found = segment(painted.image)
        seconds = _MEMO.now() - trained
        unpainted = painted.labels.array < 0
        score = evaluate_labels(
            truth.labels.with_array((found * unpainted).astype(truth.labels.array.dtype)),
            truth.labels.with_array(truth.labels.array * unpainted),
        )
        by_label = {one.label: one for one in score.classes}
        return Result(
            [by_label[organ].dice for organ in organs],
            [by_label[organ].hd95_mm for organ in organs],
            trained - begun,
            seconds,
        )


def organs_section(
    folder: Path, encoder: Path, *, ways: Sequence[str], runs: Path, jobs: int
) -> str:
    """Run every way with several draws of strokes; describe and tabulate.

    Parameters
    ----------
    folder : Path
        Decathlon folder with one labelled scan.
    encoder : Path
        Pretrained on other CTs.
    ways : sequence of str
        Keys of ``WAYS``.
    runs : Path
        Folder of what is finished.
    jobs : int
        Processes, each with one thread.
    """
    names = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
    network = SwinEncoder.from_checkpoint(encoder)
    parts = []
    for kind, where in (("", "in one slice"), (EVERYWHERE, "in the slice of every organ")):
        _, painted, organs = painted_scan(folder, SEEDS[0], background_everywhere=bool(kind))
        wanted = [Run(folder.name + kind, way, STROKES, seed) for way in ways for seed in SEEDS]
        results = results_of(wanted, OrgansWork(folder, encoder), runs, weights_hash(network), jobs)
        voxels = int(np.count_nonzero(painted.labels.array >= 0))
        parts += [
            f"{STROKES} strokes of the background {where}; {voxels} painted voxels in all with "
            f"seed {SEEDS[0]}:",
            _table(results, [str(names[str(organ)]).replace("_", " ") for organ in organs], ways),
        ]
    text = (
        f"{painted.image.name}, {' × '.join(map(str, painted.image.shape))} voxels: {STROKES} "
        f"strokes of each of the {ORGANS} largest organs, in the axial slice that shows most of "
        f"it, drawn by a script as curves of {LENGTH_VOX[0]} to {LENGTH_VOX[1]} voxels where there "
        f"is room. Encoder: {name_of(network)}. Dice on all other voxels, mean ± standard "
        f"deviation over {len(SEEDS)} draws of the strokes. The labels are TotalSegmentator's, not "
        "a person's. "
        "Seconds are processor time of one thread."
    )
    return "\n\n".join([text, *parts])


def _table(results: Mapping[Run, Result], organs: Sequence[str], ways: Sequence[str]) -> str:
    """Dice of every organ and seconds; a column for every way."""
    chosen = {way: [result for run, result in results.items() if run.way == way] for way in ways}
    rows = [
        [
            organ,
            *(spread_over_seeds([result.dice[place] for result in chosen[way]]) for way in ways),
        ]
        for place, organ in enumerate(organs)
    ]
    rows.append(["mean", *(spread_over_seeds([mean(r.dice) for r in chosen[way]]) for way in ways)])
    for what in ("training_seconds", "test_seconds"):
        title = what.replace("_", " ").replace("test", "whole scan,")
        rows.append([title, *(f"{mean(getattr(r, what) for r in chosen[w]):.1f}" for w in ways)])
    return table(["organ", *ways], rows)
