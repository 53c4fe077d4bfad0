"""Matching and label transfer on real scans: known truth, across subjects, plans.

The encoders must have been trained before, without labels and without the targets:

    s2dc-train --config tiny_cpu --data.path DATA/mouse_brain --data.validation_volumes 5 \
        --loss.global_contrast 0.15 --trainer.max_steps 1600 --out MOUSE

and the one for CT as ``benchmarks.probing`` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.matching_checks import checks
from benchmarks.matching_dustbin import dustbin, dustbin_table
from benchmarks.matching_plans import (
    coarse_against_full,
    identical_and_mirrored,
    large_plan,
    solvers,
)
from benchmarks.matching_subjects import (
    ATLASES,
    PARTS_ALONE,
    TARGETS,
    WAYS,
    between_pairs,
    from_several,
    read_subjects,
    subject_table,
)
from benchmarks.matching_truth import known_truth
from benchmarks.report import machine, write_section
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.volume import Volume

CT_SETS = ("totalseg_ct", "thorax_ct")
MOUSE_SET = "mouse_brain"
COARSE_VIEWS = 10
TUNING_VIEWS = 6


def last_scan(folder: Path) -> Volume:
    """Read the last labelled scan of a decathlon folder, which training held out."""
    return read_volume(sorted((folder / "imagesTr").iterdir())[-1])


def scans(
    options: argparse.Namespace, ct: SwinEncoder, mouse: SwinEncoder
) -> Iterator[tuple[str, Volume, SwinEncoder]]:
    """Give the name of every set, its last scan and the encoder for it."""
    for name in (*CT_SETS, MOUSE_SET):
        yield name, last_scan(options.data / name), mouse if name == MOUSE_SET else ct


def truth_part(options: argparse.Namespace, ct: SwinEncoder, mouse: SwinEncoder) -> str:
    """Match with known truth on every set."""
    tables = [
        known_truth(name, scan, encoder, options.views)
        for name, scan, encoder in scans(options, ct, mouse)
    ]
    return "\n\n".join(
        [
            "Random affine views of one scan (turned, scaled, shifted; half of them tilted too), "
            "whole scans of patches matched; mean over the views. Ours: as `s2dc match` does, the "
            "scan turned into the pose of the view and matched again; its map alone: the patch "
            "nearest to where the registration between both puts each, which knows that the truth "
            "is an affine map. The settings of matching as the scans lie were chosen on other "
            "views of the same scans. Last "
            "column: share of the patches which left the picture that were given no partner, and "
            "in brackets the share of all patches decided wrong between partner and none.",
            *([options.note] if options.note else []),
            *tables,
        ]
    )


def dustbin_part(options: argparse.Namespace, ct: SwinEncoder, mouse: SwinEncoder) -> str:
    """Accuracy against departures found, on the views that the default was chosen on."""
    rows = []
    for name, scan, encoder in scans(options, ct, mouse):
        rows += dustbin(name, scan, encoder, range(TUNING_VIEWS))
    return "\n\n".join(
        [
            f"{TUNING_VIEWS} views of each scan, half of them in-plane, by --unmatched-similarity. "
            "Cut: the first third of the tissue along z is taken from the scan and the last third "
            "from its view, as where two scans end at different heights.",
            dustbin_table(rows),
        ]
    )


def subjects_part(options: argparse.Namespace, _: SwinEncoder, mouse: SwinEncoder) -> str:
    """Labels between subjects, beside other ways."""
    subjects, seconds = read_subjects(options.data / MOUSE_SET, mouse)
    rows = between_pairs(subjects, seconds, options.pairs, WAYS)
    rows.append(from_several(subjects, seconds))
    return "\n\n".join(
        [
            f"{MOUSE_SET}, 37 structures, {options.pairs} ordered pairs; targets are the last "
            f"{TARGETS} scans, which training held out; no alignment is given. Several atlases: "
            f"{ATLASES} drawn for each target. How long the registration goes on and its weights "
            "were chosen on some of these pairs. The check of left and right that s2dc transfer "
            "makes besides, for which the atlas is embedded once more, is not in the seconds.",
            subject_table(rows),
        ]
    )


def ablation_part(options: argparse.Namespace, _: SwinEncoder, mouse: SwinEncoder) -> str:
    """Labels between subjects, by parts of ours alone."""
    subjects, seconds = read_subjects(options.data / MOUSE_SET, mouse)
    rows = between_pairs(subjects, seconds, options.pairs, PARTS_ALONE)
    return "\n\n".join(
        [f"{MOUSE_SET}, the same {options.pairs} pairs, what parts do.", subject_table(rows)]
    )


def plans_part(options: argparse.Namespace, ct: SwinEncoder, mouse: SwinEncoder) -> str:
    """Speed and exactness of plans."""
    torso, thorax, brain = (last_scan(options.data / name) for name in (*CT_SETS, MOUSE_SET))
    return "\n\n".join(
        [
            solvers(options.repeats),
            large_plan(),
            coarse_against_full("totalseg_ct", torso, ct, 2, COARSE_VIEWS),
            coarse_against_full("thorax_ct", thorax, ct, 2, COARSE_VIEWS),
            identical_and_mirrored("totalseg_ct", torso, ct),
            identical_and_mirrored(MOUSE_SET, brain, mouse),
        ]
    )


def checks_part(options: argparse.Namespace, ct: SwinEncoder, _: SwinEncoder) -> str:
    """Measure what warnings stand on, by the encoder for CT."""
    return checks(options.data, ct)


PARTS: dict[str, Callable[[argparse.Namespace, SwinEncoder, SwinEncoder], str]] = {
    "truth": truth_part,
    "dustbin": dustbin_part,
    "subjects": subjects_part,
    "ablation": ablation_part,
    "plans": plans_part,
    "checks": checks_part,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data sets, decathlon folders")
    parser.add_argument("--ct", type=Path, required=True, help="encoder for CT")
    parser.add_argument("--mouse", type=Path, required=True, help="encoder for mouse_brain")
    parser.add_argument("--views", type=int, default=20, help="random views of each scan")
    parser.add_argument("--pairs", type=int, default=20, help="ordered pairs of subjects")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each solver")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--note", default="", help="a sentence on what the encoders were trained on, for the text"
    )
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    ct, mouse = (SwinEncoder.from_checkpoint(path) for path in (options.ct, options.mouse))
    for name in options.parts:
        heading = f"## Matching, {name}"
        text = PARTS[name](options, ct, mouse)
        note = f'--note "{options.note}" ' if options.note else ""
        command = (
            f"    python -m benchmarks.matching DATA --ct CT/encoder.safetensors --mouse "
            f"MOUSE/encoder.safetensors --views {options.views} --pairs {options.pairs} "
            f"--repeats {options.repeats} --parts {name} {note}--write"
        )
        section = "\n\n".join([heading, machine(torch.device("cpu")), text, command])
        print(section, flush=True)
        if options.write:
            write_section(f"matching {name}", section)


if __name__ == "__main__":
    main()
