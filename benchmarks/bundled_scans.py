"""Gather the real scans that the bundled encoder is trained on."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, names_in
from benchmarks.probing_scans import gather as gather_ct
from napari_s2dc.engine.demo_scans import average_brain
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.writing import write_volume

LABELLED = ((MOUSE, 10), (HIPPOCAMPUS, 11))
"""Sets whose training part is used, and how many of its scans."""
PHANTOMS = 4


def gather(data: Path, out: Path) -> int:
    """Fill a folder in decathlon form.

    The tests of the few-shot benchmark and the labelled torso are left out. The last of each
    labelled set sorts last, so that ``--data.validation_volumes 2`` holds them out.

    Parameters
    ----------
    data : Path
        Folder of the data sets.
    out : Path
        Folder to fill.

    Returns
    -------
    int
        Number of scans.

    Raises
    ------
    S2DCError
        nilearn, whose average brain is one of the scans, is not installed.
    """
    brain = average_brain()
    if brain is None:
        raise S2DCError("nilearn is missing.", "pip install 'napari-s2dc[demo]'")
    images, labels = out / "imagesTr", out / "labelsTr"
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for which, count in LABELLED:
        folder = data / which.name
        names = names_in(folder)[: -which.tests][:count]
        for name in names:
            copy = f"validation_{name}" if name == names[-1] else name
            shutil.copyfile(folder / "imagesTr" / name, images / copy)
            shutil.copyfile(folder / "labelsTr" / name, labels / copy)
    gather_ct(data, images, PHANTOMS, first_seed=101)
    write_volume(images / "mni152_t1.nii.gz", brain.array, brain)
    return sum(1 for _ in images.iterdir())


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("out", type=Path, help="folder to fill")
    options = parser.parse_args(arguments)
    print(f"{gather(options.data, options.out)} scans in {options.out}")


if __name__ == "__main__":
    main()
