"""The tab that matches two scans: pairs, one patch's row, labels, files, the affine map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGroupBox,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.widgets.eliding_button import ElidingButton
from napari_s2dc.widgets.forms import form_layout, sentence_label
from napari_s2dc.widgets.header import narrow
from napari_s2dc.widgets.layer_combo import LayerCombo
from napari_s2dc.widgets.pairs_box import PairsBox
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.save_dialog import ask_where_to_save
from napari_s2dc.widgets.shortcuts import MATCH, key_hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer

__all__ = ["EXPORTS", "MatchTab"]

EXPORTS = {
    "pairs": ("Pairs as table…", "pairs.csv", "Table (*.csv)"),
    "plan": ("Plan…", "plan.safetensors", "Transport plan (*.safetensors)"),
    "affine": ("Affine map…", "affine.json", "Affine map (*.json)"),
}
"""What can be exported: words in the menu, name of the file, kinds of file."""

# What the spatial prior may be: words and value; None is the engine's default.
_NEARNESS = (
    ("where it is likely", None),
    ("close by", 0.2),
    ("anywhere", float("inf")),
)


class MatchTab(QWidget):
    """Controls of matching. Emits what the user wants and holds no logic.

    Parameters
    ----------
    is_scan : callable
        Whether a layer can be matched.
    is_labels : callable
        Whether labels of a layer can be carried.
    """

    match_wanted = Signal()
    scans_changed = Signal()
    pairs_changed = Signal()
    beside_changed = Signal(bool)
    unmatched_changed = Signal(bool)
    pointing_changed = Signal(bool)
    jump_wanted = Signal()
    transfer_wanted = Signal()
    export_wanted = Signal(str, str)  # key of EXPORTS, path
    apply_changed = Signal(bool)
    back_wanted = Signal()

    def __init__(
        self,
        is_scan: Callable[[Layer], bool],
        is_labels: Callable[[Layer], bool],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.moving = LayerCombo(is_scan, "Open a 3D image first", only_when_empty=True)
        self.moving.layer_changed.connect(self.scans_changed)
        self.reference = LayerCombo(is_scan, "Same volume, random view")
        self.reference.layer_changed.connect(self.scans_changed)
        self.nearness = narrow(QComboBox())
        for words, value in _NEARNESS:
            self.nearness.addItem(words, value)
        self.nearness.setToolTip(
            "How far from its own place, after centring both scans,\na partner is looked for"
        )
        self.align = QCheckBox("Turn the moving one, match again")
        self.align.setChecked(True)
        self.align.setToolTip(
            "Where the pairs agree on how the scans lie, embed the moving one again in the pose\n"
            "of the reference and match again: many more patches find their partner"
        )
        self.temperature = QDoubleSpinBox()
        self.temperature.setDecimals(3)  # the default is 0.02
        self.temperature.setRange(0.0, 1.0)
        self.temperature.setSingleStep(0.005)
        self.temperature.setSpecialValueText("default")
        self.temperature.setToolTip(
            "Lower makes every patch decide for one partner; higher spreads it over several"
        )
        self.match_button = ElidingButton("Match")
        self.match_button.clicked.connect(self.match_wanted)
        self.result = sentence_label()
        self.warning = sentence_label()
        self.warning.setStyleSheet(
            "QLabel { border: 1px solid #ff8c00; border-radius: 4px; padding: 4px; }"
        )

        self.beside = QCheckBox("Side by side")
        self.beside.setChecked(True)
        self.beside.setToolTip("Show the reference beside the moving scan, all else hidden")
        self.beside.toggled.connect(self.beside_changed)
        self.unmatched = QCheckBox("Tint patches without a partner")
        self.unmatched.setToolTip("The more of a patch has no partner, the redder")
        self.unmatched.toggled.connect(self.unmatched_changed)
        self.pairs = PairsBox()
        self.pairs.form.addRow(self.unmatched)
        self.pairs.form.addRow(self.beside)
        self.pairs.changed.connect(self.pairs_changed)

        self.pointing = QPushButton("Show where a patch goes")
        self.pointing.setCheckable(True)
        self.pointing.setToolTip(
            "Point at a patch of the moving scan to see on the other one where it goes"
        )
        self.pointing.toggled.connect(self.pointing_changed)
        self.patch = sentence_label()
        self.jump_button = QPushButton("Go to the partner")
        self.jump_button.clicked.connect(self.jump_wanted)

        self.labels = LayerCombo(is_labels, "No labels layer on its grid", only_when_empty=True)
        self.labels.layer_changed.connect(self.scans_changed)
        self.transfer_button = ElidingButton("Transfer labels")
        self.transfer_button.clicked.connect(self.transfer_wanted)

        self.export_button = QPushButton("Export")
        self.export_button.setToolTip("Write pairs, plan or map to a file")
        menu = QMenu(self.export_button)
        menu.setToolTipsVisible(True)
        actions = {key: menu.addAction(words) for key, (words, _, _) in EXPORTS.items()}
        for key, action in actions.items():
            action.triggered.connect(lambda _=False, key=key: self._ask(key))
        self._affine = actions["affine"]
        self.export_button.setMenu(menu)
        self.apply_button = ElidingButton("Apply the map")
        self.apply_button.setCheckable(True)
        self.apply_button.toggled.connect(self.apply_changed)
        self.back_button = ElidingButton("")
        self.back_button.setToolTip("Its match is not shown any more; move it back to where it was")
        self.back_button.clicked.connect(self.back_wanted)
        self._lay_out()
        self.show_ready("Match", "Embed a volume first, on the Embed tab")
        self.show_match("", 0)
        self.show_patch("")

    def _lay_out(self) -> None:
        top = form_layout()
        top.addRow("Moving", self.moving)
        top.addRow("Reference", self.reference)
        top.addRow("Partners", self.nearness)
        top.addRow("Temperature", self.temperature)
        top.addRow("Pose", self.align)
        one = QGroupBox("One patch")
        column = QVBoxLayout(one)
        row = QHBoxLayout()
        row.addWidget(self.pointing, 1)
        row.addWidget(self.jump_button)
        column.addLayout(row)
        column.addWidget(self.patch)
        labels = QGroupBox("Labels")
        form = form_layout(labels)
        form.addRow("Of the moving", self.labels)
        form.addRow(self.transfer_button)
        bottom = QHBoxLayout()
        bottom.addWidget(self.export_button)
        bottom.addWidget(self.apply_button, 1)
        column = QVBoxLayout(self)
        column.addLayout(top)
        column.addWidget(self.match_button)
        column.addWidget(self.result)
        column.addWidget(self.warning)
        for box in (self.pairs, one, labels):
            column.addWidget(box)
        column.addLayout(bottom)
        column.addWidget(self.back_button)
        column.addStretch(1)

    # --------------------------------------------------------------------------- what is read
    @property
    def matching(self) -> dict[str, float | None]:
        """Settings of the match that the user has chosen; the engine's defaults are left out."""
        chosen: dict[str, float | None] = {}
        if self.temperature.value() > 0:
            chosen["temperature"] = self.temperature.value()
        prior = self.nearness.currentData()
        if prior is not None:
            chosen["prior"] = None if prior == float("inf") else prior
        return chosen

    # -------------------------------------------------------------------------- what is shown
    def show_ready(self, words: str, problem: str) -> None:
        """Say what the button will do, or why it cannot."""
        self.match_button.setText(words)
        self.match_button.setEnabled(not problem)
        self.match_button.setToolTip(
            problem or f"{words}: find which patches correspond{key_hint(MATCH)}"
        )

    def show_match(self, summary: str, pairs: int, *, has_map: bool = False) -> None:
        """Show a match of so many pairs in words; "" for none."""
        there = bool(summary)
        why = "" if there else "Match two scans first"
        self.result.setText(summary)
        self.result.setVisible(there)
        self.pairs.show_pairs(pairs, why)
        for control in (self.unmatched, self.beside, self.pointing, self.export_button):
            allow(control, why)
        self._affine.setEnabled(has_map)
        self._affine.setToolTip("" if has_map else "The confident pairs agree on no map")
        self.show_warnings(())
        if not there:
            self.pointing.setChecked(False)
            self.show_transfer("Transfer labels", why)
            self.show_apply("Apply the map", why)
            self.show_back("")

    def show_warnings(self, sentences: tuple[str, ...]) -> None:
        """Show what the user should know about the match."""
        self.warning.setText("\n".join(sentences))
        self.warning.setVisible(bool(sentences))

    def show_patch(self, words: str) -> None:
        """Show where the pointed patch goes; "" for none."""
        self.patch.setText(words or "Point at a patch of the moving scan, or click to keep it.")
        self.jump_button.setEnabled(bool(words))
        self.jump_button.setToolTip(
            "Move the slices to the best partner" if words else "Point at a patch first"
        )

    def show_transfer(self, words: str, problem: str) -> None:
        """Say what the transfer will do, or why it cannot."""
        self.transfer_button.setText(words)
        self.transfer_button.setEnabled(not problem)
        self.transfer_button.setToolTip(
            problem or f"{words}; names and colours of the classes are kept"
        )

    def show_apply(self, words: str, problem: str, applied: bool = False) -> None:
        """Say what the map would be applied to, or why it cannot, or that it is."""
        self.apply_button.setText(words)
        self.apply_button.setEnabled(not problem)
        self.apply_button.setToolTip(
            problem or f"{words}: the affine one of the confident pairs; again to undo"
        )
        blocked = self.apply_button.blockSignals(True)
        self.apply_button.setChecked(applied)
        self.apply_button.blockSignals(blocked)

    def show_back(self, words: str) -> None:
        """Offer to move another layer back than that of the match; "" for none."""
        self.back_button.setText(words)
        self.back_button.setVisible(bool(words))

    def _ask(self, key: str) -> None:
        _, name, kinds = EXPORTS[key]
        path = ask_where_to_save(self, "Export", name, kinds)
        if path:
            self.export_wanted.emit(key, path)
