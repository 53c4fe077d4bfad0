"""The tab for clicking: similarity, nearest patches, consistency, structure round a click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from napari_s2dc.widgets.forms import form_layout
from napari_s2dc.widgets.layer_combo import LayerCombo
from napari_s2dc.widgets.plots import Histogram
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.shortcuts import PROBE, key_hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer

__all__ = ["PatchFacts", "ProbeTab"]

_NONE = "–"


@dataclass(frozen=True)
class PatchFacts:
    """What the panel shows of the probed patch.

    Parameters
    ----------
    place : str
        Where it is, in words.
    sharpe_ratio : float
        How sharply its similarities peak.
    percentile : float
        Share of tissue patches with a lower ratio, 0 to 100; NaN when not known.
    counts, edges : np.ndarray
        Histogram of its similarities.
    peak : float
        Similarity at which the Sharpe ratio is marked.
    nearest : sequence of (str, float)
        Place in words and similarity of the most similar patches.
    """

    place: str
    sharpe_ratio: float
    percentile: float
    counts: np.ndarray
    edges: np.ndarray
    peak: float
    nearest: Sequence[tuple[str, float]]


class ProbeTab(QWidget):
    """Controls of the probe. Emits what the user wants and holds no logic.

    Parameters
    ----------
    is_target : callable
        Whether labels can be written into a layer.
    """

    probing_changed = Signal(bool)
    cleared = Signal()
    others_changed = Signal(bool)
    nearest_chosen = Signal(int)
    preview_changed = Signal(bool)
    threshold_changed = Signal(float)
    otsu_wanted = Signal()
    add_wanted = Signal(int)  # class
    consistency_wanted = Signal(int)  # views

    def __init__(self, is_target: Callable[[Layer], bool], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.probe_button = QPushButton("Click to probe")
        self.probe_button.setCheckable(True)
        self.probe_button.toggled.connect(self._on_probing)
        self.clear_button = QPushButton("Clear")
        self.clear_button.setToolTip("Forget the clicked patches and take their heat map away")
        self.clear_button.clicked.connect(self.cleared)
        self.hint = QLabel()
        self.hint.setWordWrap(True)
        self.others = QCheckBox("Also in the other embedded volumes")
        self.others.setToolTip("Show in every embedded volume what looks like the clicked patch")
        self.others.setChecked(True)
        self.others.toggled.connect(self.others_changed)

        self.place = QLabel(_NONE)
        self.place.setWordWrap(True)
        self.sharpe = QLabel(_NONE)
        self.sharpe.setToolTip(
            "How far the best match stands out, in standard deviations.\n"
            "High: a small distinct structure; low: a large uniform one."
        )
        self.consistency = QLabel(_NONE)
        self.consistency.setToolTip(
            "How well the neighbourhood of the patch looks the same from random views, -1 to 1,\n"
            "and its standard deviation over them. Views of the surroundings are compared when\n"
            "the mouse rests; once the map below is computed, it is read from there."
        )
        self.histogram = Histogram("cosine similarity to every patch")
        self.nearest = QListWidget()
        self.nearest.setToolTip("The most similar patches; click one to go there")
        self.nearest.setFixedHeight(104)
        self.nearest.itemClicked.connect(self._on_nearest)

        self.preview = QCheckBox("Preview the structure round the click")
        self.preview.setToolTip("Patches above the threshold that hang together with the click")
        self.preview.toggled.connect(self.preview_changed)
        self.threshold = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
        self.threshold.setRange(-1.0, 1.0)
        self.threshold.setDecimals(2)
        self.threshold.setToolTip("Cosine similarity from which a patch belongs to the structure")
        self.threshold.valueChanged.connect(self._on_threshold)
        self._moving = False
        self.otsu = QPushButton("Automatic threshold")
        self.otsu.setToolTip("Set the threshold that best parts the similarities (Otsu)")
        self.otsu.clicked.connect(self.otsu_wanted)
        self.target = LayerCombo(is_target, "A new labels layer")
        self.target.setToolTip("Where “Add to labels” writes")
        self.label = QSpinBox()
        self.label.setRange(1, 65535)
        self.label.setToolTip("Number of the class that is written")
        self.add_button = QPushButton("Add to labels")
        self.add_button.clicked.connect(lambda: self.add_wanted.emit(self.label.value()))

        self.views = QSpinBox()
        self.views.setRange(2, 64)
        self.views.setValue(8)
        self.views.setToolTip("Random views of the scan that are compared; more take longer")
        self.map_button = QPushButton("Compute consistency map")
        self.map_button.clicked.connect(lambda: self.consistency_wanted.emit(self.views.value()))
        self._lay_out()
        self._on_probing(False)
        self.show_patch(None)
        self.show_embedded("", "Embed two volumes to compare them")
        self.show_structure(False, "Probe a patch first")

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.probe_button, 1)
        top.addWidget(self.clear_button)
        facts = QFormLayout()
        facts.addRow("Patch", self.place)
        facts.addRow("Sharpe ratio", self.sharpe)
        facts.addRow("Consistency", self.consistency)

        structure = QGroupBox("Structure")
        form = form_layout(structure)
        form.addRow(self.preview)
        form.addRow("Threshold", self.threshold)
        form.addRow("", self.otsu)
        form.addRow("Write into", self.target)
        label = QHBoxLayout()
        label.addWidget(self.label)
        label.addWidget(self.add_button, 1)
        form.addRow("Class", label)

        whole = QGroupBox("Whole volume")
        row = QHBoxLayout(whole)
        row.addWidget(QLabel("Views"))
        row.addWidget(self.views)
        row.addWidget(self.map_button, 1)

        column = QVBoxLayout(self)
        column.addLayout(top)
        column.addWidget(self.hint)
        column.addWidget(self.others)
        column.addLayout(facts)
        column.addWidget(self.histogram)
        column.addWidget(QLabel("Most similar patches"))
        column.addWidget(self.nearest)
        column.addWidget(structure)
        column.addWidget(whole)
        column.addStretch(1)

    def show_embedded(self, volume_name: str, alone: str) -> None:
        """Enable what needs an embedded volume.

        Parameters
        ----------
        volume_name : str
            The volume, or "" for none.
        alone : str
            Why there is no other volume to compare it with; empty where there is one.
        """
        there = bool(volume_name)
        why = "" if there else "Embed a volume first, on the Embed tab"
        if not there:
            self.probe_button.setChecked(False)  # or the mouse would stay taken
        self.probe_button.setEnabled(there)
        self.probe_button.setToolTip(
            why or f"Show what looks like the place under the mouse{key_hint(PROBE)}"
        )
        self.map_button.setEnabled(there)
        self.map_button.setToolTip(why or f"Compare random views of {volume_name}")
        allow(self.others, alone)

    def show_patch(self, facts: PatchFacts | None) -> None:
        """Show what is known of the probed patch; None for no patch."""
        allow(self.clear_button, "" if facts is not None else "Click a place first")
        self.nearest.clear()
        if facts is None:
            self.place.setText(_NONE)
            self.sharpe.setText(_NONE)
            self.consistency.setText(_NONE)
            self.histogram.clear()
            return
        self.place.setText(facts.place)
        ratio = f"{facts.sharpe_ratio:.2f}"
        self.sharpe.setText(
            ratio
            if np.isnan(facts.percentile)
            else f"{ratio}, above {facts.percentile:.0f} % of the tissue"
        )
        self.histogram.show_counts(
            facts.counts, facts.edges, [(facts.peak, f"Sharpe ratio {ratio}")]
        )
        for number, (place, similarity) in enumerate(facts.nearest, start=1):
            self.nearest.addItem(QListWidgetItem(f"{number}.  {similarity:.2f}  at {place}"))
        if facts.nearest:  # whole lines, all of them
            line = max(self.nearest.sizeHintForRow(0), 1)
            self.nearest.setFixedHeight(line * self.nearest.count() + 2 * line // 3)

    def show_consistency(self, words: str) -> None:
        """Show the neighbourhood consistency of the probed patch, in words."""
        self.consistency.setText(words)

    def show_structure(self, there: bool, why: str = "") -> None:
        """Enable writing the structure, or say why it cannot be written."""
        self.add_button.setEnabled(there)
        self.add_button.setToolTip(
            why or "Write the previewed structure; napari's undo takes it back"
        )
        for control in (self.otsu, self.threshold):
            allow(control, "" if there else why or "Preview a structure first")

    def show_threshold(self, value: float) -> None:
        """Move the slider without asking for a new structure."""
        self._moving = True
        self.threshold.setValue(value)
        self._moving = False

    def _on_threshold(self, value: float) -> None:
        if not self._moving:
            self.threshold_changed.emit(value)

    def _on_probing(self, on: bool) -> None:
        self.hint.setText(
            "Click or drag. Shift+click adds a place, Alt+click says “not like this”. "
            "In 3D, a drag beside the tissue turns the view. Esc ends."
            if on
            else "Click a place to see everything that looks like it."
        )
        self.probing_changed.emit(on)

    def _on_nearest(self, item: QListWidgetItem) -> None:
        self.nearest_chosen.emit(self.nearest.row(item))
