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
    note_on_spacings,
)
from napari_s2dc.widgets.encoder_actions import EncoderActions
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.segment_jobs import PaintedScan, Task, given_names, with_more
from napari_s2dc.widgets.segment_layers import (
    colours_of,
    finest,
    grid_problem,
    kept_colours,
    names_of,
)
from napari_s2dc.widgets.segment_meaning import UNLABELLED
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_pairs import pair_up
from napari_s2dc.widgets.segment_tab import QUICK, SegmentTab
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import LayerSnapshot, level_like, snapshot

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
        tab.more.pairs_changed.connect(self._on_ticked)
        painting.changed.connect(self.offer)
        session.encoder_changed.connect(self.update)
        header.volume_changed.connect(self.offer)
        header.settings_changed.connect(self.update)

    def offer(self, _: object = None) -> None:
        """Offer the other labelled scans, which are others for another volume or other labels."""
        image, labels = self.image, self.labels
        pairs = (
            []
            if image is None or labels is None
            else pair_up(
                [image, *(one for one in reversed(self._header.volume.layers) if one is not image)],
                self._tab.labels.layers,
                lambda one: labels if one is image else self._painting.chosen_for(one),
            )
        )
        self._tab.offer_more([pair for pair in pairs if pair[0] is not image], image)
        self.update()

    def _on_ticked(self) -> None:
        """Remember what was put together: it is to stay so, whichever of the scans is chosen."""
        for image, labels in self._tab.more.pairs:
            self._painting.settle(image, labels)
        if self._tab.more.pairs:
            self._painting.keep_labels()
        self.update()

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

    def task(self) -> tuple[Task, list[Any]] | None:
        """Note what is to be learned, and the layers of its images; None where nothing can be."""
        image, labels = self.image, self.labels
        source, encoder = self._encoders.source(), self._session.encoder
        if image is None or labels is None or source is None or encoder is None:
            return None
        chosen = source.stored  # labels lie on the voxels of the scan
        pairs = [(image, labels), *self._tab.more.pairs]
        pairs.sort(key=lambda pair: str(pair[0].name))  # the result depends on no choice
        images = [one for one, _ in pairs]
        scans = [
            self._painted(
                one,
                painted,
                chosen if one is image else snapshot(one, level_like(one, chosen.spacing_mm)),
            )
            for one, painted in pairs
        ]
        task = Task(
            scans=tuple(scans),
            chosen=images.index(image),
            settings=self.settings(),
            encoder=encoder,
            unlabelled=self.unlabelled,
        )
        return task, images

    def _painted(self, image: Any, labels: Any, scan: LayerSnapshot) -> PaintedScan:
        embedded = self._session.embedded(image)
        counts = self._painting.counts_of(labels)
        return PaintedScan(
            scan=scan,
            labels=finest(labels),
            labels_name=str(labels.name),
            names=names_of(labels),
            # Of labels that were never chosen nobody has counted which there are.
            colours=kept_colours(labels, ()) if counts is None else colours_of(labels, counts),
            embedding=None if embedded is None else embedded.embedding,
            files=tuple(Path(layer.source.path) for layer in (image, labels) if layer.source.path),
        )

    def update(self, _: object = None) -> None:
        """Say what training will do, or why it cannot."""
        image, labels = self.image, self.labels
        problem, words, does, note = self.problem(), "Train", "", ""
        if not problem and image is not None and labels is not None:
            trained = "Quick" if self.is_quick else "a Swin UNETR"
            words = f"Train {trained} on {with_more(str(labels.name), len(self._tab.more.pairs))}"
            more = "" if self.unlabelled is None else f" and the scans in {self.unlabelled.name}"
            does = f"{words}{more}, and segment {image.name}"
            settings = self.settings()
            notes = (
                note_on_background(settings),
                note_on_spacings(self._spacings_mm(), settings),
            )
            note = " ".join(filter(None, notes))
        self._tab.show_ready(words, does, problem, note)
        self.changed.emit()

    def _spacings_mm(self) -> list[tuple[str, tuple[float, float, float]]]:
        """Name and spacing of the chosen scan and of the others that are learned from."""
        source = self._encoders.source()
        if source is None:
            return []
        chosen = source.stored.spacing_mm
        more = [(one, level_like(one, chosen)) for one, _ in self._tab.more.pairs]
        others = [(str(one.name), snapshot(one, level).spacing_mm) for one, level in more]
        return [(source.name, chosen), *others]

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
        other = self._painting.other_scan_of(self.labels)
        if other is not None:
            return (
                f"{self.labels.name} is of {other.name}: choose it again under Labels if it is "
                f"right for {self.image.name}, too, or press New"
            )
        if self._tab.more.pairs:
            # What is not painted here may be painted there.
            return self._problem_of_more(self.labels)
        if self._tab.zero.currentData() != UNLABELLED:
            return ""
        background = self._tab.background.currentData()
        if background is not None and background not in counts:
            return f"Class {background} means background, but nothing is painted with it yet"
        if len(counts) == 1:
            only = next(iter(counts))
            return f"Only class {only} is painted; paint also what lies around it"
        return ""

    def _problem_of_more(self, chosen: Any) -> str:
        """Why the other scans that are ticked cannot be learned from together with the chosen."""
        zero, background = self._tab.zero.currentData(), self._tab.background.currentData()
        known = {label: (name, chosen.name) for label, name in _names(chosen).items()}
        for image, labels in self._tab.more.pairs:
            different = grid_problem(labels, image)
            if different:
                return (
                    f"{different}: choose {image.name} as volume to resample them, or take it out "
                    "of what is learned from"
                )
            meaning = self._painting.known_meaning_of(labels)
            if meaning is not None and meaning.zero != zero:
                return (
                    f"0 does not mean the same in {labels.name} and {chosen.name}: choose "
                    f"{image.name} as volume to change that, or take it out of what is learned from"
                )
            there = None if meaning is None else meaning.background
            if zero == UNLABELLED and there is not None and there != background:
                here = "none" if background is None else f"class {background}"
                return (
                    f"Class {there} means background in {labels.name}, and {here} in "
                    f"{chosen.name}: choose the same for both"
                )
            for label, name in _names(labels).items():
                other, where = known.setdefault(label, (name, labels.name))
                if other.casefold() != name.casefold():
                    return (
                        f"Class {label} is {other} in {where} and {name} in {labels.name}: "
                        "give it one name, or take one of them out of what is learned from"
                    )
        return ""


def _names(labels: Any) -> dict[int, str]:
    """Names that somebody has given to the classes of a layer."""
    return {label: name for label, name in given_names(names_of(labels)).items() if label}
