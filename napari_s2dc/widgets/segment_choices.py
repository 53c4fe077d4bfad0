"""What is chosen on the Segment tab: the settings, and why training cannot begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_s2dc.engine.fewshot_settings import (
    FewshotSettings,
    FinetuneSettings,
    SegmentSettings,
    note_on_background,
)
from napari_s2dc.widgets.encoder_actions import EncoderActions
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.segment_jobs import Task
from napari_s2dc.widgets.segment_layers import colours_of, finest, names_of
from napari_s2dc.widgets.segment_meaning import UNLABELLED
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_tab import QUICK, SegmentTab
from napari_s2dc.widgets.session import Session

__all__ = ["SegmentChoices"]


class SegmentChoices(QObject):
    """Read what is chosen, and say what training will do with it.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Choices that all tabs share.
    encoders : EncoderActions
        Gives the chosen volume.
    tab : SegmentTab
        Controls.
    painting : PaintingActions
        The labels.
    """

    changed = Signal()

    def __init__(
        self,
        session: Session,
        header: Header,
        encoders: EncoderActions,
        tab: SegmentTab,
        painting: PaintingActions,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._encoders, self._tab = session, header, encoders, tab
        self._painting = painting
        tab.mode_changed.connect(self.update)
        tab.unlabelled.folder_changed.connect(self.update)
        painting.changed.connect(self.update)
        session.encoder_changed.connect(self.update)
        header.volume_changed.connect(self.update)

    @property
    def image(self) -> Any | None:
        """The chosen volume."""
        return self._header.volume.layer

    @property
    def labels(self) -> Any | None:
        """The chosen labels."""
        return self._painting.labels

    @property
    def encoder(self) -> str:
        """The chosen encoder as ``s2dc finetune --encoder`` takes it: its name, or its file."""
        from napari_s2dc.engine.encoders import encoder_named

        name, path = self._header.encoder.currentText(), self._header.chosen_path
        return name if path and encoder_named(name) == Path(path) else path

    @property
    def device(self) -> str:
        """The chosen device."""
        return str(self._header.device.currentData())

    @property
    def is_quick(self) -> bool:
        """Whether Quick is to be trained."""
        return bool(self._tab.mode.currentData() == QUICK)

    @property
    def unlabelled(self) -> Path | None:
        """The folder of scans that labels are carried to, where Fine-tune is chosen."""
        return None if self.is_quick else self._tab.unlabelled.folder

    def segmenting(self, kind: str) -> SegmentSettings:
        """How scans are to be segmented with a model of some kind."""
        return SegmentSettings(
            flips=self._tab.flips.isChecked() and kind != QUICK,
            largest_component=self._tab.largest.isChecked(),
        )

    def settings(self) -> FewshotSettings:
        """Give the settings as the tab, the header and the preferences have them."""
        tab = self._tab
        strokes = tab.zero.currentData() == UNLABELLED
        mode = tab.mode.currentData()
        return FewshotSettings(
            mode=mode,
            zero=tab.zero.currentData(),
            background=tab.background.currentData() if strokes else None,
            preset=self._header.preset.currentData(),
            device=self.device,
            seed=preferences().seed,
            finetune=FinetuneSettings(steps=tab.steps.value()),
            segment=self.segmenting(mode),
        )

    def task(self) -> Task | None:
        """Note what is to be learned, None where nothing can be."""
        image, labels = self.image, self.labels
        source, encoder = self._encoders.source(), self._session.encoder
        if image is None or labels is None or source is None or encoder is None:
            return None
        embedded = self._session.embedded(image)
        return Task(
            scan=source.stored,  # labels lie on the voxels of the scan
            labels=finest(labels),
            labels_name=str(labels.name),
            names=names_of(labels),
            colours=colours_of(labels, self._painting.counts or ()),
            settings=self.settings(),
            encoder=encoder,
            embedding=None if embedded is None else embedded.embedding,
            unlabelled=self.unlabelled,
            files=tuple(Path(layer.source.path) for layer in (image, labels) if layer.source.path),
        )

    def update(self, _: object = None) -> None:
        """Say what training will do, or why it cannot."""
        image, labels = self.image, self.labels
        problem, words, does, note = self.problem(), "Train", "", ""
        if not problem and image is not None and labels is not None:
            trained = "Quick" if self.is_quick else "a Swin UNETR"
            words = f"Train {trained} on {labels.name}"
            more = "" if self.unlabelled is None else f" and the scans in {self.unlabelled.name}"
            does = f"{words}{more}, and segment {image.name}"
            note = note_on_background(self.settings())
        self._tab.show_ready(words, does, problem, note)
        self.changed.emit()

    def problem(self) -> str:
        """Why training cannot begin; empty when it can."""
        if self.image is None:
            return "Open a 3D image first"
        if not self._header.chosen_path:
            return "The bundled encoder is missing: install napari-s2dc again, or open a checkpoint"
        if self._session.encoder is None:
            return "The encoder is being read"
        if self.labels is None:
            return "Press New, and paint a few strokes of every class"
        counts = self._painting.counts
        if counts is None:
            return self._painting.problem.rstrip(".") or "The labels are being counted"
        if not counts:
            return "Paint a few strokes of every class, the background too"
        if self._tab.zero.currentData() != UNLABELLED:
            return ""
        background = self._tab.background.currentData()
        if background is not None and background not in counts:
            return f"Class {background} means background, but nothing is painted with it yet"
        if len(counts) == 1:
            only = next(iter(counts))
            return f"Only class {only} is painted; paint also what lies around it"
        return ""
