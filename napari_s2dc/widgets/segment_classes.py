"""The classes of a Labels layer in a table: colour, number, name, voxels painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemDelegate,
    QAbstractItemView,
    QColorDialog,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

__all__ = ["ClassRow", "ClassTable"]

Colour = tuple[float, float, float]

_COLOUR, _LABEL, _NAME, _VOXELS = range(4)
_ROW_PX = 24
_PATCH_PX = 16
_LEAST_ROWS, _MOST_ROWS = 2, 6
"""Rows in sight; more are scrolled to."""


@dataclass(frozen=True)
class ClassRow:
    """What is shown of a class.

    Parameters
    ----------
    label : int
        Its number.
    name : str
        Its name.
    colour : tuple of float
        Red, green and blue, 0 to 1.
    voxels : int
        How many voxels have it.
    """

    label: int
    name: str
    colour: Colour
    voxels: int


class ClassTable(QTableWidget):
    """Classes with names and colours that can be changed. Emits what the user wants."""

    renamed = Signal(int, str)  # label, name
    recoloured = Signal(int, object)  # label, colour
    chosen = Signal(int)  # label to paint with

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(0, 4, parent)
        self._rows: tuple[ClassRow, ...] = ()
        self._waiting: tuple[tuple[ClassRow, ...], int] | None = None
        self.setHorizontalHeaderLabels(["", "id", "name", "voxels"])
        self.verticalHeader().hide()
        self.verticalHeader().setMinimumSectionSize(20)
        self.verticalHeader().setDefaultSectionSize(_ROW_PX)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(24)
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        self._fit_columns(QHeaderView.ResizeMode.ResizeToContents)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setToolTip(
            "Click a class to paint with it; double-click its name or its colour to change it"
        )
        self.itemChanged.connect(self._on_changed)
        self.itemClicked.connect(lambda item: self.chosen.emit(self._rows[item.row()].label))
        self.itemDoubleClicked.connect(self._on_double_click)
        self._fit()

    @property
    def rows(self) -> tuple[ClassRow, ...]:
        """The classes that are shown."""
        return self._rows

    def show_classes(self, rows: Sequence[ClassRow], painted_with: int) -> None:
        """Show classes by number, the one that is painted with marked."""
        if self.state() == QAbstractItemView.State.EditingState:
            self._waiting = tuple(rows), painted_with  # a name is being typed
            return
        self._waiting = None
        before, self._rows = self._rows, tuple(rows)
        blocked = self.blockSignals(True)
        # Columns would be measured anew with every item, which takes a second for 300 classes.
        self._fit_columns(QHeaderView.ResizeMode.Fixed)
        self.setRowCount(len(rows))
        self.clearSelection()
        for number, row in enumerate(rows):
            if row.label == painted_with:
                self.selectRow(number)
            if number < len(before) and row == before[number] and self._names(number, row):
                continue
            words = ("", str(row.label), row.name, f"{row.voxels:,}")
            for column, text in enumerate(words):
                item = QTableWidgetItem(text)
                flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
                if column == _NAME:
                    flags |= Qt.ItemFlag.ItemIsEditable
                item.setFlags(flags)
                if column in (_LABEL, _VOXELS):
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                if column == _COLOUR:
                    patch = QPixmap(_PATCH_PX, _PATCH_PX)
                    patch.fill(QColor.fromRgbF(*row.colour))
                    item.setIcon(QIcon(patch))  # a background would hide behind the selection
                self.setItem(number, column, item)
        self._fit_columns(QHeaderView.ResizeMode.ResizeToContents)
        self.blockSignals(blocked)
        self._fit()

    def _names(self, number: int, row: ClassRow) -> bool:
        """Whether a row of the table has the name of a class, and not what was typed there."""
        item = self.item(number, _NAME)
        return item is not None and item.text() == row.name

    def _fit_columns(self, mode: QHeaderView.ResizeMode) -> None:
        for column in (_COLOUR, _LABEL, _VOXELS):
            self.horizontalHeader().setSectionResizeMode(column, mode)

    def closeEditor(self, editor: QWidget, hint: QAbstractItemDelegate.EndEditHint) -> None:
        """Show what has changed while a name was typed."""
        super().closeEditor(editor, hint)
        if self._waiting is not None:
            self.show_classes(*self._waiting)

    def _fit(self) -> None:
        """Be as high as the classes need, within limits."""
        shown = min(max(len(self._rows), _LEAST_ROWS), _MOST_ROWS)
        heading = self.horizontalHeader().sizeHint().height()
        self.setFixedHeight(heading + shown * _ROW_PX + 2 * self.frameWidth())

    def _on_changed(self, item: QTableWidgetItem) -> None:
        if item.column() == _NAME:
            row = self._rows[item.row()]
            name = " ".join(item.text().split())
            if name != row.name:
                self.renamed.emit(row.label, name)

    def _on_double_click(self, item: QTableWidgetItem) -> None:
        if item.column() != _COLOUR:
            return
        row = self._rows[item.row()]
        colour = QColorDialog.getColor(
            QColor.fromRgbF(*row.colour), self, f"Colour of {row.name or row.label}"
        )
        if colour.isValid():
            self.recoloured.emit(row.label, (colour.redF(), colour.greenF(), colour.blueF()))
