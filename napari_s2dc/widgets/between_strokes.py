"""Changing labels only where no stroke in them is under way: the stroke would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, QTimer

__all__ = ["BetweenStrokes"]

_LOOK_MS = 50


class BetweenStrokes(QObject):
    """Do what changes Labels layers once nobody paints in them; for each in the order asked."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._waiting: list[tuple[Callable[[], Any | None], Callable[[], None]]] = []
        self._again = QTimer(self)
        self._again.setSingleShot(True)
        self._again.setInterval(_LOOK_MS)
        self._again.timeout.connect(self._go_on)

    def do(self, layer: Callable[[], Any | None], change: Callable[[], None]) -> None:
        """Make a change now, or once the stroke that is under way has ended.

        Parameters
        ----------
        layer : callable
            Gives the Labels layer that would be changed, None for none.
        change : callable
            Makes the change.
        """
        self._waiting.append((layer, change))
        self._go_on()

    def _go_on(self) -> None:
        try:
            for asked in list(self._waiting):
                layer, change = asked
                if not _is_painted(layer()):
                    self._waiting.remove(asked)
                    change()
        finally:  # an error in one must not lose the others
            if self._waiting:
                self._again.start()


def _is_painted(layer: Any | None) -> bool:
    """Whether a stroke in a layer is under way.

    napari tells of a stroke when it has ended. Until then all of its tools hold the layer's history
    open, and only this attribute says so. The mouse button does not: a stroke that encircles what
    is to be filled goes on without it.
    """
    return bool(getattr(layer, "_block_history", False))
