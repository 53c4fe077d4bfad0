"""A list box of the viewer's layers that keeps its choice while layers come, go and change name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QSizePolicy, QWidget

from napari_s2dc.widgets.layers import plain

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["LayerCombo", "letters_alike", "most_alike"]


class LayerCombo(QComboBox):
    """Choice among the layers that fit a purpose.

    Parameters
    ----------
    fits : callable
        Whether a layer is offered.
    none_text : str
        Entry for no layer: first, and chosen as long as the user has not chosen another.
    only_when_empty : bool
        Show that entry only while no layer fits.
    """

    layer_changed = Signal(object)  # layer or None

    def __init__(
        self,
        fits: Callable[[Layer], bool],
        none_text: str,
        *,
        only_when_empty: bool = False,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._fits = fits
        self._none_text = none_text
        self._only_when_empty = only_when_empty
        self._layers: list[ref[Any] | None] = []
        # A long layer name must not push the dock wider than the window.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.currentIndexChanged.connect(self._announce)
        self.offer(())

    @property
    def layer(self) -> Any | None:
        """The chosen layer, None for none or one that is gone."""
        index = self.currentIndex()
        reference = self._layers[index] if 0 <= index < len(self._layers) else None
        return None if reference is None else reference()

    @property
    def layers(self) -> list[Any]:
        """The layers that can be chosen."""
        found = (None if reference is None else reference() for reference in self._layers)
        return [layer for layer in found if layer is not None]

    def offer(self, layers: Iterable[Layer]) -> None:
        """Renew the entries from the viewer's layers, newest first as napari lists them."""
        before = self.layer
        fitting = [plain(layer) for layer in layers if self._fits(layer)][::-1]
        none = [] if fitting and self._only_when_empty else [None]
        entries = [*none, *fitting]
        names = [self._none_text if layer is None else str(layer.name) for layer in entries]
        blocked = self.blockSignals(True)
        self.clear()
        self._layers = [None if layer is None else ref(layer) for layer in entries]
        self.addItems(names)
        for index, name in enumerate(names):
            self.setItemData(index, name, Qt.ItemDataRole.ToolTipRole)  # names may be cut off
        same = [index for index, layer in enumerate(entries) if layer is before]
        self.setCurrentIndex(same[0] if same else 0)
        self.blockSignals(blocked)
        if self.layer is not before:
            self._announce()

    def choose(self, layer: Layer | None) -> bool:
        """Choose a layer; False when it is not offered."""
        wanted = plain(layer)
        for index, reference in enumerate(self._layers):
            if (None if reference is None else reference()) is wanted:
                self.setCurrentIndex(index)
                return True
        return False

    def _announce(self, _index: int = 0) -> None:
        self.setToolTip(self.currentText())
        self.layer_changed.emit(self.layer)


def most_alike(layers: Sequence[Layer], name: str) -> Layer:
    """Give the layer whose name begins most like another one."""
    return max(layers, key=lambda layer: letters_alike(layer, name))


def letters_alike(layer: Layer, name: str) -> int:
    """Count the letters that the name of a layer and another one begin with."""
    letters = zip(str(layer.name), name, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], letters)))
