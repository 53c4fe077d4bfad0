"""Gather the CT scans that the encoder of ``benchmarks.probing`` is trained on."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.writing import write_volume

REAL = ("thorax_ct/imagesTr", "thorax_ct/unlabelled", "totalseg_ct/unlabelled")
PHANTOMS = 8


def gather(data: Path, out: Path, phantoms: int = PHANTOMS, first_seed: int = 1) -> list[Path]:
    """Copy every real CT but the labelled torso and write phantoms beside them.

    Parameters
    ----------
    data : Path
        Folder that holds the data sets ``thorax_ct`` and ``totalseg_ct``.
    out : Path
        Folder to fill. Phantoms sort last, so the trainer holds out one of them.
    phantoms : int
        How many, of 96 × 128 × 128 voxels at 3 mm.
    first_seed : int
        Of the phantoms.

    Returns
    -------
    list of Path
        The scans.
    """
    out.mkdir(parents=True, exist_ok=True)
    scans = []
    for file in sorted(file for folder in REAL for file in (data / folder).glob("*.nii.gz")):
        scans.append(out / f"ct_{file.name}")
        shutil.copyfile(file, scans[-1])
    for seed in range(first_seed, first_seed + phantoms):
        image, _ = phantom(seed=seed)
        scans.append(out / f"phantom_{seed}.nii.gz")
        write_volume(scans[-1], image.array, image)
    return scans


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with thorax_ct and totalseg_ct")
    parser.add_argument("out", type=Path, help="folder to fill")
    options = parser.parse_args(arguments)
    print(f"{len(gather(options.data, options.out))} scans in {options.out}")


if __name__ == "__main__":
    main()
