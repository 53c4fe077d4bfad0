"""Gather the real scans that the bundled encoder is trained on."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fewshot_splits import HIPPOCAMPUS, MOUSE, names_in
from benchmarks.probing_scans import REAL
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume
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
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise S2DCError("nilearn is missing.", "pip install 'napari-s2dc[demo]'") from error
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
    for file in sorted(file for folder in REAL for file in (data / folder).glob("*.nii.gz")):
        shutil.copyfile(file, images / f"ct_{file.name}")
    for seed in range(101, 101 + PHANTOMS):
        image, _ = phantom(seed=seed)
        write_volume(images / f"phantom_{seed}.nii.gz", image.array, image)
    template = load_mni152_template(resolution=2)
    brain = Volume.from_file_array(
        np.asarray(template.dataobj, dtype=np.float32), template.affine, name="MNI152 T1"
    )
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
