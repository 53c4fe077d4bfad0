"""Which labels of a viewer belong to which scan, and scans that are learned from besides one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet, ref

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QListWidget, QListWidgetItem, QSizePolicy, QWidget

from napari_s2dc.widgets.layer_combo import letters_alike
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.segment_layers import LayerGrids

__all__ = ["MoreScans", "called_after", "pair_up"]

_ROWS = 4
"""Shown at once; the list scrolls."""

_SPACING_PIXELS = 2

_TICK = {True: Qt.CheckState.Checked, False: Qt.CheckState.Unchecked}

Pair = tuple[Any, Any]


_NUMBER = re.compile(r" \[\d+\]$")
"""Ends the name of a layer where napari had another one of that name already."""


def called_after(labels: Any, images: Iterable[Any]) -> list[Any]:
    """Give the scans that labels are called after: one name begins with the other as a whole.

    Parameters
    ----------
    labels : napari Labels layer
        Any.
    images : iterable of napari layer
        Scans.

    Returns
    -------
    list of Image layer
        Those with the longest name in common; several where they are channels of one scan, or
        files of one name.
    """
    name = _NUMBER.sub("", str(labels.name))
    found = [(_shared_name(name, _NUMBER.sub("", str(one.name))), one) for one in images]
    longest = max((length for length, _ in found), default=0)
    return [one for length, one in found if length == longest and length]


def _shared_name(one: str, other: str) -> int:
    """Letters of the shorter name where the longer one begins with it, whole words only; else 0."""
    short, long = sorted((one, other), key=len)
    rest = long[len(short) :]
    return len(short) if long.startswith(short) and not rest[:1].isalnum() else 0


def pair_up(
    images: Iterable[Any], labels: Iterable[Any], chosen_for: Callable[[Any], Any | None]
) -> list[Pair]:
    """Give every scan labels of its own, where there are any on its grid.

    Parameters
    ----------
    images, labels : iterable of napari layer
        Scans, and the labels that may be learned from.
    chosen_for : callable
        Gives the labels that the user has chosen for a scan, or None.

    Returns
    -------
    list of (Image layer, Labels layer)
        In the order of `images`. Labels that were chosen first, then those with the name most like
        that of the scan, but none that are called after another one; no labels twice.
    """
    images, labels = list(images), list(labels)
    grids = LayerGrids()
    found: dict[Any, Any] = {}
    chosen = [(image, chosen_for(image)) for image in images]
    fitting = []
    for layer in labels:
        there = [image for image in images if grids.alike(layer, image)]
        fitting += [(image, layer) for image in called_after(layer, there) or there]
    fitting.sort(key=lambda pair: letters_alike(pair[1], str(pair[0].name)), reverse=True)
    for image, layer in chosen + fitting:
        if layer in labels and image not in found and layer not in found.values():
            found[image] = layer
    return [(image, found[image]) for image in images if image in found]


class MoreScans(QListWidget):
    """Labelled scans of the viewer, to be ticked where they are learned from besides the chosen."""

    pairs_changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._together: WeakSet[Any] = WeakSet()  # scans, the chosen one among them or not
        self._offered: list[tuple[ref[Any], ref[Any]]] = []
        self._entries: list[tuple[str, str, bool]] = []  # as shown
        self._chosen: ref[Any] | None = None
        self.setToolTip(
            "Scans with labels on their grid that are learned from, too.\n"
            "0 and the background mean the same in all of them."
        )
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSpacing(_SPACING_PIXELS)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setSelectionMode(QListWidget.SelectionMode.NoSelection)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.itemChanged.connect(self._on_ticked)

    @property
    def pairs(self) -> list[Pair]:
        """Image and labels layer of every scan that is ticked."""
        return [pair for pair in self._pairs if self._is_ticked(pair[0])]

    @property
    def _pairs(self) -> list[Pair]:
        """What is offered, without layers that are gone."""
        pairs = ((image(), labels()) for image, labels in self._offered)
        return [(one, other) for one, other in pairs if one is not None and other is not None]

    def _is_ticked(self, image: Any) -> bool:
        """Whether a scan is learned from together with the chosen one."""
        chosen = None if self._chosen is None else self._chosen()
        return chosen is not None and {chosen, image} <= set(self._together)

    def offer(self, pairs: Sequence[Pair], chosen: Any | None) -> None:
        """Renew the list; `chosen` is the scan that is learned from in any case.

        Scans that were put together stay so, whichever of them is chosen.
        """
        self._chosen = None if chosen is None else ref(plain(chosen))
        self._offered = [(ref(plain(image)), ref(plain(labels))) for image, labels in pairs]
        entries = [
            (_words(str(image.name), str(labels.name)), str(labels.name), self._is_ticked(image))
            for image, labels in self._pairs
        ]
        if entries == self._entries:
            return
        self._entries = entries
        blocked = self.blockSignals(True)
        self.clear()
        for (words, labels, ticked), (image, _) in zip(entries, self._pairs, strict=True):
            item = QListWidgetItem(words, self)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(_TICK[ticked])
            item.setToolTip(f"{labels} on {image.name}\n{self.toolTip()}")
        self.blockSignals(blocked)
        height = max(self.sizeHintForRow(0), self.fontMetrics().height()) + 2 * self.spacing()
        rows = min(_ROWS, max(1, self.count()))
        self.setFixedHeight(rows * height + 2 * (self.frameWidth() + self.spacing()))

    def _on_ticked(self, item: QListWidgetItem) -> None:
        self._entries = []  # no longer as it was filled
        image = self._offered[self.row(item)][0]()
        chosen = None if self._chosen is None else self._chosen()
        if image is None or chosen is None:
            return
        if chosen not in self._together:
            self._together = WeakSet({chosen})
        if item.checkState() == _TICK[True]:
            self._together.add(image)
        else:
            self._together.discard(image)
        self.pairs_changed.emit()


def _words(image: str, labels: str) -> str:
    """Name a scan, and its labels where they are not called after it."""
    return image if labels.startswith(image) else f"{image} ({labels})"
