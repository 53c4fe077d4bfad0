"""Which pairs of a match are drawn, and how."""

from __future__ import annotations

from dataclasses import dataclass

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QGroupBox, QWidget
from superqt import QLabeledDoubleSlider, QLabeledSlider

from napari_s2dc.widgets.colour_bar import ColourBar
from napari_s2dc.widgets.forms import form_layout
from napari_s2dc.widgets.header import narrow
from napari_s2dc.widgets.reasons import allow

__all__ = ["BY_CONFIDENCE", "BY_PLACE", "PairChoice", "PairsBox"]

BY_CONFIDENCE, BY_PLACE = "confidence", "place"

_USUAL_NUMBER = 200


@dataclass(frozen=True)
class PairChoice:
    """Which pairs are drawn, and how.

    Parameters
    ----------
    number : int
        At most so many.
    least : float
        Least confidence.
    mutual : bool
        Only mutual nearest neighbours.
    colour : str
        `BY_CONFIDENCE` or `BY_PLACE`.
    """

    number: int
    least: float
    mutual: bool
    colour: str


class PairsBox(QGroupBox):
    """Controls of the pairs that are drawn; further rows may be added to its form."""

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Pairs", parent)
        self._wanted = _USUAL_NUMBER
        self.number = QLabeledSlider(Qt.Orientation.Horizontal)
        self.number.setRange(0, 100)
        self.number.setToolTip("How many pairs are drawn, the most confident first")
        self.confidence = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
        self.confidence.setRange(0.0, 1.0)
        self.confidence.setDecimals(2)
        self.confidence.setToolTip(
            "Least confidence of a pair, 0 to 1: the share of the patch that goes to it"
        )
        self.mutual = QCheckBox("Only mutual nearest neighbours")
        self.mutual.setChecked(True)
        self.mutual.setToolTip("Each patch is the other one's best partner")
        self.colour = narrow(QComboBox())
        self.colour.addItem("confidence", BY_CONFIDENCE)
        self.colour.addItem("place in the moving scan", BY_PLACE)
        self.colour.setToolTip("What the colour of a line means")
        self.bar = ColourBar("viridis", "0 unsure", "sure 1")
        self.number.valueChanged.connect(self._on_number)
        self.confidence.valueChanged.connect(self.changed)
        self.mutual.toggled.connect(self.changed)
        self.colour.currentIndexChanged.connect(self._on_colour)
        self.form = form_layout(self)
        self.form.addRow("Number", self.number)
        self.form.addRow("Confidence", self.confidence)
        self.form.addRow(self.mutual)
        self.form.addRow("Colour", self.colour)
        self.form.addRow("", self.bar)

    @property
    def choice(self) -> PairChoice:
        """Which pairs are wanted."""
        return PairChoice(
            number=self.number.value(),
            least=self.confidence.value(),
            mutual=self.mutual.isChecked(),
            colour=self.colour.currentData(),
        )

    def show_pairs(self, pairs: int, why_not: str) -> None:
        """Offer so many pairs, as many of them chosen as the user wanted last, or say why not."""
        blocked = self.number.blockSignals(True)
        self.number.setRange(0, max(pairs, 1))
        self.number.setValue(min(pairs, self._wanted))
        self.number.blockSignals(blocked)
        for control in (self.number, self.confidence, self.mutual, self.colour):
            allow(control, why_not)

    def _on_number(self, number: int) -> None:
        self._wanted = number
        self.changed.emit()

    def _on_colour(self) -> None:
        self.bar.setVisible(self.colour.currentData() == BY_CONFIDENCE)
        self.changed.emit()
