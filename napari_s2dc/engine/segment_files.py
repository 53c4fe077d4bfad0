"""Segmentations as files: label maps on the grid of their scan that say which model made them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.engine import segment as segmenting
from napari_s2dc.engine.cli_labels import LABEL_ENDINGS, LABEL_MAP
from napari_s2dc.engine.cli_scans import MAPS
from napari_s2dc.engine.encoders import difference
from napari_s2dc.engine.fewshot_settings import SPACING_FACTOR, SegmentSettings
from napari_s2dc.engine.labelled_scans import voxels_of_labels
from napari_s2dc.engine.progress import Steps
from napari_s2dc.engine.segment import Segmentation
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import SCAN_ERRORS, S2DCError
from napari_s2dc.volumes.io import check_values, read_volume
from napari_s2dc.volumes.results import maker_of
from napari_s2dc.volumes.segments import segment_fields
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.volumes.writing import write_volume

__all__ = [
    "SegmentationFiles",
    "maker_name",
    "segment_file",
    "spacing_of_training",
    "unlike_training",
]

_UNCERTAINTY = "uncertainty map"
_MAKER = "model"
"""Begins the name of every maker; its fingerprint follows, and in label maps that of the voxels."""


@dataclass(frozen=True)
class SegmentationFiles:
    """Where the segmentation of a scan is written.

    Parameters
    ----------
    labels : Path
        Label map; ends with ``.nii``, ``.nii.gz`` or ``.nrrd``. The last has names and colours of
        the classes.
    with_uncertainty : bool
        Whether the uncertainty is written beside it.
    """

    labels: Path
    with_uncertainty: bool = False

    @property
    def uncertainty(self) -> Path:
        """``NAME.uncertainty.nii.gz`` beside ``NAME.labels.nii.gz``; the other formats alike."""
        name = self.labels.name
        ending = next(ending for ending in MAPS[::-1] if name.lower().endswith(ending))
        bare = name[: -len(ending)]
        for own in LABEL_ENDINGS:
            bare = bare.removesuffix(own)
        return self.labels.with_name(f"{bare}.uncertainty{ending}")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the label map last: it is written last."""
        return (self.uncertainty, self.labels) if self.with_uncertainty else (self.labels,)

    @property
    def made_otherwise(self) -> Path | None:
        """A file that is there and that no model has written: drawn, or corrected since."""
        there = (path for path in self.paths if path.exists())
        return next((path for path in there if not self._is_of_a_model(path)), None)

    def _is_of_a_model(self, path: Path) -> bool:
        """Whether a model wrote a file as it is; programs that change one may keep its note."""
        kind, _, made = maker_of(path).partition(" ")
        digest = made.partition(" ")[2]
        if kind != _MAKER or path != self.labels or not digest:
            return kind == _MAKER
        try:
            return _digest(read_volume(path, labels=True).array) == digest
        except SCAN_ERRORS:
            return True  # cut short

    def are_there(self, scan: Path, maker: str) -> bool:
        """Whether an earlier run has written them all, since the scan was last changed.

        Parameters
        ----------
        scan : Path
            Scan; how new the files of a DICOM folder are is not looked at.
        maker : str
            As of :func:`maker_name`.
        """
        newest = scan.stat().st_mtime if scan.is_file() else 0.0
        return all(
            maker_of(path).startswith(maker) and path.stat().st_mtime >= newest
            for path in self.paths
        ) and all(map(_is_whole, self.paths))

    def write(
        self, found: Segmentation, scan: Volume, model: SegmentationModel, maker: str
    ) -> None:
        """Write a segmentation on the grid of the file that its scan came from.

        Raises
        ------
        S2DCError
            A file cannot be written.
        """
        if self.with_uncertainty:
            write_volume(self.uncertainty, found.uncertainty, scan, result=_UNCERTAINTY, by=maker)
        classes = ((one.label, one.name, one.colour) for one in model.classes)
        write_volume(
            self.labels,
            found.labels,
            scan,
            result=LABEL_MAP,
            by=f"{maker} {_digest(found.labels)}",
            segments=segment_fields(classes),
        )


def _digest(labels: np.ndarray) -> str:
    """Fingerprint of labels (Z, Y, X), whatever integers they are stored as."""
    digest = hashlib.sha256()
    for plane in labels:
        digest.update(np.ascontiguousarray(plane, dtype="<i8").data)
    return digest.hexdigest()[:8]


def _is_whole(path: Path) -> bool:
    """Whether a map that says what it is has all its voxels; a copy may have been cut short.

    It is read to its end, because a compressed file does not show its length otherwise. That takes
    0.2 s for labels of 512 x 512 x 300 voxels and 0.6 s for uncertainties; segmenting, minutes.
    """
    try:
        read_volume(path)
    except SCAN_ERRORS:
        return False
    return True


def maker_name(model: SegmentationModel, segment: SegmentSettings) -> str:
    """Name a model and how it is used, for the header of what it made."""
    return f"{_MAKER} {model.fingerprint(segment)[:16]}"


def segment_file(
    scan: Path,
    files: SegmentationFiles,
    model: SegmentationModel,
    settings: SegmentSettings,
    maker: str,
    device: str,
    *,
    overwrite: bool = False,
) -> Steps[dict[str, Any]]:
    """Segment a scan in a file and write what was found, unless that is there already.

    Parameters
    ----------
    scan : Path
        Scan.
    files : SegmentationFiles
        What is written.
    model : SegmentationModel
        Model.
    settings : SegmentSettings
        How it is used.
    maker : str
        Both, as of :func:`maker_name`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    overwrite : bool
        Whether files that no model has written are replaced.

    Yields
    ------
    Progress
        As of :func:`napari_s2dc.engine.segment.segment_volume`.

    Returns
    -------
    dict
        JSON-able: ``kept``, whether the files were there; else also ``voxels`` by label,
        ``mean_uncertainty``, ``warning`` (as of :func:`unlike_training`) and ``seconds``.

    Raises
    ------
    S2DCError
        The scan cannot be used, a file cannot be written, or one is there that no model wrote.
    """
    other = None if overwrite else files.made_otherwise
    if other is not None:
        raise S2DCError(
            f"{other} was not made by s2dc segment, or was changed since: kept.",
            "Write to another folder, or replace it by s2dc segment --overwrite.",
        )
    if files.are_there(scan, maker):
        return {"kept": True}
    started = time.perf_counter()
    volume = read_volume(scan)
    check_values(volume)
    warning = unlike_training(volume, model)
    found = yield from segmenting.segment_volume(volume, model, settings=settings, device=device)
    files.write(found, volume, model, maker)
    voxels = voxels_of_labels(found.labels)
    return {
        "kept": False,
        "voxels": {str(label): count for label, count in voxels.items()},
        "mean_uncertainty": float(found.uncertainty.mean(dtype="float64")),
        "warning": warning,
        "seconds": round(time.perf_counter() - started, 2),
    }


def spacing_of_training(model: SegmentationModel) -> tuple[float, ...] | None:
    """Spacing (z, y, x) in mm of the first scan that a model learned from.

    None where it is not known, or does not matter: a model with a spacing of its own resamples
    every scan to it.
    """
    scans = model.metadata.get("scans") if model.spacing_mm is None else None
    spacing = scans[0].get("spacing_mm") if scans else None
    return None if spacing is None else tuple(spacing)


def unlike_training(volume: Volume, model: SegmentationModel) -> str:
    """Say in a sentence when a scan is far from those that a model was trained on; else ""."""
    spacing = spacing_of_training(model)
    return difference(volume, model.preset, spacing, "the model", SPACING_FACTOR)
