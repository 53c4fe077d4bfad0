"""A button whose words may be long: it shows what fits and never widens its panel."""

from __future__ import annotations

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QPushButton, QSizePolicy, QWidget

__all__ = ["ElidingButton"]

_FRAME = 16
"""Pixels on both sides of the words."""


class ElidingButton(QPushButton):
    """A button that leaves out the middle of words that do not fit, such as names of layers.

    Parameters
    ----------
    text : str
        Words.
    """

    def __init__(self, text: str, parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self._words = text
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def setText(self, text: str) -> None:
        """Set the words."""
        self._words = text
        self._fit()

    def text(self) -> str:
        """Give all of the words, also where not all are shown."""
        return self._words

    def minimumSizeHint(self) -> QSize:
        """Room for no more than a few letters."""
        return QSize(80, super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Show as much as fits now."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        room = self.width() - _FRAME
        shown = self.fontMetrics().elidedText(self._words, Qt.TextElideMode.ElideMiddle, room)
        super().setText(shown)
