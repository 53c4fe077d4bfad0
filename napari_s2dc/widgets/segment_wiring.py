"""All that carries out what the Segment tab asks for, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from napari_s2dc.widgets.encoder_actions import EncoderActions
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.segment_actions import SegmentActions
from napari_s2dc.widgets.segment_autosave import AutosaveActions
from napari_s2dc.widgets.segment_carrying import CarryingActions
from napari_s2dc.widgets.segment_choices import SegmentChoices
from napari_s2dc.widgets.segment_evaluation import EvaluationActions
from napari_s2dc.widgets.segment_layers import SegmentLayers
from napari_s2dc.widgets.segment_models import ModelActions
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_places import PlaceActions
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_tuning import TuningActions
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Labels, Layer

__all__ = ["Segmenting"]


class Segmenting(QObject):
    """The controllers of the Segment tab.

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
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    offer : callable
        Renews all choices among layers.
    """

    def __init__(
        self,
        session: Session,
        header: Header,
        encoders: EncoderActions,
        tab: SegmentTab,
        jobs: Jobs,
        tell: Callable[[str], None],
        offer: Callable[[], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._tab, self._renew = tab, offer
        self.layers = SegmentLayers(session, self._on_corrected)
        self.painting = PaintingActions(
            session,
            tab,
            self.layers,
            jobs,
            lambda: header.volume.layer,
            lambda: header.volume.layers,
            tell,
            self,
        )
        header.volume_changed.connect(self.painting.suggest)
        self.choices = SegmentChoices(session, header, encoders, tab, self.painting, self)
        self.training = SegmentActions(
            session, tab, self.choices, self.painting, self.layers, jobs, tell, self
        )
        self.carrying = CarryingActions(session, tab, self.painting, self.layers, jobs, tell, self)
        self.training.carrying_wanted.connect(self.carrying.ask)
        self.tuning = TuningActions(tab, self.training, jobs, self)
        self.models = ModelActions(session, tab, self.choices, self.training, jobs, tell, self)
        self.places = PlaceActions(
            session, tab, self.choices, self.training, self.painting, jobs, tell, self
        )
        self.evaluation = EvaluationActions(
            session, tab, self.choices, self.training, self.layers, jobs, tell, self
        )
        self.autosave = AutosaveActions(session, tab, self.painting, jobs, tell, self)

    def offer(self, layers: list[Layer], scans: list[Layer]) -> None:
        """Renew the choices after layers came, went or changed name."""
        self.painting.offer(layers)
        self._tab.scores.reference.offer(layers)
        self._tab.models.offer_targets(scans)
        self.choices.offer()

    def _on_corrected(self, layer: Labels) -> None:
        """Keep a segmentation that was painted in as any labels, and offer it as those."""
        self.autosave.follow(layer)
        self.autosave.mark(layer)
        self._renew()

    def resume(self) -> None:
        """Follow the labels."""
        self.painting.follow(True)

    def suspend(self) -> None:
        """Let the labels go, while the panel is hidden."""
        self.painting.follow(False)
