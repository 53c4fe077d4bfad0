"""Frame that lets a tab be scrolled when the window is low."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget

__all__ = ["Scrolling"]


class Scrolling(QScrollArea):
    """Frame that scrolls a tab up and down when the window is low, and is as wide as it needs."""

    def __init__(self, tab: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(tab)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Widen with the tab, whose needs are known only once napari's style is applied."""
        tab = self.widget()
        if tab is not None and watched is tab and event.type() in _CHANGES:
            # Room for the bar that appears when the window is low; else it covers controls.
            bar = self.verticalScrollBar().sizeHint().width()
            self.setMinimumWidth(tab.minimumSizeHint().width() + bar)
        return bool(super().eventFilter(watched, event))


_CHANGES = (QEvent.Type.LayoutRequest, QEvent.Type.Resize, QEvent.Type.Show)
