"""What is done with a trained model: other scans, a folder, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_s2dc.errors import VolumeError
from napari_s2dc.widgets.segment_actions import SegmentActions
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_tab import QUICK, SegmentTab
from napari_s2dc.widgets.segment_use import FolderOutcome, segment_folder
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.volumes_of_layers import level_like, snapshot
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.segmentation_model import SegmentationModel

__all__ = ["ModelActions"]

_NAMED = 3
"""Classes, or files that failed, that are named; more are counted."""


class ModelActions(QObject):
    """Carry out what the Model box of the Segment tab asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    choices : SegmentChoices
        What is chosen.
    segmenting : SegmentActions
        Has the model.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        choices: SegmentChoices,
        segmenting: SegmentActions,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._choices = session, tab, choices
        self._segmenting, self._jobs, self._tell = segmenting, jobs, tell
        box = tab.models
        box.apply_wanted.connect(self._apply)
        box.folder_wanted.connect(self._apply_to_folder)
        box.save_wanted.connect(self._save)
        box.load_wanted.connect(self._load)
        box.export_wanted.connect(self._export)
        segmenting.model_changed.connect(self._show)

    def _show(self) -> None:
        model = self._segmenting.model
        self._tab.models.show_model("" if model is None else _about(model))

    def _apply(self, layer: Layer | None) -> None:
        """Segment another scan."""
        model = self._segmenting.model
        if model is None or layer is None:
            return
        try:
            scan = snapshot(layer, _level_of(layer, model))
        except VolumeError as error:
            self._tell(str(error))
            return
        self._tell("")
        self._segmenting.use(model, layer, scan)

    def _apply_to_folder(self, scans: str, results: str) -> None:
        """Segment all scans of a folder, as the command ``s2dc segment`` does."""
        model = self._segmenting.model
        if model is None:
            return
        device = self._choices.device
        self._tell("")
        self._jobs.run(
            "segment folder",
            f"Segmenting {Path(scans).name}",
            lambda: segment_folder(model, Path(scans), Path(results), device),
            lambda outcome: self._tell(_report(outcome, results)),
        )

    def _save(self, path: str) -> None:
        model = self._segmenting.model
        if model is None:
            return
        self._jobs.write(
            "Saving the model",
            lambda: model.save(path),
            lambda written: self._tell(f"Saved {written}."),
        )

    def _load(self, path: str) -> None:
        def load() -> Any:
            from napari_s2dc.engine.segmentation_model import SegmentationModel

            return SegmentationModel.load(path)

        def done(model: SegmentationModel) -> None:
            self._tab.flips.setChecked(model.segment.flips)
            self._tab.largest.setChecked(model.segment.largest_component)
            self._segmenting.model = model
            self._tell(f"Loaded {Path(path).name}; “Apply to” segments scans with it.")

        self._jobs.run("segment load", f"Reading {Path(path).name}", load, done)

    def _export(self, path: str) -> None:
        settings, target = self._choices.settings(), Path(path)
        encoder = self._choices.encoder
        folder = self._choices.unlabelled
        more = "" if folder is None else f" and --unlabelled {folder}"

        def write() -> Path:
            from napari_s2dc.engine.fewshot_settings import write_settings

            write_settings(settings, target, encoder=encoder)
            return target

        self._jobs.write(
            "Exporting the settings",
            write,
            lambda written: self._tell(f"Saved {written}, for s2dc finetune --config{more}."),
        )


def _level_of(layer: Layer, model: SegmentationModel) -> int:
    """Resolution level of a layer with voxels most like those that a model was trained on."""
    from napari_s2dc.engine.segment_files import spacing_of_training

    wanted = spacing_of_training(model)
    return 0 if wanted is None else level_like(layer, wanted)


def _about(model: SegmentationModel) -> str:
    """Say what a model knows."""
    kind = "Quick" if model.kind == QUICK else "Fine-tuned Swin UNETR"
    names = [one.name for one in model.classes]
    words = f"{kind}: {_some(names)}."
    if more := model.metadata.get("unlabelled_scans"):
        scans = "1 unlabelled scan" if len(more) == 1 else f"{len(more)} unlabelled scans"
        words += f" It learned from {scans} too."
    if left_out := model.metadata.get("left_out"):
        one = len(left_out) == 1
        words += f" {left_out[0]}" if one else f" {len(left_out)} could not be used: {left_out[0]}"
    return words


def _report(outcome: FolderOutcome, folder: str) -> str:
    """Say what became of the scans of a folder."""
    words = f"{outcome.done} of {outcome.done + len(outcome.skipped)} scans are in {folder}."
    if outcome.kept:
        words += f" {outcome.kept} of them were there already, made by this model."
    if outcome.unlike:
        words += f" Look at {_some(outcome.unlike, '; ')}."
    if outcome.skipped:
        words += f" Skipped: {_some(outcome.skipped, '; ')}"
    return words


def _some(names: list[str], between: str = ", ") -> str:
    more = len(names) - _NAMED
    return between.join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
