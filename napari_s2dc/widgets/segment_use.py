"""What the Segment tab runs in threads with a model and with what it found; no Qt, no layers."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_s2dc.engine.progress import Progress, as_one
from napari_s2dc.errors import SCAN_ERRORS, S2DCError, reason_of
from napari_s2dc.widgets.segment_jobs import Ready, at_level

if TYPE_CHECKING:
    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.evaluate import Evaluation
    from napari_s2dc.engine.label_next import PlaceToLabel
    from napari_s2dc.engine.segment import Segmentation
    from napari_s2dc.engine.segmentation_model import SegmentationModel
    from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot

__all__ = [
    "FolderOutcome",
    "carried",
    "compare",
    "counted",
    "places",
    "segment",
    "segment_folder",
]

_PLACE_VOX = 8
"""Side of a place that is worth a stroke."""


def segment(
    scan: LayerSnapshot,
    model: SegmentationModel,
    device: str,
    ready: Ready | None = None,
) -> Generator[Any, None, tuple[Segmentation, int, str]]:
    """Segment a scan, with the features of Quick where they are at hand.

    Returns
    -------
    found : Segmentation
        On the grid of the scan.
    classes : int
        How many were found.
    warning : str
        How a scan is far from what the model was trained on, or "".
    """
    from napari_s2dc.engine.labelled_scans import voxels_of_labels
    from napari_s2dc.engine.segment import segment_volume
    from napari_s2dc.engine.segment_files import unlike_training

    features = None if ready is None else ready.features
    volume = scan.load() if features is None else features.volume
    found = yield from segment_volume(volume, model, device=device, prepared=features)
    # Features at hand are those of the scan that was learned from.
    warning = unlike_training(volume, model) if features is None else ""
    return found, len(voxels_of_labels(found.labels)), warning


def counted(labels: Any, name: str) -> dict[int, int]:
    """Count the voxels of every class in the labels of a layer."""
    from napari_s2dc.engine.labelled_scans import voxels_of_labels

    array = np.asarray(labels)
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise S2DCError(
            f"{name} holds negative values, which are no labels.",
            "Set them to 0, or choose another layer.",
        )
    return voxels_of_labels(array)


def carried(
    labels: Any,
    labels_place: np.ndarray,
    image_place: np.ndarray,
    shape: tuple[int, ...],
    *,
    complete: bool,
) -> tuple[np.ndarray, list[int]]:
    """Bring labels onto the grid of an image, by their places in the world.

    Parameters
    ----------
    labels : array-like
        Integers, (z, y, x).
    labels_place, image_place : np.ndarray (4, 4)
        Voxels to the world.
    shape : tuple of int
        Voxels (z, y, x) of the image.
    complete : bool
        Whether 0 is background; else it is unlabelled, and no stroke on the image is lost.

    Returns
    -------
    found : np.ndarray
        Nearest label; 0 beyond those that are given.
    lost : list of int
        Labels of which no voxel is left.
    """
    from napari_s2dc.engine.labelled_scans import keep_strokes, voxels_of_labels
    from napari_s2dc.volumes.preprocess import resample_to
    from napari_s2dc.volumes.volume import Volume

    grid = Volume(np.broadcast_to(np.uint8(0), shape), image_place)
    given = Volume(np.asarray(labels), labels_place)
    found = resample_to(given, grid, labels=True)
    if not complete:
        found = keep_strokes(given, found)
    left = voxels_of_labels(found.array)
    return found.array, [label for label in voxels_of_labels(given.array) if label not in left]


@dataclass
class FolderOutcome:
    """What became of the scans of a folder.

    Parameters
    ----------
    done : int
        Scans whose label map is there.
    kept : int
        Those of them whose label map was there already.
    unlike : list of str
        Name of those that are far from what the model was trained on, and how.
    skipped : list of str
        Name and reason of the others.
    """

    done: int = 0
    kept: int = 0
    unlike: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def segment_folder(
    model: SegmentationModel, folder: Path, results: Path, device: str
) -> Generator[Any, None, FolderOutcome]:
    """Segment all scans of a folder; those that cannot be used are skipped."""
    from napari_s2dc.engine.cli_labels import LABEL_MAP_ENDINGS
    from napari_s2dc.engine.cli_scans import MAPS, refuse_to_replace, scans_in, targets_of
    from napari_s2dc.engine.segment_files import SegmentationFiles, maker_name, segment_file

    scans = scans_in([str(folder)])
    ending = LABEL_MAP_ENDINGS["nii.gz"]
    targets = targets_of(scans, str(results), MAPS, ending, option="the results")
    refuse_to_replace(targets, [scan.path for scan in scans])
    maker = maker_name(model, model.segment)
    outcome = FolderOutcome()
    for number, (scan, target) in enumerate(zip(scans, targets, strict=True)):
        progress = Progress(number, len(scans), "scans")
        yield progress
        files = SegmentationFiles(target)
        try:
            steps = segment_file(scan.path, files, model, model.segment, maker, device)
            facts = yield from as_one(steps, progress)
        except SCAN_ERRORS as error:
            outcome.skipped.append(f"{scan.path.name} ({reason_of(error)})")
            continue
        outcome.done += 1
        outcome.kept += facts["kept"]
        if facts.get("warning"):
            outcome.unlike.append(f"{scan.path.name} ({facts['warning']})")
    return outcome


def places(
    found: Segmentation,
    painted: Any | None,
    scan: LayerSnapshot,
    model: SegmentationModel,
    device: str,
    ready: Ready | None,
    embedding: Embedding | None,
) -> Generator[Any, None, list[PlaceToLabel]]:
    """Find the places where a label would help most.

    Parameters
    ----------
    found : Segmentation
        Of the scan.
    painted : array-like or None
        Labels on the finest grid of the scan's layer.
    scan : LayerSnapshot
        What was segmented.
    model : SegmentationModel
        What it was segmented with.
    device : str
        Where the scan is embedded, should it not be.
    ready : Ready or None
        Features of Quick.
    embedding : Embedding or None
        Of the scan's layer, at whatever resolution.
    """
    from napari_s2dc.engine.embed import EmbedSettings, embed_volume
    from napari_s2dc.engine.label_next import places_to_label

    shape = found.labels.shape
    known = [embedding, *(() if ready is None else ready.features.embeddings)]
    fitting = [one for one in known if one is not None and one.shape == shape]
    if fitting:
        features = min(fitting, key=lambda one: abs(one.stride - _PLACE_VOX))
    else:
        settings = EmbedSettings(preset=model.preset, device=device)
        features = yield from embed_volume(scan.load(), model.encoder, settings)
    if painted is None:
        labels = np.zeros(shape, np.uint8)
    else:
        labels = at_level(np.asarray(painted), shape, complete=False)
    return places_to_label(found.uncertainty, labels, features)


def compare(
    found: Any,
    reference: Any,
    affine: np.ndarray,
    name: str,
    names: Mapping[int, str],
    names_there: Mapping[int, str],
) -> Evaluation:
    """Compare labels with a reference on their grid, over the classes that they know.

    Parameters
    ----------
    found, reference : array-like
        Integers.
    affine : np.ndarray (4, 4)
        Voxels to mm.
    name : str
        Of the labels that are judged.
    names, names_there : mapping
        Of the classes of both, by label.
    """
    from napari_s2dc.engine.evaluate import evaluate_labels
    from napari_s2dc.volumes.volume import Volume

    judged, array = np.asarray(found), np.asarray(reference)
    truth = np.zeros(array.shape, judged.dtype)
    for label, partner in _partners({*names, *counted(judged, name)}, names, names_there).items():
        truth[array == partner] = label
    return evaluate_labels(
        Volume(judged, affine, name=name), Volume(truth, affine, name="the reference")
    )


def _partners(
    labels: set[int], names: Mapping[int, str], names_there: Mapping[int, str]
) -> dict[int, int]:
    """Give the class of the reference for every class.

    By name where the reference has all of them, so that liver is compared with liver whatever
    their numbers are; else by number.
    """
    there = {name.casefold(): label for label, name in names_there.items()}
    by_name = {label: there.get(names.get(label, "").casefold()) for label in labels - {0}}
    found = {label: other for label, other in by_name.items() if other is not None}
    return found if len(found) == len(by_name) else {label: label for label in by_name}
