"""The dock that a widget is in: bringing it forward, also when napari's menu hides it instead."""

from __future__ import annotations

from qtpy.QtCore import QObject, QTimer, Slot
from qtpy.QtWidgets import QDockWidget, QWidget

__all__ = ["OwnDock"]


class OwnDock(QObject):
    """The dock of one widget; napari makes it after the widget, and another one after a close.

    Parameters
    ----------
    widget : QWidget
        What is in the dock.
    """

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self._widget = widget
        self._followed: QDockWidget | None = None
        self._covered = False

    def find(self) -> QDockWidget | None:
        """Give the dock, None as long as the widget is in none."""
        dock = self._widget.parentWidget()
        while dock is not None and not isinstance(dock, QDockWidget):
            dock = dock.parentWidget()
        return dock

    def follow(self) -> None:
        """Note from now on whether other docks cover this one, and come before them."""
        dock = self.find()
        if dock is None:
            return
        if dock is not self._followed:  # PyQt raises where a connection is made again
            self._followed = dock
            dock.visibilityChanged.connect(self._on_seen)
        QTimer.singleShot(0, dock.raise_)  # a dock shown again stays behind other tabs

    def come_forward(self) -> None:
        """Show the dock and bring it before the others of its place."""
        dock = self.find()
        if dock is not None:
            dock.show()
            dock.raise_()

    def on_hidden(self) -> None:
        """Come forward instead: napari's menu hid what nobody saw, so it was to be shown."""
        if self._covered:
            QTimer.singleShot(0, self._show_again)

    def _show_again(self) -> None:
        dock = self.find()
        self._covered = False
        if dock is not None and dock.isHidden():  # not when the whole window goes
            self.come_forward()

    @Slot(bool)
    def _on_seen(self, seen: bool) -> None:
        """Note whether another tab of the same place covers the dock."""
        dock = self.find()
        if dock is not None and dock.isVisible():  # else it was hidden, not covered
            self._covered = not seen
