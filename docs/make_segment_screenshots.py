"""Make the pictures of segmenting from a few strokes from the running program.

    xvfb-run -a -s "-screen 0 1920x1200x24" .venv/bin/python docs/make_segment_screenshots.py

Paints five strokes on a sample torso, trains Quick, corrects it with a few more, asks where to
label next, and compares what was found in both torsos with their labels; prints the figures and
times that the tutorial gives. Options as for make_screenshots.py, whose pictures show the rest of
the workbench.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import make_match_screenshots as pair
import make_screenshots as base
import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label as connected

from napari_s2dc.volumes.phantom import LABELS
from napari_s2dc.widgets.commands import open_segment
from napari_s2dc.widgets.segment_actions import TRAINING
from napari_s2dc.widgets.workbench import Workbench

CLASSES = {
    "background": (0.5, 0.9, 0.4),
    "liver": (0.95, 0.4, 0.25),
    "right kidney": (1.0, 0.85, 0.2),
    "left kidney": (0.2, 0.85, 0.9),
}
"""Classes from 1 on and their colours; names as the sample's labels have them."""

_WALL = 0.05
"""Depth of the stroke along the wall of the body, as a share of the width of the scan."""
_CORRECTIONS = 4
"""Strokes in other slices after the first correction."""


def make_pictures(
    out: Path,
    theme: str,
    size: tuple[int, int],
    encoder: Path | None = None,
    *,
    small: bool = False,
) -> list[Path]:
    """Walk through the Segment tab once and photograph it.

    Parameters
    ----------
    out : Path
        Folder for the pictures.
    theme : str
        napari's theme.
    size : tuple of int
        Width and height of the window in pixels.
    encoder : Path, optional
        Checkpoint to open.
    small : bool
        Use small scans.

    Returns
    -------
    list of Path
        What was written.
    """
    with base.window(out, theme, size) as (viewer, shoot, written):
        one, two, organs = pair.open_pair(viewer, small)
        viewer.layers.selection.active = one
        open_segment()
        workbench = pair.with_encoder(viewer, encoder)
        _fit(viewer)
        tab, training = workbench.segment_tab, workbench.segmenting.training
        tab.new_button.click()
        truth = _as_classes(organs.data)
        plane = _telling_plane(truth)
        _go_to(viewer, one, plane)
        _paint_strokes(workbench, truth[plane], organs.data[plane] > 0, plane)
        tab.largest.click()
        shoot("strokes")

        begun = time.monotonic()
        tab.train_button.click()
        base._until(lambda: training.found_in(one) is not None, 300, "the torso is segmented")
        print(f"trained and segmented after {time.monotonic() - begun:.1f} s")
        shoot("segmented")
        _compare(workbench, organs)

        tab.refresh.click()
        _correct(workbench, one, truth, [plane])
        shoot("corrected")
        _compare(workbench, organs)

        uncertainty = pair.find(viewer, "torso 1 CT – uncertainty")
        uncertainty.visible = True
        tab.next_button.click()
        base._until(lambda: "Place 1" in workbench.message.text(), 300, "a place is shown")
        _in_sight(workbench, tab.next_button)
        shoot("uncertain")
        uncertainty.visible = False
        for _ in range(_CORRECTIONS):
            _correct(workbench, one, truth, range(len(truth)))
        _compare(workbench, organs)

        begun = time.monotonic()
        tab.models.menu.aboutToShow.emit()
        apply = next(entry for entry in tab.models.menu.actions() if entry.text() == two.name)
        apply.trigger()
        base._until(lambda: training.found_in(two) is not None, 300, "the other is segmented")
        print(f"the other torso after {time.monotonic() - begun:.1f} s")
        workbench.header.volume.choose(two)
        for layer in viewer.layers:
            layer.visible = layer.name in ("torso 2 CT", "torso 2 CT – segmentation")
        other = viewer.layers["torso 2 labels"]
        _fit(viewer)
        _go_to(viewer, two, _telling_plane(_as_classes(other.data)))
        _compare(workbench, other)
        _in_sight(workbench, tab.scores)
        shoot("compared")
    return written


def _as_classes(organs: np.ndarray) -> np.ndarray:
    """Give the sample's organs the numbers of the strokes; all else is background."""
    numbers = {name: number for number, name in enumerate(CLASSES, start=1)}
    table = np.ones(max(LABELS) + 1, np.uint8)
    for label, name in LABELS.items():
        table[label] = numbers.get(name, 1)
    return table[organs]


def _telling_plane(truth: np.ndarray) -> int:
    """Slice that shows much of every organ."""
    sizes = np.stack([(truth == number).sum(axis=(1, 2)) for number in range(2, len(CLASSES) + 1)])
    return int((sizes / sizes.max(axis=1, keepdims=True)).sum(axis=0).argmax())


def _fit(viewer: Any) -> None:
    """Let the body fill the canvas; the air round it need not be seen."""
    viewer.reset_view()
    viewer.scene.camera.zoom *= 1.25


def _go_to(viewer: Any, image: Any, plane: int) -> None:
    """Show a slice."""
    viewer.dims.set_point(0, float(image.data_to_world((plane, 0, 0))[0]))


def _in_sight(workbench: Workbench, control: Any) -> None:
    """Scroll to a control once everything has its place."""
    base._settle(0.5)
    workbench.tabs.currentWidget().ensureWidgetVisible(control)


def _paint_strokes(workbench: Workbench, truth: np.ndarray, body: np.ndarray, plane: int) -> None:
    """Name the classes and paint one stroke of each, two of background, as a person would."""
    tab = workbench.segment_tab
    strokes = tab.labels.layer
    strokes.mode = "paint"
    strokes.brush_size = 3
    for number, (name, colour) in enumerate(CLASSES.items(), start=1):
        if tab.classes.rowCount() < number:
            tab.class_button.click()
        tab.classes.item(number - 1, 2).setText(name)
        tab.classes.recoloured.emit(number, colour)
        if number == 1:
            _stroke(strokes, plane, _through_the_body(truth), number)
            _stroke(strokes, plane, _along_the_wall(truth, body), number)
        else:
            _stroke(strokes, plane, _along(truth == number), number)
    base._until(tab.train_button.isEnabled, 60, "the strokes are counted")


def _through_the_body(truth: np.ndarray) -> np.ndarray:
    """Places (y, x) from front to back, beside the organs, from air to air."""
    height, width = truth.shape
    middle = slice(2 * width // 5, 3 * width // 5)
    column = middle.start + int((truth[:, middle] > 1).sum(axis=0).argmin())
    rows = np.arange(height // 10, 9 * height // 10)
    free = rows[truth[rows, column] == 1]
    return np.stack([free, np.full_like(free, column)], axis=1)


def _along_the_wall(truth: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Places (y, x) round the body, a little below the skin."""
    depth = distance_transform_edt(body)
    wanted = _WALL * body.shape[1]
    return np.argwhere((depth > wanted) & (depth <= wanted + 1) & (truth == 1))


def _along(structure: np.ndarray) -> np.ndarray:
    """Places (y, x) along the middle of a structure, from end to end."""
    depth = distance_transform_edt(structure)
    mask = depth >= min(2.0, depth.max())
    rows, columns = np.nonzero(mask)
    flat = np.ptp(columns) >= np.ptp(rows)
    along, across = (columns, rows) if flat else (rows, columns)
    first, last = np.quantile(along, (0.02, 0.98)).astype(int)
    steps = [step for step in range(first, last + 1) if (along == step).any()]
    middle = [int(np.median(across[along == step])) for step in steps]
    places = np.stack([middle, steps] if flat else [steps, middle], axis=1)
    inside = places[mask[tuple(places.T)]]
    gaps = np.flatnonzero(np.abs(np.diff(inside, axis=0)).max(axis=1) > 2) + 1
    return max(np.split(inside, gaps), key=len)


def _stroke(layer: Any, plane: int, places: np.ndarray, number: int) -> None:
    """Draw with napari's brush, as one step for undo."""
    with layer.block_history():
        for row, column in places:
            layer.paint((plane, int(row), int(column)), number)


def _correct(workbench: Workbench, image: Any, truth: np.ndarray, planes: Sequence[int]) -> None:
    """Draw a straight stroke through the largest mistake in some planes, and wait for the result.

    The stroke has the class that belongs there.
    """
    training, jobs = workbench.segmenting.training, workbench.jobs
    found = training.found_in(image)
    plane, mistake = _largest_mistake(found.labels, truth, planes)
    number = int(truth[plane][mistake][0])
    _go_to(workbench._viewer, image, plane)
    begun = time.monotonic()
    _stroke(workbench.segment_tab.labels.layer, plane, _straight_through(mistake), number)
    base._until(lambda: jobs.is_running(TRAINING), 60, "a training has begun")
    base._until(lambda: not jobs.is_running(TRAINING), 300, "the slice is segmented")
    slice_after = time.monotonic() - begun
    base._until(lambda: training.found_in(image) is not found, 300, "the volume is segmented")
    print(
        f"{list(CLASSES)[number - 1]} painted in slice {plane}: "
        f"slice after {slice_after:.1f} s, volume after {time.monotonic() - begun:.1f} s"
    )


def _largest_mistake(
    found: np.ndarray, truth: np.ndarray, planes: Sequence[int]
) -> tuple[int, np.ndarray]:
    """Plane, and mask (Y, X) within it, of the largest patch that should have another class."""
    best, where, largest = 0, planes[0], np.ones(truth.shape[1:], bool)
    for plane in planes:
        wanted = truth[plane]
        wrong = np.where(found[plane] != np.where(wanted == 1, 0, wanted), wanted, 0)
        patches = connected(wrong, background=0)
        sizes = np.bincount(patches.ravel())[1:]
        if sizes.max(initial=0) > best:
            best, where, largest = sizes.max(), plane, patches == sizes.argmax() + 1
    return where, largest


def _straight_through(mask: np.ndarray) -> np.ndarray:
    """Places (y, x) of the longest run along a row or a column."""
    runs = []
    for turned in (mask, mask.T):
        apart = np.zeros((2 * len(turned), turned.shape[1]), bool)
        apart[::2] = turned  # rows that do not touch
        parts = connected(apart, connectivity=1)
        places = np.argwhere(parts == np.bincount(parts.ravel())[1:].argmax() + 1) // (2, 1)
        runs.append(places if turned is mask else places[:, ::-1])
    return max(runs, key=len)


def _compare(workbench: Workbench, reference: Any) -> None:
    """Compare with a labels layer and print the figures."""
    scores = workbench.segment_tab.scores
    scores.reference.choose(reference)
    scores.compare_button.click()
    base._until(lambda: scores.table.rowCount() > 0, 120, "the figures are shown")
    print(scores.as_text())


if __name__ == "__main__":
    sys.exit(base.main(__doc__, make_pictures))
