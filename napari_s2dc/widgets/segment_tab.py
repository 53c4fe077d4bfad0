"""The tab that learns to segment from a few labels, and segments whole scans with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QMessageBox,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.engine.fewshot_settings import FinetuneSettings
from napari_s2dc.widgets.eliding_button import ElidingButton
from napari_s2dc.widgets.folder_choice import FolderChoice
from napari_s2dc.widgets.forms import form_layout, sentence_label
from napari_s2dc.widgets.header import narrow
from napari_s2dc.widgets.layer_combo import LayerCombo
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.segment_classes import ClassTable
from napari_s2dc.widgets.segment_meaning import BACKGROUND, UNLABELLED
from napari_s2dc.widgets.segment_model_box import ModelBox
from napari_s2dc.widgets.segment_pairs import MoreScans
from napari_s2dc.widgets.segment_plot import TrainingPlot
from napari_s2dc.widgets.segment_scores import ScoresBox
from napari_s2dc.widgets.shortcuts import SEGMENT, key_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari.layers import Layer

__all__ = ["FINETUNE", "QUICK", "SegmentTab"]

QUICK, FINETUNE = "quick", "finetune"
_CHIP = "QLabel { border: 1px solid #ff8c00; border-radius: 4px; padding: 4px; }"


class SegmentTab(QWidget):
    """Controls of few-shot segmentation. Emits what the user wants and holds no logic.

    Parameters
    ----------
    is_labels : callable
        Whether a layer can be learned from, or compared with.
    """

    shown = Signal()
    labels_changed = Signal()
    new_labels_wanted = Signal()
    class_wanted = Signal()
    meaning_changed = Signal()
    mode_changed = Signal()
    train_wanted = Signal()
    stop_wanted = Signal()
    continue_wanted = Signal()
    best_wanted = Signal()
    next_wanted = Signal()
    restore_wanted = Signal()
    discard_wanted = Signal()

    def __init__(self, is_labels: Callable[[Layer], bool], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.labels = LayerCombo(is_labels, "No labels layer yet", only_when_empty=True)
        self.labels.layer_changed.connect(self.labels_changed)
        self.new_button = QPushButton("New")
        self.new_button.setToolTip(
            "Add an empty labels layer on the grid of the volume to paint in"
        )
        self.new_button.clicked.connect(self.new_labels_wanted)
        self.classes = ClassTable()
        self.class_button = QPushButton("Add class")
        self.class_button.setToolTip("Add a class with the next number and paint with it")
        self.class_button.clicked.connect(self.class_wanted)
        self.zero = narrow(QComboBox())
        self.zero.addItem("unlabelled (strokes)", UNLABELLED)
        self.zero.addItem("background (complete masks)", BACKGROUND)
        self.zero.setToolTip(
            "Strokes: Fine-tune learns nothing from voxels with 0;\n"
            "Quick spreads strokes over them where the intensity is alike.\n"
            "Complete masks: whatever has no class is background."
        )
        self.zero.activated.connect(self.meaning_changed)
        self.background = narrow(QComboBox())
        self.background.setToolTip("Class that stands for everything else; it is not segmented")
        self.background.activated.connect(self.meaning_changed)

        self.more = MoreScans()
        self.mode = narrow(QComboBox())
        self.mode.addItem("Quick: seconds", QUICK)
        self.mode.addItem("Fine-tune: minutes", FINETUNE)
        self.mode.setToolTip(
            "Quick trains a light head on frozen features.\n"
            "Fine-tune trains a Swin UNETR that starts from the encoder."
        )
        self.mode.currentIndexChanged.connect(self._on_mode)
        self.steps = QSpinBox()
        self.steps.setRange(10, 100_000)
        self.steps.setSingleStep(50)
        self.steps.setValue(FinetuneSettings().steps)
        self.steps.setToolTip("Optimiser steps of a fine-tuning; “Continue” does as many again")
        self.unlabelled = FolderChoice(
            "Folder with unlabelled scans",
            "Folder…",
            "More scans that show the same and have no labels: the labels are carried to up to\n"
            f"{FinetuneSettings().carried_scans} of them by matching, and Fine-tune learns from "
            "those too.\nFor complete masks.",
        )
        self.flips = QCheckBox("Average over mirror images")
        self.flips.setToolTip(
            "Eight times the time, smoother borders.\n"
            "Not where two classes are mirror images of each other, such as both kidneys."
        )
        self.largest = QCheckBox("Only the largest part of every class")
        self.largest.setToolTip("Drop what does not hang together with the largest part of a class")
        self.train_button = ElidingButton("Train")
        self.train_button.clicked.connect(self.train_wanted)
        self.stop_button = QPushButton("Stop")
        self.stop_button.setToolTip(
            "End the training and segment with the best so far; Quick keeps the model of before.\n"
            "While labels are still carried to unlabelled scans there is none yet"
        )
        self.stop_button.clicked.connect(self.stop_wanted)
        self.continue_button = QPushButton("Continue")
        self.continue_button.setToolTip("Train on where it was stopped, with the same labels")
        self.continue_button.clicked.connect(self.continue_wanted)
        self.best_button = QPushButton("Use best so far")
        self.best_button.setToolTip("Segment the volume with the best so far; training goes on")
        self.best_button.clicked.connect(self.best_wanted)
        self.plot = TrainingPlot()
        self.note = sentence_label()
        self.refresh = QCheckBox("Refresh while painting")
        self.refresh.setToolTip(
            "Train on after every stroke in the chosen labels:\n"
            "the slice on the screen first, then the volume"
        )
        self.next_button = QPushButton("Where to label next")
        self.next_button.setToolTip(
            "Go to an uncertain place that is unlike what is labelled; again for the next one"
        )
        self.next_button.clicked.connect(self.next_wanted)
        self.models = ModelBox()
        self.scores = ScoresBox(is_labels)

        self.offer = sentence_label()
        self.offer.setStyleSheet(_CHIP)
        self.restore_button = QPushButton("Restore")
        self.restore_button.setToolTip("Add the labels that were kept as a layer")
        self.restore_button.clicked.connect(self.restore_wanted)
        self.discard_button = QPushButton("Discard")
        self.discard_button.setToolTip("Delete them for good")
        self.discard_button.clicked.connect(self.discard_wanted)
        self._lay_out()
        self._on_mode()
        self.offer_more((), None)
        self.show_backgrounds((), None)
        self.show_offer("")

    def _lay_out(self) -> None:
        self._offered = QWidget()
        chip = QVBoxLayout(self._offered)
        chip.setContentsMargins(0, 0, 0, 0)
        chip.addWidget(self.offer)
        row = QHBoxLayout()
        row.addWidget(self.restore_button, 1)
        row.addWidget(self.discard_button)
        chip.addLayout(row)
        top = form_layout()
        row = QHBoxLayout()
        row.addWidget(self.labels, 1)
        row.addWidget(self.new_button)
        row.addWidget(self.class_button)
        top.addRow("Labels", row)
        self.form = form_layout()
        self.form.addRow("0 means", self.zero)
        self.form.addRow("Background", self.background)
        self.form.addRow("Learn also from", self.more)
        self.form.addRow("Method", self.mode)
        self.form.addRow("Steps", self.steps)
        self.form.addRow("Unlabelled scans", self.unlabelled)
        self.form.addRow(self.flips)
        self.form.addRow(self.largest)
        buttons = QHBoxLayout()
        buttons.addWidget(self.stop_button)
        buttons.addWidget(self.continue_button)
        buttons.addWidget(self.best_button, 1)
        row = QHBoxLayout()
        row.addWidget(self.refresh, 1)
        row.addWidget(self.next_button)
        column = QVBoxLayout(self)
        column.addWidget(self._offered)
        column.addLayout(top)
        column.addWidget(self.classes)
        column.addLayout(self.form)
        column.addWidget(self.train_button)
        column.addLayout(buttons)
        column.addWidget(self.plot)
        column.addWidget(self.note)
        column.addLayout(row)
        column.addWidget(self.models)
        column.addWidget(self.scores)
        column.addStretch(1)

    # -------------------------------------------------------------------------- what is shown
    def allow_classes(self, problem: str) -> None:
        """Let classes be changed, or say why they cannot be."""
        for control in (self.classes, self.class_button, self.zero):
            allow(control, problem)

    def show_backgrounds(self, entries: Sequence[tuple[int, str]], chosen: int | None) -> None:
        """Offer classes (label, name) as background; it has no say where 0 is background."""
        self.background.clear()
        self.background.addItem("none painted", None)
        for label, name in entries:
            self.background.addItem(f"{label}  {name}".strip(), label)
        self.background.setCurrentIndex(max(0, self.background.findData(chosen)))
        complete = self.zero.currentData() == BACKGROUND
        none = "" if entries else "There is no class yet"
        allow(self.background, "Background is what has 0" if complete else none)

    def offer_more(self, pairs: Sequence[tuple[Layer, Layer]], chosen: Layer | None) -> None:
        """Offer more labelled scans (image, labels); the row is hidden where there are none."""
        self.more.offer(pairs, chosen)
        self.form.setRowVisible(self.more, bool(pairs))

    def show_ready(self, words: str, does: str, problem: str, note: str) -> None:
        """Say what training will do, at length in `does`, or why it cannot; `note` is a warning."""
        self.train_button.setText(words)
        self.train_button.setEnabled(not problem)
        self.train_button.setToolTip(problem or f"{does}{key_hint(SEGMENT)}")
        self.note.setText(problem or note)
        self.note.setVisible(bool(problem or note))

    def show_training(self, running: bool, can_continue: bool, taken: bool) -> None:
        """Enable what can be done with the training that runs, or with the one that was stopped.

        Nothing can go on while the best so far is `taken` from it.
        """
        stopped = "" if can_continue else "Fine-tune first"
        allow(self.stop_button, "" if running else "Nothing is being trained")
        busy = "It is being trained" if running else "The best so far is being taken"
        allow(self.continue_button, busy if running or taken else stopped)
        allow(self.best_button, stopped)

    def show_next(self, problem: str) -> None:
        """Enable what needs a segmentation, or say why there is none."""
        allow(self.next_button, problem)

    def show_offer(self, sentence: str) -> None:
        """Offer labels of a session that ended in a crash; "" takes the offer away."""
        self.offer.setText(sentence)
        self._offered.setVisible(bool(sentence))

    def ask(self, title: str, question: str) -> bool:
        """Ask the user something that is answered with yes or no."""
        answer = QMessageBox.question(self, title, question)
        return bool(answer == QMessageBox.StandardButton.Yes)

    def showEvent(self, event: QShowEvent) -> None:
        """Tell that the tab is in sight."""
        super().showEvent(event)
        self.shown.emit()

    def _on_mode(self, _: int = 0) -> None:
        tuned = self.mode.currentData() == FINETUNE
        for control in (self.continue_button, self.best_button):
            control.setVisible(tuned)
        self.form.setRowVisible(self.steps, tuned)
        self.form.setRowVisible(self.unlabelled, tuned)
        self.form.setRowVisible(self.flips, tuned)
        allow(self.refresh, "Only Quick is fast enough for that" if tuned else "")
        self.mode_changed.emit()
