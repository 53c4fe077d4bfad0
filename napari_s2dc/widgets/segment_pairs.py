"""Which labels of a viewer belong to which scan, and scans that are learned from besides one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QListWidget, QListWidgetItem, QSizePolicy, QWidget

from napari_s2dc.widgets.layer_combo import letters_alike
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.segment_layers import LayerGrid

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
    grids = {layer: LayerGrid.of(layer) for layer in (*images, *labels)}
    found: dict[Any, Any] = {}
    chosen = [(image, chosen_for(image)) for image in images]
    fitting = []
    for layer in labels:
        there = [image for image in images if grids[layer].is_like(grids[image])]
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
        self._ticked: WeakSet[Any] = WeakSet()  # images; they come and go with the chosen one
        self._offered: list[Pair] = []
        self._entries: list[tuple[str, str, bool]] = []  # as shown
        self._chosen: Any | None = None
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
        return [pair for pair in self._offered if pair[0] in self._ticked]

    def offer(self, pairs: Sequence[Pair], chosen: Any | None) -> None:
        """Renew the list; `chosen` is the scan that is learned from in any case.

        Who goes on to another of the scans that are learned from together, keeps them together.
        """
        before, self._chosen = self._chosen, plain(chosen)
        if self._chosen in self._ticked:
            self._ticked.discard(self._chosen)
            if before is not None:
                self._ticked.add(before)
        self._offered = [(plain(image), plain(labels)) for image, labels in pairs]
        entries = [
            (_words(str(image.name), str(labels.name)), str(labels.name), image in self._ticked)
            for image, labels in self._offered
        ]
        if entries == self._entries:
            return
        self._entries = entries
        blocked = self.blockSignals(True)
        self.clear()
        for (words, labels, ticked), (image, _) in zip(entries, self._offered, strict=True):
            item = QListWidgetItem(words, self)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(_TICK[ticked])
            item.setToolTip(f"{labels} on {image.name}\n{self.toolTip()}")
        self.blockSignals(blocked)
        height = max(self.sizeHintForRow(0), self.fontMetrics().height()) + 2 * self.spacing()
        rows = min(_ROWS, max(1, self.count()))
        self.setFixedHeight(rows * height + 2 * (self.frameWidth() + self.spacing()))

    def tick(self, image: Any, on: bool = True) -> None:
        """Learn from a scan, or no longer."""
        for row, (one, _) in enumerate(self._offered):
            if one is plain(image):
                self.item(row).setCheckState(_TICK[on])

    def _on_ticked(self, item: QListWidgetItem) -> None:
        self._entries = []  # no longer as it was filled
        image = self._offered[self.row(item)][0]
        if item.checkState() == _TICK[True]:
            self._ticked.add(image)
        else:
            self._ticked.discard(image)
        self.pairs_changed.emit()


def _words(image: str, labels: str) -> str:
    """Name a scan, and its labels where they are not called after it."""
    return image if labels.startswith(image) else f"{image} ({labels})"
