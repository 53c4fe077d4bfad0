"""A folder that may be chosen, and be given up again."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QToolButton, QWidget

from napari_s2dc.widgets.eliding_button import ElidingButton

__all__ = ["FolderChoice"]


class FolderChoice(QWidget):
    """A button that asks for a folder and shows its name, and one that forgets it.

    Parameters
    ----------
    title : str
        Of the question.
    none : str
        What is shown while there is no folder.
    tooltip : str
        What the folder is for.
    """

    folder_changed = Signal()

    def __init__(self, title: str, none: str, tooltip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._none, self._tooltip = title, none, tooltip
        self._folder: Path | None = None
        self.button = ElidingButton(none)
        self.button.clicked.connect(lambda: self._ask())
        self.forget_button = QToolButton()
        self.forget_button.setText("×")
        self.forget_button.setToolTip("Do without")
        self.forget_button.clicked.connect(lambda: self.choose(None))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.button, 1)
        row.addWidget(self.forget_button)
        self.choose(None)

    @property
    def folder(self) -> Path | None:
        """The chosen folder."""
        return self._folder

    def choose(self, folder: Path | None) -> None:
        """Choose a folder, or none."""
        changed = folder != self._folder
        self._folder = folder
        self.button.setText(self._none if folder is None else folder.name)
        self.button.setToolTip(self._tooltip if folder is None else f"{folder}\n{self._tooltip}")
        self.forget_button.setVisible(folder is not None)
        if changed:
            self.folder_changed.emit()

    def _ask(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, self._title)
        if folder:
            self.choose(Path(folder))
