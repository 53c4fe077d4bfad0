"""Telling when layers were moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.placement import GEOMETRY

__all__ = ["Moves"]

_SOON_MS = 50
"""A drag sends an event for every step of the mouse; what follows it may take as long as one."""


class Moves(QObject):
    """Say, once for many events, that some layers lie elsewhere now."""

    happened = Signal()

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._watched: list[Any] = []
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_SOON_MS)
        self._soon.timeout.connect(self.happened)

    def watch(self, layers: Iterable[Any]) -> None:
        """Watch these layers instead of those of before; what they did until now is forgotten."""
        self._soon.stop()
        for layer in self._watched:
            for name in GEOMETRY:
                getattr(layer.events, name).disconnect(self._on_move)
        self._watched = [plain(layer) for layer in layers]
        for layer in self._watched:
            for name in GEOMETRY:
                getattr(layer.events, name).connect(self._on_move)

    def _on_move(self, _: object = None) -> None:
        self._soon.start()
