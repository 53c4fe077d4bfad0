"""How well a segmentation agrees with a reference, by class, in a table that can be copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QGroupBox,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.widgets.eliding_button import ElidingButton
from napari_s2dc.widgets.forms import form_layout
from napari_s2dc.widgets.layer_combo import LayerCombo
from napari_s2dc.widgets.reasons import allow

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["ScoresBox"]

_HEADINGS = ("class", "Dice", "HD95 (mm)")


class ScoresBox(QGroupBox):
    """Choice of what is compared, and the scores. Emits what the user wants and holds no logic.

    Parameters
    ----------
    is_reference : callable
        Whether a layer can be compared with.
    """

    compare_wanted = Signal()

    def __init__(
        self, is_reference: Callable[[Layer], bool], parent: QWidget | None = None
    ) -> None:
        super().__init__("Evaluation", parent)
        self.compared = LayerCombo(lambda _: True, "Segment the volume first")
        self.reference = LayerCombo(is_reference, "Choose a labels layer")
        self.compare_button = ElidingButton("Compare")
        self.compare_button.clicked.connect(self.compare_wanted)
        self.copy_button = QPushButton("Copy")
        self.copy_button.setToolTip("Copy the table; it can be pasted into a spreadsheet")
        self.copy_button.clicked.connect(lambda: QApplication.clipboard().setText(self.as_text()))
        self.table = QTableWidget(0, len(_HEADINGS))
        self.table.setHorizontalHeaderLabels(list(_HEADINGS))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(24)
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.setToolTip(
            "Dice: overlap, 0 to 1. HD95: 95 % of the two surfaces lie closer than so many mm;\n"
            "a dash where one of the two does not have the class."
        )
        form = form_layout()
        form.addRow("Compare", self.compared)
        form.addRow("with reference", self.reference)
        row = QHBoxLayout()
        row.addWidget(self.compare_button, 1)
        row.addWidget(self.copy_button)
        column = QVBoxLayout(self)
        column.addLayout(form)
        column.addLayout(row)
        column.addWidget(self.table)
        self.show_scores(())

    def show_ready(self, words: str, problem: str) -> None:
        """Say what the button will do, or why it cannot."""
        self.compare_button.setText(words)
        self.compare_button.setEnabled(not problem)
        self.compare_button.setToolTip(
            problem
            or f"{words}: Dice and HD95 of every class.\n"
            "Classes are paired by name where the reference has all of them, else by number."
        )

    def show_scores(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Show class, Dice and distance in words; none for a comparison that is to be made."""
        self.table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                self.table.setItem(number, column, item)
        self.table.setVisible(bool(rows))
        heading = self.table.horizontalHeader().sizeHint().height()
        self.table.setFixedHeight(heading + 24 * min(len(rows), 10) + 2 * self.table.frameWidth())
        allow(self.copy_button, "" if rows else "Compare first")

    def as_text(self) -> str:
        """Give the table as lines with tabs between the columns."""
        lines = ["\t".join(_HEADINGS)]
        for row in range(self.table.rowCount()):
            cells = (self.table.item(row, column) for column in range(len(_HEADINGS)))
            lines.append("\t".join("" if cell is None else cell.text() for cell in cells))
        return "\n".join(lines)
