"""A colour bar with numbers, drawn in the theme of the viewer."""

from __future__ import annotations

from qtpy.QtCore import QRectF, QSize, Qt
from qtpy.QtGui import QColor, QLinearGradient, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

__all__ = ["ColourBar"]

_STOPS = 16


class ColourBar(QWidget):
    """Colours of a napari colormap from a low to a high value.

    Parameters
    ----------
    name : str
        Name of the colormap.
    low, high : str
        Words below the ends.
    """

    def __init__(self, name: str, low: str, high: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name = name
        self._words = (low, high)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Size that fits a row of a form."""
        return QSize(160, 14 + self.fontMetrics().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw with the palette of the moment."""
        from napari.utils.colormaps import ensure_colormap

        painter = QPainter(self)
        bar = QRectF(0, 1, self.width(), 10)
        gradient = QLinearGradient(bar.topLeft(), bar.topRight())
        places = [stop / (_STOPS - 1) for stop in range(_STOPS)]
        for place, colour in zip(places, ensure_colormap(self._name).map(places), strict=True):
            gradient.setColorAt(place, QColor.fromRgbF(*(float(part) for part in colour)))
        painter.fillRect(bar, gradient)
        painter.setPen(self.palette().color(self.foregroundRole()))
        below = QRectF(0, 12, self.width(), self.fontMetrics().height() + 2)
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, self._words[0])
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, self._words[1])
