"""The structure round a click: a preview that follows the threshold, and writing it to labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject
from qtpy.QtGui import QKeySequence

from napari_s2dc.widgets.probe_actions import ProbeActions
from napari_s2dc.widgets.probe_tab import ProbeTab
from napari_s2dc.widgets.segment_layers import finest
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["StructureActions"]


@dataclass(frozen=True)
class _Structure:
    """A structure on the finest grid of its layer.

    Parameters
    ----------
    mask : np.ndarray (Z, Y, X)
        uint8, 1 inside.
    voxels : tuple of 3 np.ndarray
        Indices of the inside.
    threshold : float
        Similarity it was cut at.
    """

    mask: np.ndarray
    voxels: tuple[np.ndarray, ...]
    threshold: float


class StructureActions(QObject):
    """Carry out what the Structure box of the Consistency tab asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : ProbeTab
        Controls.
    probe : ProbeActions
        What was clicked.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: ProbeTab,
        probe: ProbeActions,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._probe, self._jobs = session, tab, probe, jobs
        self._tell = tell
        self._threshold: float | None = None  # None for Otsu's
        self._found: _Structure | None = None
        self._stale = False
        probe.structure_changed.connect(self.update)
        tab.preview_changed.connect(self._on_preview)
        tab.threshold_changed.connect(self._on_threshold)
        tab.otsu_wanted.connect(lambda: self._on_threshold(None))
        tab.add_wanted.connect(self.add)

    def _on_preview(self, on: bool) -> None:
        if on:
            self.update()
            return
        self._remove_previews()
        self._forget("Switch the preview on first")

    def _remove_previews(self) -> None:
        overlays = self._session.overlays
        overlays.remove_all(self._session.viewer.layers, "structure")

    def _on_threshold(self, value: float | None) -> None:
        self._threshold = value
        self.update()

    def _forget(self, why: str) -> None:
        self._found = None
        self._tab.show_structure(False, why)

    def update(self) -> None:
        """Find the structure anew in a thread; while one is being found, the next waits."""
        home, similarity = self._probe.home, self._probe.similarity
        embedded = self._session.embedded(home)
        if home is None or similarity is None or embedded is None:
            self._remove_previews()
            self._forget("Probe a patch first")
            return
        if not self._tab.preview.isChecked():
            self._forget("Switch the preview on first")
            return
        if self._jobs.is_running("structure"):
            self._stale = True
            return
        self._stale = False
        threshold, voxel = self._threshold, self._probe.voxel
        values = similarity.copy()

        def find() -> _Structure:
            return _find(embedded, values, voxel, threshold)

        def done(found: _Structure) -> None:
            if self._stale:
                self.update()
            # Meanwhile another scan may have been clicked, or everything cleared.
            if self._probe.home is home and self._tab.preview.isChecked():
                self._show(home, found)

        self._jobs.run("structure", "Finding the structure", find, done, quiet=True)

    def _show(self, home: Layer, found: _Structure) -> None:
        from napari_s2dc.widgets.layers import geometry_of

        self._found = found
        self._session.overlays.show_labels(
            home, "structure", "structure", found.mask, geometry_of(home)
        )
        if self._threshold is None:
            self._tab.show_threshold(found.threshold)
        empty = not len(found.voxels[0])
        self._tab.show_structure(True)
        if empty:
            self._tab.add_button.setEnabled(False)
            self._tab.add_button.setToolTip("Nothing is that similar; lower the threshold")

    def add(self, label: int) -> None:
        """Write the previewed structure into the chosen Labels layer, as one step for undo."""
        home, found = self._probe.home, self._found
        if home is None or found is None:
            return
        target = self._tab.target.layer
        if finest(home).shape != found.mask.shape:
            self._tell(
                f"{home.name} has another size than the structure; embed and probe it again."
            )
        elif target is None:
            self._write(self._session.overlays.new_labels(home, "structures"), found, label)
        elif finest(target).shape != found.mask.shape:
            self._tell(f"{target.name} does not lie on the grid of {home.name}; choose another.")
        elif not target.data.flags.writeable:  # such as a file that was mapped into memory
            self._tell(f"The data of {target.name} cannot be changed; choose another layer.")
        elif label > np.iinfo(target.data.dtype).max:
            self._tell(f"{target.name} cannot hold class {label}; use a smaller number.")
        else:
            self._write(target, found, label)

    def _write(self, target: Any, found: _Structure, label: int) -> None:
        self._session.overlays.write_labels(target, found.voxels, label)
        self._tab.target.choose(target)
        # napari's undo works on the active layer
        self._session.viewer.layers.selection.active = target
        # On macOS these are other keys with symbols of their own
        undo = QKeySequence("Ctrl+Z").toString(QKeySequence.SequenceFormat.NativeText)
        self._tell(
            f"Wrote class {label} into {target.name}, {len(found.voxels[0]):,} voxels; "
            f"{undo} takes it back."
        )


def _find(
    embedded: Embedded,
    similarity: np.ndarray,
    voxel: tuple[int, int, int],
    threshold: float | None,
) -> _Structure:
    """Structure round a clicked voxel, on the finest grid of the layer."""
    from napari_s2dc.engine.probe import structure_mask

    embedding = embedded.embedding
    offset = np.asarray(embedding.offset_vox)
    part, used = structure_mask(
        similarity,
        embedding.shape,
        embedding.stride,
        tuple(np.asarray(voxel) - offset),
        threshold,
        foreground=embedding.foreground,
    )
    mask = np.zeros(embedded.source.shape, dtype=np.uint8)
    target = tuple(
        slice(first, first + size) for first, size in zip(offset, embedding.shape, strict=True)
    )
    mask[target] = part
    if any(factor != 1 for factor in embedded.source.factors):
        places = [
            np.minimum((np.arange(round(size * factor)) / factor).astype(int), size - 1)
            for size, factor in zip(mask.shape, embedded.source.factors, strict=True)
        ]
        mask = mask[np.ix_(*places)]
    return _Structure(mask, np.nonzero(mask), used)
