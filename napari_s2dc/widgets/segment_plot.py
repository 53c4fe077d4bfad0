"""Loss and Dice of a training while it runs, in the viewer's colours."""

from __future__ import annotations

import math

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QFontMetricsF, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_s2dc.widgets.plots import ACCENT

__all__ = ["TrainingPlot"]

_MARGIN = 6.0


class TrainingPlot(QWidget):
    """Curves of loss and Dice over the steps of a training.

    The loss fills the height from 0 to its largest value, Dice from 0 to 1. Shown in the colours of
    the palette, so that it follows napari's theme.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.losses: list[tuple[float, float]] = []
        self.dices: list[tuple[float, float]] = []
        self._total = 0
        self.setMinimumHeight(90)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "Thin: loss of every step, lower is better.\n"
            "Thick: Dice on labelled voxels that are learned from, measured every few steps;\n"
            "0 to 1, higher is better."
        )

    def sizeHint(self) -> QSize:
        """Size that fits a napari dock."""
        return QSize(280, 100)

    def clear(self) -> None:
        """Forget the training of before."""
        self.losses, self.dices, self._total = [], [], 0
        self.update()

    def add(self, step: int, total: int, loss: float, dice: float | None) -> None:
        """Add what is known after a step.

        Parameters
        ----------
        step, total : int
            Steps done, and how many there will be.
        loss : float
            Of this step; one that is no number is left out.
        dice : float or None
            Where it was measured.
        """
        self._total = max(total, step)
        if math.isfinite(loss):
            self.losses.append((step, loss))
        if dice is not None and math.isfinite(dice):
            self.dices.append((step, dice))
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw with the palette of the moment."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(self.foregroundRole())
        line = QFontMetricsF(painter.font()).height()
        area = QRectF(self.rect()).adjusted(_MARGIN, line + _MARGIN, -_MARGIN, -line - _MARGIN)
        painter.setPen(QPen(text, 1))
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        if not self.losses:
            painter.drawText(area, Qt.AlignmentFlag.AlignCenter, "Nothing trained yet")
            return
        above = QRectF(area.left(), 0, area.width(), line)
        below = QRectF(area.left(), area.bottom() + 2, area.width(), line)
        painter.drawText(above, Qt.AlignmentFlag.AlignLeft, f"loss {self.losses[-1][1]:.3f}")
        painter.drawText(
            below, Qt.AlignmentFlag.AlignRight, f"step {self.losses[-1][0]:g} of {self._total}"
        )
        most = max(loss for _, loss in self.losses)
        faint = QColor(text)
        faint.setAlpha(170)
        painter.setPen(QPen(faint, 1))
        painter.drawPolyline(self._curve(self.losses, area, most))
        if self.dices:
            painter.setPen(QPen(ACCENT, 2))
            words = f"Dice {self.dices[-1][1]:.2f}"
            painter.drawText(above, Qt.AlignmentFlag.AlignRight, words)
            curve = self._curve(self.dices, area, 1.0)
            painter.drawPolyline(curve)
            painter.drawEllipse(curve.last(), 2, 2)

    def _curve(self, points: list[tuple[float, float]], area: QRectF, most: float) -> QPolygonF:
        """Corners in pixels."""
        return QPolygonF(
            [
                QPointF(
                    area.left() + step / max(self._total, 1) * area.width(),
                    area.bottom() - min(max(value / max(most, 1e-12), 0.0), 1.0) * area.height(),
                )
                for step, value in points
            ]
        )
