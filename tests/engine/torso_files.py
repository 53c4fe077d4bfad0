"""Files of the fixture ``torsos``, and commands run on them."""

from __future__ import annotations

from pathlib import Path

from napari_s2dc.engine.cli import main


def image(folder: Path, seed: int) -> str:
    return str(folder / "images" / f"torso{seed}.nii.gz")


def labels(folder: Path, seed: int) -> str:
    return str(folder / "labels" / f"torso{seed}.nii.gz")


def run(*arguments: str, encoder: str) -> int:
    return main([*arguments, "--encoder", encoder, "--device", "cpu"])
