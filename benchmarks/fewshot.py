"""Segmentation after a few labels on real scans: whole volumes, or strokes on one.

The encoders must have been trained before, without labels and without the tests:

    s2dc-train --config tiny_cpu --data.path DATA/mouse_brain --data.validation_volumes 5 \
        --loss.global_contrast 0.15 --trainer.max_steps 1200 --out MOUSE
    s2dc-train --config tiny_cpu --data.path DATA/mouse_brain --data.validation_volumes 5 \
        --data.spacing_mm "[0.3,0.3,0.3]" --data.grid "[1,1,1]" --data.batch_size 4 \
        --loss.global_contrast 0.15 --trainer.max_steps 3000 --out COARSE
    s2dc-train --config tiny_cpu --data.path DATA/hippocampus --data.validation_volumes 60 \
        --data.grid "[1,1,1]" --data.batch_size 4 --loss.global_contrast 0.15 \
        --trainer.max_steps 400 --trainer.validate_every 400 --out HIPPOCAMPUS

and the one for CT as ``benchmarks.probing`` says; the table of strokes had one of 800 steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.fewshot_organs import organs_section
from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE
from benchmarks.fewshot_volumes import volumes_section
from benchmarks.fewshot_ways import WAYS
from benchmarks.report import machine, write_section


def mouse_part(options: argparse.Namespace) -> str:
    """Few labelled mouse brains."""
    return volumes_section(
        options.data / MOUSE.name,
        MOUSE,
        options.mouse,
        network_encoder=options.mouse_coarse,
        ways=list(WAYS),
        runs=options.runs,
        jobs=options.jobs,
    )


def hippocampus_part(options: argparse.Namespace) -> str:
    """Few labelled hippocampi."""
    return volumes_section(
        options.data / HIPPOCAMPUS.name,
        HIPPOCAMPUS,
        options.hippocampus,
        network_encoder=options.hippocampus,
        ways=list(WAYS),
        runs=options.runs,
        jobs=options.jobs,
    )


def strokes_part(options: argparse.Namespace) -> str:
    """Few strokes on one CT."""
    return organs_section(
        options.data / "totalseg_ct",
        options.ct,
        ways=["random forest", "Quick"],
        runs=options.runs,
        jobs=options.jobs,
    )


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "mouse": mouse_part,
    "hippocampus": hippocampus_part,
    "strokes": strokes_part,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the data sets, decathlon folders")
    parser.add_argument("--mouse", type=Path, required=True, help="encoder for mouse_brain")
    parser.add_argument(
        "--mouse-coarse", type=Path, required=True, help="the like at 0.3 mm, for Swin UNETR"
    )
    parser.add_argument("--hippocampus", type=Path, required=True, help="encoder for hippocampus")
    parser.add_argument("--ct", type=Path, required=True, help="encoder for CT")
    parser.add_argument("--runs", type=Path, default=Path("runs/fewshot"), help="finished runs")
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        help="runs at a time, each in one thread; 0 tabulates what is finished",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    # A path outside of the project says nothing to others.
    ct = "CT/encoder.safetensors" if options.ct.is_absolute() else options.ct
    for name in options.parts:
        facts = (
            f"{machine(torch.device('cpu'))} Runs finished earlier are read from their files: the "
            "load was not measured then."
        )
        command = (
            "    python -m benchmarks.fewshot DATA --mouse MOUSE/encoder.safetensors "
            "--mouse-coarse COARSE/encoder.safetensors --hippocampus "
            f"HIPPOCAMPUS/encoder.safetensors --ct {ct} --parts {name} --write"
        )
        section = "\n\n".join([f"## Few labels, {name}", facts, PARTS[name](options), command])
        print(section, flush=True)
        if options.write:
            write_section(f"fewshot {name}", section)


if __name__ == "__main__":
    main()
