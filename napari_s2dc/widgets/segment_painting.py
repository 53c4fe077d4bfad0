"""The labels that are painted: their layer, its classes, what 0 means, and when a stroke ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from napari_s2dc.errors import SCAN_ERRORS, reason_of
from napari_s2dc.widgets.layer_combo import most_alike
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.segment_classes import ClassRow
from napari_s2dc.widgets.segment_layers import (
    LayerGrids,
    SegmentLayers,
    colours_of,
    finest,
    name_class,
    names_of,
    recolour_class,
    slice_on_screen,
)
from napari_s2dc.widgets.segment_meaning import UNLABELLED, Meaning, likely_meaning
from napari_s2dc.widgets.segment_pairs import called_after
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_use import counted
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Labels, Layer

__all__ = ["PaintingActions"]

_COUNTING = "segment classes"
_REST_MS = 300
"""A stroke has ended: only then it is looked at."""


class PaintingActions(QObject):
    """Carry out what the Segment tab asks for about labels.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    layers : SegmentLayers
        Adds layers.
    jobs : Jobs
        Threads.
    volume, volumes : callable
        Give the volume chosen in the header, and all that can be chosen.
    tell : callable
        Shows a sentence to the user.
    """

    changed = Signal()
    """Another labels layer, or its classes, or what they mean."""
    undone = Signal(object)
    """A layer has other voxels than before without a stroke, such as after undo."""
    painted = Signal()
    """Other voxels are labelled than before, and the mouse has come to rest."""

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        layers: SegmentLayers,
        jobs: Jobs,
        volume: Callable[[], Layer | None],
        volumes: Callable[[], list[Any]],
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._layers, self._jobs = session, tab, layers, jobs
        self._volume, self._volumes, self._tell = volume, volumes, tell
        self._meanings: WeakKeyDictionary[Any, Meaning] = WeakKeyDictionary()
        self._chosen: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()  # for a volume
        self._followed: Any | None = None
        self._strokes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._counted: WeakKeyDictionary[Any, tuple[int, dict[int, int]]] = WeakKeyDictionary()
        self._refused: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._place: tuple[Any, ...] = ()
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST_MS)
        self._rest.timeout.connect(self._count)
        tab.labels_changed.connect(self._on_labels)
        tab.labels.activated.connect(self._on_chosen)  # by the user, not by the program
        tab.shown.connect(self._count_soon)  # later, once the first picture is on the screen
        tab.new_labels_wanted.connect(self.new_labels)
        tab.class_wanted.connect(self._add_class)
        tab.meaning_changed.connect(self._on_meaning)
        tab.classes.renamed.connect(self._rename)
        tab.classes.recoloured.connect(self._recolour)
        tab.classes.chosen.connect(self._paint_with)

    # ------------------------------------------------------------------------- what there is
    @property
    def labels(self) -> Any | None:
        """The chosen labels layer."""
        return self._tab.labels.layer

    @property
    def counts(self) -> dict[int, int] | None:
        """Voxels of every class of the chosen layer, None until they are counted."""
        return None if self.labels is None else self.counts_of(self.labels)

    def counts_of(self, layer: Labels) -> dict[int, int] | None:
        """Voxels of every class of a layer as they were last counted, None before."""
        known = self._counted.get(plain(layer))
        return None if known is None else known[1]

    @property
    def problem(self) -> str:
        """Why the voxels of the chosen layer could not be counted; else empty."""
        return "" if self.labels is None else self._refused.get(self.labels, "")

    def meaning_of(self, layer: Labels) -> Meaning:
        """Say what the labels of a layer mean: as chosen, or as its file and names suggest."""
        return self._meanings.get(layer) or likely_meaning(layer)

    def known_meaning_of(self, layer: Labels) -> Meaning | None:
        """Say what the labels of a layer mean, None where nothing tells.

        Who has painted in a layer has seen what the tab says of it.
        """
        meaning, told = self.meaning_of(layer), layer in self._meanings or layer in self._strokes
        return meaning if told or meaning != Meaning() else None

    def offer(self, layers: Iterable[Layer]) -> None:
        """Renew the choices after layers came, went or changed name."""
        self._tab.labels.offer(layers)
        self.suggest()
        allow(self._tab.new_button, "" if self._volume() is not None else "Open a 3D image first")

    def suggest(self, _: object = None) -> None:
        """Choose the labels on the grid of the volume with the name most like its own.

        Those that the user has chosen, made or painted in for this volume are chosen again; those
        of another scan only where there are no others.
        """
        image = self._volume()
        if image is None:
            return
        known, grids = self.chosen_for(image), LayerGrids()
        if known is not None:
            self._tab.labels.choose(known)
            return
        fitting = [
            one
            for one in (self.labels, *self._tab.labels.layers)  # equally alike: as it is
            if one is not None and grids.alike(one, image)
        ]
        if fitting:
            own = [one for one in fitting if self.other_scan_of(one, grids) is None]
            self._tab.labels.choose(most_alike(own or fitting, str(image.name)))

    def chosen_for(self, image: Layer) -> Any | None:
        """Give the labels that the user has chosen, made or painted in for a volume."""
        known = self._chosen.get(plain(image))
        layer = None if known is None else known()
        return layer if layer is not None and layer in self._tab.labels.layers else None

    def other_scan_of(self, labels: Labels, grids: LayerGrids | None = None) -> Any | None:
        """Give the other scan on their grid that labels are of, None where they fit the volume.

        They are of the scan that they were chosen, made or painted in for, else of the one that
        they are called after. Several scans may lie on one grid, such as brains of an atlas.
        """
        image = self._volume()
        if image is None or self.chosen_for(image) is labels:
            return None
        grids = grids or LayerGrids()
        scans = [one for one in self._volumes() if grids.alike(labels, one)]
        if image not in scans:
            return None
        others = [one for one in scans if self.chosen_for(one) is labels]
        others = others or called_after(labels, scans)
        return None if not others or image in others else others[0]

    def settle(self, image: Layer, labels: Labels) -> None:
        """Remember labels as those of a scan."""
        self._chosen[plain(image)] = ref(plain(labels))

    def keep_labels(self) -> None:
        """Remember the chosen labels as those of the volume, where nothing speaks against it."""
        image, labels = self._volume(), self.labels
        if image is None or labels is None or not LayerGrids().alike(labels, image):
            return
        if self.other_scan_of(labels) is None:
            self.settle(image, labels)

    def _on_chosen(self, _: object = None) -> None:
        image = self._volume()
        if image is not None and self.labels is not None:
            self.settle(image, self.labels)  # the user has the last word
        self.changed.emit()

    def scan_of(self, labels: Labels, path: str) -> Any | None:
        """Give the scan on their grid that labels were painted on, None where none may be it.

        It was read from `path`, else they are called after it, else it is the volume.
        """
        volume, grids = self._volume(), LayerGrids()
        scans = [one for one in self._volumes() if grids.alike(labels, one)]
        of_file = [one for one in scans if str(one.metadata.get("s2dc", {}).get("path")) == path]
        found = of_file or called_after(labels, scans) or [one for one in scans if one is volume]
        return volume if volume in found else next(iter(found), None)

    def take(self, layer: Labels, meaning: Meaning, image: Layer | None) -> None:
        """Take in a labels layer whose meaning is known, as that of a scan where it is of one.

        It is chosen, unless it is of another scan than the volume.
        """
        self._meanings[plain(layer)] = meaning
        if image is not None:
            self.settle(image, layer)
        of_other = image is not None and plain(image) is not self._volume()
        if not of_other and self._tab.labels.choose(layer):
            self._show_classes()

    # --------------------------------------------------------------------- what is asked for
    def new_labels(self) -> None:
        """Add a layer to paint in on the grid of the chosen volume, and choose it."""
        source = self._volume()
        if source is None:
            return
        layer = self._layers.new_labels(source)
        self.take(layer, Meaning(UNLABELLED, 1), source)
        self._session.viewer.layers.selection.active = layer
        self._tell(
            "Take napari's brush and paint a few strokes of every class, the background too; "
            "click a class in the table to paint with it."
        )

    def _add_class(self) -> None:
        layer = self.labels
        if layer is None:
            return
        label = max((row.label for row in self._tab.classes.rows), default=0) + 1
        if label > np.iinfo(layer.data.dtype).max:
            self._tell(f"{layer.name} cannot hold class {label}.")
            return
        name_class(layer, {label: f"class {label}"})
        self._paint_with(label)

    def _rename(self, label: int, name: str) -> None:
        if self.labels is not None:
            name_class(self.labels, {label: name})

    def _recolour(self, label: int, colour: tuple[float, float, float]) -> None:
        if self.labels is not None:
            recolour_class(self.labels, label, colour, self.counts or ())

    def _paint_with(self, label: int) -> None:
        layer = self.labels
        if layer is not None:
            layer.selected_label = label
            self._session.viewer.layers.selection.active = layer  # napari's brush works on it

    def _on_meaning(self) -> None:
        layer = self.labels
        if layer is None:
            return
        zero, background = self._tab.zero.currentData(), self._tab.background.currentData()
        known = self.meaning_of(layer)
        # The other choice is kept for when it has a say again.
        chosen = replace(known, background=background) if zero == UNLABELLED else known
        self._meanings[layer] = replace(chosen, zero=zero)
        self._show_classes()

    # ------------------------------------------------------------------------- following it
    def follow(self, on: bool) -> None:
        """Follow the chosen layer while the panel is shown."""
        self._let_go()
        if on:
            self._on_labels()

    def _let_go(self) -> None:
        self._rest.stop()
        self._jobs.cancel(_COUNTING)
        layer, self._followed = self._followed, None
        if layer is not None:
            for emitter, callback in self._emitters(layer):
                emitter.disconnect(callback)

    def _emitters(self, layer: Any) -> list[tuple[Any, Callable[[Any], None]]]:
        events = layer.events
        return [
            (events.paint, self._on_paint),
            (events.data, self._on_paint),
            (events.set_data, self._on_drawn),
            (events.features, self._show_classes),
            (events.colormap, self._show_classes),
            (events.selected_label, self._show_classes),
        ]

    def _on_labels(self) -> None:
        layer = self.labels
        if layer is self._followed and layer is not None:
            return
        self._let_go()
        self._followed = layer
        if layer is not None:
            self._place = slice_on_screen(self._session.viewer)
            for emitter, callback in self._emitters(layer):
                emitter.connect(callback)
            self._count_soon()
        self._show_classes()

    def _on_paint(self, _: object = None) -> None:
        layer = self._followed
        self._strokes[layer] = self._strokes.get(layer, 0) + 1
        self._rest.start()

    def _on_drawn(self, _: object = None) -> None:
        """Count after undo, which tells of itself in no other way; not where a slice comes up."""
        before, self._place = self._place, slice_on_screen(self._session.viewer)
        if self._place == before:
            self._count_soon()

    def _count_soon(self) -> None:
        """Count where anyone sees it; what is painted is counted in any case."""
        if self._tab.isVisible():
            self._rest.start()

    def _count(self) -> None:
        layer = self.labels
        if layer is None:
            return
        if self._jobs.is_due(_COUNTING):  # not cancelled: who paints fast is heard too
            self._rest.start()
            return
        data, name, strokes = finest(layer), str(layer.name), self._strokes.get(layer, 0)

        def count() -> dict[int, int] | str:
            try:
                return counted(data, name)
            except SCAN_ERRORS as error:
                return reason_of(error)

        def done(counts: dict[int, int] | str) -> None:
            if self.labels is not layer:
                return
            if isinstance(counts, str):
                self._refused[layer] = counts
                self._counted.pop(layer, None)
                self._show_classes()
                return
            self._refused.pop(layer, None)
            known = self._counted.get(layer)
            self._counted[layer] = strokes, counts
            strokes_before, before = known or (0, counts)
            if before != counts and strokes == strokes_before:  # undone, or painted unwatched
                self.undone.emit(layer)
            if before != counts or strokes != strokes_before:
                self.keep_labels()
                self.painted.emit()
            if known is None or before != counts:
                self._show_classes()

        self._jobs.run(_COUNTING, f"Counting {name}", count, done, quiet=True)

    def _show_classes(self, _: object = None) -> None:
        """Show classes and meaning of the chosen layer; asks for nothing."""
        layer, tab = self.labels, self._tab
        why = "" if layer is not None else "Make or choose a labels layer first"
        tab.allow_classes(why)
        if layer is None:
            tab.classes.show_classes((), 0)
            tab.show_backgrounds((), None)
        else:
            names, counts = names_of(layer), self.counts or {}
            rows = [
                ClassRow(label, names.get(label, ""), colour, counts.get(label, 0))
                for label, colour in colours_of(layer, {*names, *counts} - {0}).items()
            ]
            tab.classes.show_classes(rows, int(layer.selected_label))
            meaning = self.meaning_of(layer)
            tab.zero.setCurrentIndex(tab.zero.findData(meaning.zero))
            tab.show_backgrounds([(row.label, row.name) for row in rows], meaning.background)
        self.changed.emit()
