"""The guided tour: show what the bundled encoder knows, and train it on a little further."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.demo_fewshot import (
    FromOneSlice,
    label_one_slice,
    painted_over,
    segment_from_one_slice,
)
from napari_s2dc.engine.demo_page import Tour, figures_of, training_of, write_report
from napari_s2dc.engine.demo_scans import HELD_OUT, Scan, claim_folder, read_scans, write_scans
from napari_s2dc.engine.demo_training import SEED, preflight_of, preset, steps_within, train
from napari_s2dc.engine.embed import embed
from napari_s2dc.engine.encoders import bundled_encoder, name_of, remember_local_run
from napari_s2dc.engine.labelled_scans import LabelledScan
from napari_s2dc.engine.measures import (
    Matches,
    ViewPair,
    foreground_tokens,
    label_tokens,
    match_views,
    structure_accuracy,
    two_views,
)
from napari_s2dc.engine.pictures import (
    Curve,
    colours_of,
    draw_curves,
    draw_embedding,
    draw_matches,
    match_picture,
)
from napari_s2dc.engine.report import as_text
from napari_s2dc.files import replace_atomically
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.volumes.io import read_volume

__all__ = ["run_demo"]

# View 2 of the picture of matches: shift in voxels, degrees, scale.
_VIEW = ((9.0, -7.0), 20.0, 1.1)

# Kept back for starting the trainer, its last validation, the pictures and the page.
_RESERVE_SECONDS = 35.0
_LEAST_TRAINING_SHARE = 0.25


@dataclass(frozen=True)
class Learned:
    """What one encoder makes of the scans.

    Parameters
    ----------
    features : dict of str to Tensor (C, tz, ty, tx)
        Token features by name of the scan.
    matches : Matches
        Between the two views of the held-out scan.
    organs : float
        Share of the held-out scan's patches whose organ is named right.
    from_one_slice : FromOneSlice
        The held-out scan, segmented from the labels of one slice.
    """

    features: dict[str, Tensor]
    matches: Matches
    organs: float
    from_one_slice: FromOneSlice


def _say(text: str) -> None:
    print(text, flush=True)


def _with_random_weights(encoder: SwinEncoder) -> SwinEncoder:
    """Make an untrained encoder of the same architecture, the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return SwinEncoder(encoder.config).eval()


def _pair_of_views(scan: Scan) -> ViewPair:
    """Make two views as large as a sub-volume of the training."""
    settings = preset()
    crops_z, crops_y, crops_x = settings["data"]["grid"]
    return two_views(
        scan.image,
        scan.foreground,
        Affine3D.in_plane(*_VIEW),
        grid=(crops_z, crops_y, crops_x),
        crop_size=settings["data"]["crop_size"],
        stage=settings["model"]["token_stage"],
    )


def _look(
    encoder: SwinEncoder, scans: Sequence[Scan], pair: ViewPair, labelled_one: LabelledScan
) -> Learned:
    """Embed every scan, match the two views, name organs across subjects, and learn from a slice.

    `labelled_one` is the held-out scan with all its organs.
    """
    side = STRIDES[pair.stage]
    features = {scan.name: embed(scan.image, encoder, stage=pair.stage) for scan in scans}
    labelled = {
        scan.name: (features[scan.name], label_tokens(scan.labels, side))
        for scan in scans
        if scan.labels is not None
    }
    asked = labelled.pop(HELD_OUT)
    organs = structure_accuracy(list(labelled.values()), [asked])
    found = segment_from_one_slice(labelled_one.image, labelled_one.labels.array, encoder)
    return Learned(features, match_views(pair, encoder), organs, found)


def _curves(run: Path, chance: float) -> list[Curve]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))

    def column(name: str) -> tuple[list[float], list[float]]:
        filled = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
        # Rows count steps from 0, except that of the untrained encoder.
        steps = [step + 1 if step else 0.0 for step, _ in filled]
        return steps, [value for _, value in filled]

    steps, accuracy = column("validation_match_accuracy")
    percent = [100 * value for value in accuracy]
    return [
        Curve("Matching accuracy, held-out scan (%)", steps, percent, 100 * chance, "guessing"),
        Curve("Training loss", *column("loss")),
    ]


def _draw(
    folder: Path, scans: Sequence[Scan], pair: ViewPair, untrained: Learned, bundled: Learned
) -> None:
    """Draw the matches and, for every scan, the colours of its features."""
    side = STRIDES[pair.stage]
    draw_matches(
        folder / "matches.png",
        [
            match_picture("Untrained", pair, untrained.matches),
            match_picture("Bundled encoder", pair, bundled.matches),
        ],
    )
    # Torsos share their colours, so that organs can be compared; the brain has its own.
    torsos = [scan for scan in scans if scan.labels is not None]
    for group in (torsos, [scan for scan in scans if scan.labels is None]):
        if not group:
            continue
        colours = [
            colours_of(
                [learned.features[scan.name] for scan in group],
                [foreground_tokens(scan.foreground, side) for scan in group],
                [scan.image.shape for scan in group],
                side,
            )
            for learned in (untrained, bundled)
        ]
        for scan, random, own in zip(group, *colours, strict=True):
            draw_embedding(
                folder / f"{scan.name}.png",
                scan.image,
                scan.foreground,
                [("Untrained", random), ("Bundled encoder", own)],
                scan.spacing_mm,
            )


def _draw_organs(path: Path, scan: Scan, untrained: Learned, bundled: Learned) -> None:
    """Draw the labelled slice of the held-out scan, its organs, and what was found of them."""
    assert scan.labels is not None
    colours, labelled = bundled.from_one_slice.colours, label_one_slice(scan.labels)
    rows = {
        "Labelled": labelled,
        "Untrained": untrained.from_one_slice.found,
        "Bundled encoder": bundled.from_one_slice.found,
        "True organs": scan.labels,
    }
    draw_embedding(
        path,
        scan.image,
        scan.foreground,
        [(title, painted_over(scan.image, labels, colours)) for title, labels in rows.items()],
        scan.spacing_mm,
        axial=int(labelled.any((1, 2)).argmax()),
    )


def _most_frequent(labels: np.ndarray, pair: ViewPair) -> float:
    """Share of the most frequent organ among the labelled tokens."""
    cells = label_tokens(labels, STRIDES[pair.stage])
    counts = torch.bincount(cells[cells > 0].long())
    return float(counts.max() / counts.sum())


def _figures(
    summary: dict[str, Any], pair: ViewPair, untrained: Learned, bundled: Learned
) -> dict[str, Any]:
    return {
        "steps": summary["steps"],
        "training_minutes": round(summary["seconds"] / 60, 2),
        "steps_per_second": summary["steps_per_second"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "scans_used": summary["volumes_used"],
        "scans_skipped": len(summary["volumes_skipped"]),
        "match_accuracy_before": summary["match_accuracy_first"],
        "match_accuracy_after": summary["match_accuracy_last"],
        "match_accuracy_guessing": 1 / pair.true_pairs.shape[-1],
        "views_accuracy_untrained": untrained.matches.accuracy,
        "views_accuracy_bundled": bundled.matches.accuracy,
        "organ_accuracy_untrained": untrained.organs,
        "organ_accuracy_bundled": bundled.organs,
        "one_slice_dice_untrained": untrained.from_one_slice.dice,
        "one_slice_dice_bundled": bundled.from_one_slice.dice,
        "effective_rank_before": summary["effective_rank_first"],
        "effective_rank_after": summary["effective_rank_last"],
    }


def run_demo(
    out: Path,
    minutes: float,
    *,
    shape: tuple[int, int, int] = (96, 128, 128),
    steps: int | None = None,
) -> dict[str, Any]:
    """Show what the bundled encoder knows of demonstration scans and train it on; write a report.

    Parameters
    ----------
    out : Path
        Folder for ``index.html`` and everything made on the way; made when missing, and files of
        an earlier demo are made anew.
    minutes : float
        Time for all of it.
    shape : tuple of int
        Voxels (z, y, x) of the phantoms.
    steps : int, optional
        Training steps; as many as fit into the time when left out.

    Returns
    -------
    dict
        The content of ``figures.json``.

    Raises
    ------
    S2DCError
        The folder holds other files or cannot be written, or training fails.
    """
    started = time.perf_counter()
    claim_folder(out)
    run, pictures = out / "run", out / "pictures"

    _say("1/6 Making the scans: phantom torsos and an average brain")
    labels = write_scans(out / "scans", shape)
    scans = read_scans(out / "scans", labels)

    preflight = preflight_of(out / "scans")
    _say(f"2/6 Preflight: {len(preflight.entries)} scans can be used")

    held_out = next(scan for scan in scans if scan.name == HELD_OUT)
    pair = _pair_of_views(held_out)
    volume = read_volume(out / "scans" / f"{HELD_OUT}.nii.gz")
    labelled = LabelledScan(volume, volume.with_array(labels[HELD_OUT]))
    encoder = SwinEncoder.from_checkpoint(bundled_encoder())
    _say("3/6 Looking at the scans with the encoder before any training, for comparison")
    untrained = _look(_with_random_weights(encoder), scans, pair, labelled)
    _say(f"4/6 Looking at the scans with the bundled encoder ({name_of(encoder)})")
    bundled = _look(encoder, scans, pair, labelled)

    left = 60 * minutes - (time.perf_counter() - started) - _RESERVE_SECONDS
    seconds = max(left, _LEAST_TRAINING_SHARE * 60 * minutes)
    steps = steps_within(seconds, encoder) if steps is None else steps
    _say(f"5/6 Training it further for {steps} steps, {seconds / 60:.1f} minutes at most")
    arguments = train(
        out / "scans", run, steps=steps, minutes=seconds / 60, start_from=bundled_encoder()
    )

    _say("6/6 Drawing pictures and writing the report")
    figures = _figures(
        json.loads((run / "summary.json").read_text(encoding="utf-8")), pair, untrained, bundled
    )
    figures |= {"organ_accuracy_guessing": _most_frequent(labels[HELD_OUT], pair)}
    # Training matches over the whole sub-volume, not slice by slice.
    chance = figures["match_accuracy_guessing"] / len(pair.true_pairs)
    draw_curves(pictures / "training.png", _curves(run, chance))
    _draw(pictures, scans, pair, untrained, bundled)
    _draw_organs(pictures / "organs.png", held_out, untrained, bundled)
    figures |= {"total_minutes": round((time.perf_counter() - started) / 60, 2)}
    with replace_atomically(out / "figures.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    tour = Tour(
        figures=figures,
        scans=[scan.name for scan in scans],
        preflight=preflight.to_dict(),
        command=["s2dc-train", *arguments],
        token_side=STRIDES[pair.stage],
    )
    write_report(out / "index.html", tour)
    remember_local_run(run / "encoder.safetensors")
    _say(f"\n{as_text(figures_of(tour))}\n\n{as_text(training_of(tour))}\n")
    _say(f"Report:  {out / 'index.html'}\nEncoder: {run / 'encoder.safetensors'}")
    return figures
