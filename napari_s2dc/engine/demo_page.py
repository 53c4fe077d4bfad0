"""What the report of the demo says: figures, explanations for a newcomer, and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_s2dc import __version__
from napari_s2dc.engine.console import command_line
from napari_s2dc.engine.report import Figures, Link, Measurement, Section, Table, write_page

__all__ = ["Tour", "figures_of", "training_of", "write_report"]

TITLES = {
    "mni152_brain": "Average brain (MNI152, T1-weighted MR)",
    "phantom_1": "Phantom torso 1",
    "phantom_2": "Phantom torso 2",
    "phantom_3_held_out": "Phantom torso 3, kept out of the training",
}


@dataclass(frozen=True)
class Tour:
    """Everything the report speaks of.

    Parameters
    ----------
    figures : dict
        Content of ``figures.json``.
    scans : sequence of str
        Names of the scans.
    preflight : dict
        The preflight report as plain values.
    command : sequence of str
        The command line that trained.
    token_side : int
        Side of a patch in voxels.
    """

    figures: dict[str, Any]
    scans: Sequence[str]
    preflight: dict[str, Any]
    command: Sequence[str]
    token_side: int


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def figures_of(tour: Tour) -> Figures:
    """Figures of the untrained and the bundled encoder with a sentence on each."""
    figures = tour.figures
    rows = [
        Measurement(
            "True counterpart found, pair of views below",
            _percent(figures["views_accuracy_untrained"]),
            _percent(figures["views_accuracy_bundled"]),
            "How often the most similar patch of a second view is the true counterpart. Guessing: "
            f"{_percent(figures['match_accuracy_guessing'])}.",
        ),
        Measurement(
            "Organ named right, third torso",
            _percent(figures["organ_accuracy_untrained"]),
            _percent(figures["organ_accuracy_bundled"]),
            "Each patch takes the organ of the 5 most similar patches of the other two torsos. "
            "Labels serve to measure only. Always saying the most frequent "
            f"tissue: {_percent(figures['organ_accuracy_guessing'])}.",
        ),
        Measurement(
            "Dice of organs from one labelled slice",
            f"{figures['one_slice_dice_untrained']:.2f}",
            f"{figures['one_slice_dice_bundled']:.2f}",
            "Quick learns the organs of one slice of the third torso from its labels and finds "
            "them in all other slices; 1 would be perfect.",
        ),
    ]
    return Figures("untrained", "bundled encoder", rows)


def training_of(tour: Tour) -> Figures:
    """Figures before and after the short training."""
    figures = tour.figures
    rows = [
        Measurement(
            "Matching accuracy, third torso",
            _percent(figures["match_accuracy_before"]),
            _percent(figures["match_accuracy_after"]),
            "How often the most similar patch is the true counterpart, over four random pairs of "
            "views, tilted ones too.",
        ),
        Measurement(
            "Effective rank",
            _number(figures["effective_rank_before"]),
            _number(figures["effective_rank_after"]),
            "In how many directions the features spread. Near 1 would mean collapse: every patch "
            "looks alike to the encoder.",
        ),
        Measurement(
            "Training steps",
            "",
            f"{figures['steps']}",
            f"In {figures['training_minutes']:.1f} minutes, start and validation included; the "
            f"whole tour took {figures['total_minutes']:.1f} minutes.",
        ),
        Measurement(
            "Peak memory", "", f"{figures['peak_memory_mb'] / 1024:.1f} GB", "Of the training."
        ),
    ]
    return Figures("before", "after", rows)


def _scans_table(tour: Tour) -> Table:
    rows = []
    for scan in tour.preflight["scans"]:
        name = Path(scan["path"]).name.removesuffix(".nii.gz")
        rows.append(
            [
                TITLES.get(name, name),
                " × ".join(str(side) for side in scan["shape"]),
                " × ".join(f"{side:.3g}" for side in scan["spacing_mm"]),
                "measured on" if "held_out" in name else "trained on for a moment",
            ]
        )
    return Table(("scan", "voxels (z, y, x)", "spacing in mm", "use"), rows)


def _sections(tour: Tour) -> list[Section]:
    side = tour.token_side
    return [
        Section(
            "Does it find the same place again?",
            [
                "On the left a slice of the third torso, on the right a second view of it: "
                "moved, turned, and scaled by a known amount, so the true counterpart of "
                "every patch is known. For each patch on the left the encoder picks the most "
                "similar patch on the right.",
                "Green is right, red is wrong. Every patch that has a true counterpart has a "
                "square (the others fall between two patches, outside the view or into air), and "
                "some have a line to where the encoder sees them. Good features give green "
                "lines that turn all together; red lines run across the picture.",
            ],
            pictures=[
                (
                    "pictures/matches.png",
                    "Matches between two views of the third torso, by the untrained and by the "
                    "bundled encoder. Green: the true counterpart. Red: another patch.",
                )
            ],
        ),
        Section(
            "What the encoder sees",
            [
                "The features of all patches are squeezed into three numbers each (principal "
                "components), spread evenly and shown as red, green and blue. Patches of like "
                "colour look alike to the encoder. Within a row the three torsos share one set of "
                "colours: an organ that has the same colour in torso 1 and in torso 3 is "
                "recognised from one person to the next. Colours of the untrained and of the "
                "bundled encoder cannot be compared with each other.",
                f"A patch is a cube of {side} voxels, so edges are softer than the scan's; colours "
                "are interpolated between patches. Slices are shown as radiologists do: the "
                "patient's right (R) on the left, anterior (A) or superior (S) at the top; in "
                "sagittal slices anterior is on the left.",
            ],
            pictures=[
                (
                    f"pictures/{name}.png",
                    f"{TITLES.get(name, name)}: the scan, the untrained encoder, the bundled one.",
                )
                for name in sorted(tour.scans, key=lambda name: ("brain" in name, name))
            ],
        ),
        Section(
            "What a few labels make of it",
            [
                "One slice of the third torso is labelled, as a person might paint it. Quick, a "
                "light head on the encoder's features and the intensities, learns from that slice, "
                "spreads its labels within regions of like intensity, and segments the whole scan "
                "in seconds. The Segment tab does the same with strokes. Intensities and places "
                "alone go a long way in a torso as plain as this, with the untrained network too.",
            ],
            pictures=[
                (
                    "pictures/organs.png",
                    "The labelled slice, what is found with the untrained and with the bundled "
                    "encoder, and the true organs.",
                )
            ],
        ),
        Section(
            "How training went",
            [
                "The bundled encoder was trained on for a moment, without any labels, on two of "
                "the torsos and the brain, as you would with your own scans: long enough "
                "to show how it is done, too short to gain much. Left: matching accuracy on the "
                "third torso, measured now and then; higher is better. Right: the loss that "
                "training lowers; it is noisy, because each step sees another part of another "
                "scan, and the heads on top of the encoder start from nothing.",
            ],
            figures=training_of(tour),
            pictures=[("pictures/training.png", "Matching accuracy and loss during training.")],
        ),
        Section(
            "The scans",
            [
                "Phantoms are torsos painted by formulas: each has its own anatomy, pose, contrast "
                "and noise. They make the tour independent of downloads, but are no patients."
            ],
            table=_scans_table(tour),
        ),
        Section(
            "Files, and how to go on",
            ["This is the command that trained the encoder, and how to do it with your own scans:"],
            code="\n".join(
                [
                    command_line(tour.command),
                    "",
                    "s2dc-train --config tiny_cpu --data.path YOUR_FOLDER_OF_SCANS --out my_run",
                    "s2dc info my_run",
                ]
            ),
            links=[
                Link("run/encoder.safetensors", "the encoder as trained on, for s2dc and napari"),
                Link("run/metrics.csv", "every logged figure by step"),
                Link("run/summary.json", "summary of the training"),
                Link("run/config.yaml", "every setting of the training"),
                Link("figures.json", "the figures of this page"),
            ],
        ),
    ]


def write_report(path: Path, tour: Tour) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        HTML file; pictures and files are linked relative to it.
    tour : Tour
        What it tells.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    write_page(
        path,
        "S²DC demo: what the bundled encoder knows",
        [
            "An encoder turns every small cube of a scan, a patch, into a list of numbers: its "
            "features. Good features tell which anatomical structure a patch belongs to, however "
            "the scan is placed, turned or brightened.",
            "The encoder that comes with this package was trained on scans of people and animals "
            "and on made-up anatomies, without labels. Here it looks at three torsos that it "
            "has not seen and at an average brain, which it has; beside it stands what the same "
            "network makes of them before any training.",
        ],
        figures_of(tour),
        _sections(tour),
        f"Made by s2dc demo, napari-s2dc {__version__}.",
    )
