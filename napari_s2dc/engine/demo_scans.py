"""Scans of the demo: made on the spot, written as files and read back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_s2dc.errors import S2DCError
from napari_s2dc.files import replace_atomically
from napari_s2dc.volumes.io import find_volumes, read_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.preprocess import foreground_mask, normalize
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.volumes.writing import write_volume

__all__ = ["HELD_OUT", "Scan", "average_brain", "claim_folder", "read_scans", "write_scans"]

MARK = "about.txt"
HELD_OUT = "phantom_3_held_out"
"""Last in the order of names, which is the scan that the trainer holds out."""
PHANTOMS = {"phantom_1": 1, "phantom_2": 2, HELD_OUT: 3}
BRAIN = "mni152_brain"


@dataclass(frozen=True)
class Scan:
    """A demonstration scan as the encoder sees it.

    Parameters
    ----------
    name : str
        File name without ending.
    image : np.ndarray (Z, Y, X)
        Normalised to [0, 1].
    foreground : np.ndarray (Z, Y, X)
        Boolean.
    labels : np.ndarray (Z, Y, X) or None
        Organs, 0 outside.
    spacing_mm : tuple of float
        Voxel spacing (z, y, x).
    """

    name: str
    image: np.ndarray
    foreground: np.ndarray
    labels: np.ndarray | None
    spacing_mm: tuple[float, float, float]


def claim_folder(out: Path) -> None:
    """Take a folder for the demo, and drop what an earlier demo left that would be stale.

    Raises
    ------
    S2DCError
        It holds files that no demo made, or cannot be read or written.
    """
    elsewhere = "Choose another folder with --out."
    try:
        taken = out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file()
    except OSError as error:
        raise S2DCError(f"{out} cannot be read: {error.strerror}.", elsewhere) from error
    if taken:
        raise S2DCError(f"{out} holds files that no earlier demo made.", elsewhere)
    with replace_atomically(out / MARK) as temporary:
        temporary.write_text(
            "Made by `s2dc demo`: open index.html. The next demo in this folder makes the files "
            "it wrote anew.\n",
            encoding="utf-8",
        )
    (out / "index.html").unlink(missing_ok=True)
    # What the trainer rebuilds under other names; everything else is overwritten file by file.
    for stale in ("cache", "checkpoints", "tensorboard"):
        shutil.rmtree(out / "run" / stale, ignore_errors=True)


def average_brain() -> Volume | None:
    """Give nilearn's average T1 brain, which its package ships, or None without nilearn."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError:
        return None
    template = load_mni152_template(resolution=2)
    array = np.asarray(template.dataobj, dtype=np.float32)
    return Volume.from_file_array(array, template.affine, name="MNI152 T1")


def write_scans(folder: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Write every scan as NIfTI.

    Parameters
    ----------
    folder : Path
        Where they go; a scan in it that is not the demo's own would be trained on too.
    shape : tuple of int
        Voxels (z, y, x) of the phantoms.

    Returns
    -------
    dict of str to np.ndarray (Z, Y, X)
        Organ labels by name of the scan, for those that have them.

    Raises
    ------
    S2DCError
        There is such a scan, or a file cannot be written.
    """
    if folder.is_dir():
        own = {folder / f"{name}.nii.gz" for name in (BRAIN, *PHANTOMS)}
        foreign = sorted(set(find_volumes(folder)) - own)
        if foreign:
            raise S2DCError(
                f"{foreign[0]} is not a scan of the demo and would be trained on with the others.",
                "Move it away, or choose another folder with --out.",
            )
    labels = {}
    volumes: dict[str, Volume | None] = {BRAIN: average_brain()}
    for name, seed in PHANTOMS.items():
        volumes[name], organs = phantom(shape, seed=seed)
        labels[name] = organs.array
    for name, volume in volumes.items():
        path = folder / f"{name}.nii.gz"
        if volume is None:
            path.unlink(missing_ok=True)
            print(
                "  nilearn is not installed, so there is no real brain scan: "
                "pip install 'napari-s2dc[demo]' adds it. Going on with the phantoms.",
                flush=True,
            )
        else:
            write_volume(path, volume.array, volume)
    return labels


def read_scans(folder: Path, labels: dict[str, np.ndarray]) -> list[Scan]:
    """Read the scans in the order of names, with the labels of those that have them."""
    scans = []
    for path in find_volumes(folder):
        volume = read_volume(path)
        name = path.name.removesuffix(".nii.gz")
        foreground = foreground_mask(volume.array)
        scans.append(
            Scan(
                name=name,
                image=normalize(volume.array, "auto", foreground),
                foreground=foreground,
                labels=labels.get(name),
                spacing_mm=volume.spacing_mm,
            )
        )
    return scans
