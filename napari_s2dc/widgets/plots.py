"""Two small plots in the viewer's colours: a histogram with marks, and a scatter with a lasso."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QColor,
    QFontMetricsF,
    QImage,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPolygonF,
)
from qtpy.QtWidgets import QSizePolicy, QWidget

__all__ = ["Histogram", "Scatter", "inside_polygon"]

ACCENT = QColor(255, 140, 0)
"""Colour of marks; readable on napari's dark and light backgrounds."""
_MARGIN = 6.0
_DOT = 2
_CLICK_RANGE = 8.0
"""Pixels from a dot within which a click means it."""


class Histogram(QWidget):
    """Distribution of a patch's similarities, with lines at values worth a name.

    Shown in the colours of the palette, so that it follows napari's theme.
    """

    def __init__(self, caption: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._caption = caption
        self._counts = np.zeros(0)
        self._edges = np.zeros(0)
        self._marks: list[tuple[float, str]] = []
        self._empty = "Nothing probed yet"
        self.setMinimumHeight(120)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Size that fits a napari dock."""
        return QSize(280, 130)

    def show_counts(
        self, counts: np.ndarray, edges: np.ndarray, marks: list[tuple[float, str]]
    ) -> None:
        """Draw a distribution.

        Parameters
        ----------
        counts : np.ndarray (bins,)
            How many patches fall into each bin.
        edges : np.ndarray (bins + 1,)
            Borders of the bins.
        marks : list of (float, str)
            Values to mark by a vertical line with words beside it.
        """
        self._counts, self._edges = np.asarray(counts, float), np.asarray(edges, float)
        self._marks = marks
        self.update()

    def clear(self) -> None:
        """Draw nothing."""
        self.show_counts(np.zeros(0), np.zeros(0), [])

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw with the palette of the moment."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(self.foregroundRole())
        metrics = QFontMetricsF(painter.font())
        line = metrics.height()
        area = QRectF(self.rect()).adjusted(_MARGIN, line + _MARGIN, -_MARGIN, -2 * line - _MARGIN)
        painter.setPen(QPen(text, 1))
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        below = QRectF(area.left(), area.bottom() + 2, area.width(), line)
        if not self._counts.size:
            painter.drawText(area, Qt.AlignmentFlag.AlignCenter, self._empty)
            return
        low, high = float(self._edges[0]), float(self._edges[-1])

        def place(value: float) -> float:
            return area.left() + (value - low) / max(high - low, 1e-12) * area.width()

        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, f"{low:.2f}")
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{high:.2f}")
        below.translate(0, line)
        painter.drawText(below, Qt.AlignmentFlag.AlignHCenter, self._caption)
        bars = QColor(text)
        bars.setAlpha(130)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(bars)
        # The root makes the few most similar patches visible beside the many others.
        heights = np.sqrt(self._counts / max(self._counts.max(), 1.0)) * area.height()
        for left, right, height in zip(self._edges[:-1], self._edges[1:], heights, strict=True):
            x = place(left)
            painter.drawRect(
                QRectF(x, area.bottom() - height, max(place(right) - x - 0.5, 0.5), height)
            )
        painter.setPen(QPen(ACCENT, 2))
        for value, words in self._marks:
            x = place(min(max(value, low), high))
            painter.drawLine(QPointF(x, area.top()), QPointF(x, area.bottom()))
            width = metrics.horizontalAdvance(words)
            start = min(max(x - width / 2, _MARGIN), self.width() - width - _MARGIN)
            painter.drawText(QPointF(start, area.top() - 4), words)


class Scatter(QWidget):
    """Patches as dots; a drawn loop selects some, a mark shows the one clicked in the viewer."""

    lassoed = Signal(object)
    """Boolean np.ndarray (n,): the dots inside the loop that was drawn."""
    picked = Signal(int)
    """Index of the dot that was clicked."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._points = np.zeros((0, 2))
        self._colours = np.zeros((0, 3), np.uint8)
        self._selected: np.ndarray | None = None
        self._marked = -1
        self._loop: list[QPointF] = []
        self._image: QImage | None = None
        self.setMinimumHeight(180)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self.setToolTip(
            "Each dot is a patch; dots that lie close look alike to the encoder.\n"
            "Draw a loop to highlight its patches in the viewer; click an empty place to clear."
        )

    def sizeHint(self) -> QSize:
        """Size that fits a napari dock; it grows where there is room."""
        return QSize(280, 180)

    def show_points(self, points: np.ndarray, colours: np.ndarray) -> None:
        """Draw dots.

        Parameters
        ----------
        points : np.ndarray (n, 2)
            Coordinates in any unit; the view fits the middle 99.8 % of them.
        colours : np.ndarray (n, 3)
            uint8.
        """
        if len(points) != len(self._points):
            self._selected, self._marked = None, -1
        self._points = np.asarray(points, dtype=float).reshape(-1, 2)
        self._colours = np.asarray(colours, dtype=np.uint8).reshape(-1, 3)
        self._redraw()

    def mark(self, index: int) -> None:
        """Put a ring round one dot; -1 for none."""
        self._marked = index
        self.update()

    def select(self, chosen: np.ndarray | None) -> None:
        """Show some dots bright and the others faint; None for all bright."""
        self._selected = chosen
        self._redraw()

    def pixels(self) -> np.ndarray:
        """Where the dots are drawn, (n, 2) x and y in pixels of this widget."""
        if not len(self._points):
            return np.zeros((0, 2))
        low, high = np.percentile(self._points, [0.1, 99.9], axis=0)
        room = np.array([self.width(), self.height()]) - 2 * _MARGIN
        shares = np.clip((self._points - low) / np.maximum(high - low, 1e-12), 0, 1)
        shares[:, 1] = 1 - shares[:, 1]
        return _MARGIN + shares * room

    def _redraw(self) -> None:
        self._image = None
        self.update()

    def _draw_dots(self) -> QImage:
        """Dots as a picture: thousands of painter calls would take too long for each frame."""
        width, height = max(self.width(), 1), max(self.height(), 1)
        canvas = np.zeros((height, width, 4), np.uint8)
        if len(self._points):
            places = self.pixels().astype(int)
            rgba = np.concatenate(
                [self._colours, np.full((len(self._colours), 1), 255, np.uint8)], axis=1
            )
            order = np.arange(len(places))
            if self._selected is not None:
                rgba[~self._selected] = rgba[~self._selected] // 5
                order = np.argsort(self._selected, kind="stable")  # selected ones on top
            for dx in range(_DOT):
                for dy in range(_DOT):
                    x = np.clip(places[order, 0] + dx, 0, width - 1)
                    y = np.clip(places[order, 1] + dy, 0, height - 1)
                    canvas[y, x] = rgba[order]
        image = QImage(
            canvas.data, width, height, 4 * width, QImage.Format.Format_RGBA8888_Premultiplied
        )
        return image.copy()  # owns its memory

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw dots, ring and loop."""
        painter = QPainter(self)
        text = self.palette().color(self.foregroundRole())
        frame = QColor(text)
        frame.setAlpha(90)
        painter.setPen(QPen(frame, 1))
        painter.drawRect(QRectF(self.rect()).adjusted(0.5, 0.5, -1, -1))
        if not len(self._points):
            painter.setPen(text)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "Embed a volume first")
            return
        if self._image is None or self._image.size() != self.size():
            self._image = self._draw_dots()
        painter.drawImage(0, 0, self._image)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if 0 <= self._marked < len(self._points):
            x, y = self.pixels()[self._marked]
            painter.setPen(QPen(ACCENT, 2))
            painter.drawEllipse(QPointF(x + 1, y + 1), 6, 6)
        if len(self._loop) > 1:
            painter.setPen(QPen(ACCENT, 1, Qt.PenStyle.DashLine))
            painter.drawPolyline(QPolygonF(self._loop))

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Begin a loop."""
        if event.button() == Qt.MouseButton.LeftButton:
            self._loop = [event.position()]

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Draw the loop on."""
        if self._loop:
            self._loop.append(event.position())
            self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """Select what is in the loop, or what was clicked."""
        loop, self._loop = self._loop, []
        self.update()
        if not loop or not len(self._points):
            return
        corners = np.array([[point.x(), point.y()] for point in loop])
        pixels = self.pixels()
        if np.ptp(corners, axis=0).max() > 2 * _DOT:
            chosen = inside_polygon(pixels, corners)
            self.select(chosen if chosen.any() else None)
            self.lassoed.emit(chosen)
            return
        distance = np.linalg.norm(pixels - corners[0], axis=1)
        if distance.min() <= _CLICK_RANGE:
            self.picked.emit(int(distance.argmin()))
        else:
            self.select(None)
            self.lassoed.emit(np.zeros(len(pixels), dtype=bool))


def inside_polygon(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Which points (n, 2) lie in a closed polygon (m, 2), by counting crossings; bool (n,)."""
    inside = np.zeros(len(points), dtype=bool)
    x, y = points[:, 0], points[:, 1]
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        crosses = (y1 > y) != (y2 > y)
        inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside
