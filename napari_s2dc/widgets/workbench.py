"""The dock widget: header, tabs, what runs, and the wiring between them."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtGui import QHideEvent, QPaintEvent, QShowEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.widgets.consistency_actions import ConsistencyActions
from napari_s2dc.widgets.embed_actions import EmbedActions
from napari_s2dc.widgets.embed_tab import EmbedTab
from napari_s2dc.widgets.encoder_actions import EncoderActions
from napari_s2dc.widgets.feature_views import FeatureViews
from napari_s2dc.widgets.forms import sentence_label
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.map_actions import MapActions
from napari_s2dc.widgets.match_actions import MatchActions
from napari_s2dc.widgets.match_pointer import MatchPointer
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.own_dock import OwnDock
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.probe_actions import ProbeActions
from napari_s2dc.widgets.probe_mouse import ProbeMouse, ProbePoint
from napari_s2dc.widgets.probe_tab import ProbeTab
from napari_s2dc.widgets.regions import can_bound
from napari_s2dc.widgets.scatter_views import ScatterViews
from napari_s2dc.widgets.scrolling import Scrolling
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.segment_wiring import Segmenting
from napari_s2dc.widgets.session import session_of
from napari_s2dc.widgets.shortcuts import register as register_shortcuts
from napari_s2dc.widgets.structure_actions import StructureActions
from napari_s2dc.widgets.task_bar import TaskBar
from napari_s2dc.widgets.transfer_actions import TransferActions
from napari_s2dc.widgets.volumes_of_layers import problem_of, type_of
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

__all__ = ["Workbench"]

_ALONE = "Embed a second volume to compare the two"
_NOT_ALIKE = "The volumes were embedded with different encoders; embed them with the same one"


class Workbench(QWidget):
    """The S²DC workbench of one viewer.

    Nothing heavy is imported to build it: it paints first, then reads the encoder in a thread.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Given by napari.
    """

    def __init__(self, napari_viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.session = session_of(napari_viewer)
        self._viewer = self.session.viewer
        self._shown = False
        self._painted = False
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._offer_now)
        self.dock = OwnDock(self)
        self.jobs = Jobs(self)
        self.header = Header(self._is_scan)
        register_shortcuts()
        self.embed_tab = EmbedTab(self._is_labels, self._is_bound)
        self.probe_tab = ProbeTab(self._is_target)
        self.match_tab = MatchTab(self._is_scan, self._is_atlas)
        self.segment_tab = SegmentTab(self._is_atlas)
        self.message = sentence_label()
        self.message.hide()
        self.task_bar = TaskBar(self.jobs)
        self.tabs = QTabWidget()
        for tab, title in (
            (self.embed_tab, "Embed"),
            (self.probe_tab, "Consistency"),
            (self.match_tab, "Match"),
            (self.segment_tab, "Segment"),
        ):
            self.tabs.addTab(Scrolling(tab), title)
        column = QVBoxLayout(self)
        column.addWidget(self.header)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.message)
        column.addWidget(self.task_bar)
        self.setMinimumWidth(415)  # as wide as the Consistency tab with its scroll bar

        # One tool has the mouse; connected first, so that it is free before the next one takes it.
        for pressed, other in (
            (self.match_tab.pointing_changed, self.probe_tab.probe_button),
            (self.probe_tab.probing_changed, self.match_tab.pointing),
        ):
            pressed.connect(functools.partial(_release, other))
        self._mouse = ProbeMouse(self._viewer, self._hits_tissue, self)
        self.encoders = EncoderActions(self.session, self.header, self.embed_tab, self.jobs, self)
        self.embedding = EmbedActions(
            self.session, self.header, self.encoders, self.embed_tab, self.jobs, self.tell, self
        )
        self.features = FeatureViews(self.session, self.header, self.embed_tab, self.jobs, self)
        self.scatter = ScatterViews(
            self.session, self.header, self.embed_tab, self.features, self.jobs, self.tell, self
        )
        self.probing = ProbeActions(
            self.session,
            self.probe_tab,
            self._mouse,
            lambda: self.header.volume.layer,
            self.tell,
            self,
        )
        self.consistency = ConsistencyActions(
            self.session,
            self.probe_tab,
            self.probing,
            self.jobs,
            lambda: self.header.volume.layer,
            self.tell,
            self,
        )
        self.structures = StructureActions(
            self.session, self.probe_tab, self.probing, self.jobs, self.tell, self
        )
        self.matching = MatchActions(self.session, self.match_tab, self.jobs, self.tell, self)
        self.pointer = MatchPointer(self.session, self.match_tab, self.matching, self.tell, self)
        self.transfers = TransferActions(
            self.session, self.match_tab, self.matching, self.jobs, self.tell, self
        )
        self.map = MapActions(self.session, self.match_tab, self.matching, self.tell, self)
        self.segmenting = Segmenting(
            self.session,
            self.header,
            self.encoders,
            self.segment_tab,
            self.jobs,
            self.tell,
            self._offer_soon,
            self,
        )
        self.jobs.failed.connect(self.tell)
        self.probing.patch_chosen.connect(self.scatter.mark_token)
        self.header.volume_changed.connect(self._offer_targets)
        self.header.volume_changed.connect(self._show_embedded)
        self.session.embedding_changed.connect(self._show_embedded)
        self.session.data_replaced.connect(self._on_replaced)
        self._device = preferences().device  # until the devices of the computer are known
        self.header.device.setCurrentIndex(max(0, self.header.device.findData(self._device)))
        self.header.device.activated.connect(self._on_device)  # by the user
        self.encoders.devices_known.connect(self._on_devices)
        self.encoders.list_encoders()
        self.embed_tab.show_ready("", problem_of(None))

    def tell(self, sentence: str) -> None:
        """Show a sentence below the tabs; "" takes the last one away."""
        self.message.setText(sentence)
        self.message.setVisible(bool(sentence))

    def show_tab(self, title: str, *, take_active: bool = True) -> None:
        """Bring the workbench and a tab of it to the front, the active layer chosen if wanted."""
        self.dock.come_forward()
        for index in range(self.tabs.count()):
            if self.tabs.tabText(index) == title:
                self.tabs.setCurrentIndex(index)
        if not take_active:
            return
        self._follow_active()
        active = self._viewer.layers.selection.active
        if title == "Match" and active is not None:
            self.matching.choose(active)
        problem = self._problem_of_active()
        if problem:
            self.tell(problem)

    def main_action(self, title: str) -> None:
        """Do what the main button of a tab does, if it can be pressed (keyboard shortcut)."""
        buttons = {
            "Embed": self.embed_tab.embed_button,
            "Consistency": self.probe_tab.probe_button,
            "Match": self.match_tab.match_button,
            "Segment": self.segment_tab.train_button,
        }
        button = buttons[title]
        if button.isEnabled():
            button.click()
        else:
            unusable = "" if self.header.volume.layer is not None else self._problem_of_active()
            self.tell(unusable or button.toolTip())

    def _problem_of_active(self) -> str:
        """Why the active layer is no scan, where it is an image; else empty."""
        active = self._viewer.layers.selection.active
        return problem_of(active) if active is not None and type_of(active) == "image" else ""

    # --------------------------------------------------------------------- what is offered
    def _hits_tissue(self, point: ProbePoint) -> bool:
        return self.probing.hits(point)

    def _is_scan(self, layer: Layer) -> bool:
        return not self.session.overlays.is_overlay(layer) and not problem_of(layer)

    def _is_labels(self, layer: Layer) -> bool:
        return type_of(layer) == "labels" and layer.ndim == 3

    def _is_atlas(self, layer: Layer) -> bool:
        return self._is_labels(layer) and not self.session.overlays.is_overlay(layer)

    def _is_bound(self, layer: Layer) -> bool:
        return not self.session.overlays.is_overlay(layer) and can_bound(layer)

    def _is_target(self, layer: Layer) -> bool:
        import numpy as np

        source = self.header.volume.layer
        return (
            source is not None
            and self._is_atlas(layer)
            and isinstance(layer.data, np.ndarray)
            and layer.data.shape == (source.data[0] if source.multiscale else source.data).shape
        )

    def _on_inserted(self, event: Any) -> None:
        if not self.session.overlays.is_overlay(event.value):  # results are offered nowhere
            self._offer()

    def _on_replaced(self, layer: Layer) -> None:
        self.tell(f"The data of {layer.name} was replaced: embed it again.")

    def _on_data(self, event: Any) -> None:
        self._offer()  # data of another shape may be no scan
        if plain(event.source) is self.header.volume.layer:
            self.encoders.look_again()

    def _offer_soon(self, _: object = None) -> None:
        """Wait for the end of what napari does: it walks along layers that must still be there."""
        self._soon.start()

    def _offer_now(self) -> None:
        self.matching.let_go_of_removed()
        self._offer()

    def _offer(self, _: object = None) -> None:
        """Renew all choices; adds and removes no layer, so that it may run within their events."""
        layers = list(self._viewer.layers)
        for layer in layers:
            if not self.session.overlays.is_overlay(layer):
                layer.events.name.connect(self._offer)  # connecting twice connects once
                if type_of(layer) == "image":
                    layer.events.data.connect(self._on_data)
        self.header.volume.offer(layers)
        self.embed_tab.labels.offer(
            layer for layer in layers if not self.session.overlays.is_overlay(layer)
        )
        self.embed_tab.box.offer(layers)
        self._offer_choices()
        self._offer_targets()
        self.matching.offer()
        self.segmenting.offer(layers, self.header.volume.layers)
        volume = self.header.volume.layer
        self.embed_tab.show_ready("" if volume is None else str(volume.name), problem_of(volume))
        self._show_embedded()

    def _offer_choices(self, _: object = None) -> None:
        self.embed_tab.show_choices(
            slices=self._viewer.dims.ndisplay == 2,
            boxes=self.embed_tab.box.layer is not None,
            umap=_has_umap(),
        )

    def _on_device(self, _: int) -> None:
        self._device = ""  # that of the preferences is not wanted any more

    def _on_devices(self) -> None:
        """Take the device of the preferences, or say that there is none."""
        wanted, self._device = self._device, ""
        index = self.header.device.findData(wanted)
        if index >= 0:
            self.header.device.setCurrentIndex(index)
        elif wanted:
            self.tell(f"There is no {wanted.upper()} device here; the device is chosen by itself.")

    def _offer_targets(self, _: object = None) -> None:
        self.probe_tab.target.offer(self._viewer.layers)

    def _show_embedded(self, _: object = None) -> None:
        embedded = self.session.embedded_layers()
        chosen = self.header.volume.layer
        names = [str(layer.name) for layer in embedded if plain(layer) is chosen]
        found = [self.session.embedded(layer) for layer in embedded]
        several = any(
            one is not None and other is not None and one.comparable_to(other)
            for one, other in itertools.combinations(found, 2)
        )
        alone = "" if several else _ALONE if len(found) < 2 else _NOT_ALIKE
        self.probe_tab.show_embedded(
            names[0] if names else str(embedded[0].name) if embedded else "", alone
        )

    def _follow_active(self, _: object = None) -> None:
        if self.session.overlays.keeps_selection:
            return  # whoever chose another volume in the header keeps it when a result comes up
        active = self._viewer.layers.selection.active
        if active is not None and plain(active) is not self.header.volume.layer:
            self.header.volume.choose(active)  # does nothing for layers that are no scan

    # ------------------------------------------------------------------- shown and hidden
    def showEvent(self, event: QShowEvent) -> None:
        """Follow the viewer from now on."""
        super().showEvent(event)
        if self._shown:
            return
        self._shown = True
        self.dock.follow()
        layers = self._viewer.layers
        layers.events.inserted.connect(self._on_inserted)
        for emitter in (layers.events.removed, layers.events.reordered):
            emitter.connect(self._offer_soon)
        layers.selection.events.active.connect(self._follow_active)
        self._viewer.dims.events.ndisplay.connect(self._offer_choices)
        self._offer_now()
        self.encoders.look_again()  # of data that was replaced meanwhile
        self._follow_active()
        self.matching.resume()
        self.segmenting.resume()
        self.encoders.follow(True)

    def hideEvent(self, event: QHideEvent) -> None:
        """Let the viewer go: this is all a widget in a dock hears of being closed."""
        super().hideEvent(event)
        # A minimised window comes back; that must not end probing.
        if not self._shown or event.spontaneous():
            return
        self._shown = False
        self._soon.stop()
        self.dock.on_hidden()
        self.probe_tab.probe_button.setChecked(False)
        self.match_tab.pointing.setChecked(False)
        try:
            layers = self._viewer.layers
        except ReferenceError:  # the viewer went first
            return
        self.encoders.follow(False)
        layers.events.inserted.disconnect(self._on_inserted)
        for emitter in (layers.events.removed, layers.events.reordered):
            emitter.disconnect(self._offer_soon)
        for layer in layers:
            layer.events.name.disconnect(self._offer)
            layer.events.data.disconnect(self._on_data)
        layers.selection.events.active.disconnect(self._follow_active)
        self._viewer.dims.events.ndisplay.disconnect(self._offer_choices)
        self.matching.suspend()
        self.segmenting.suspend()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Begin the slow part once the first picture is on the screen."""
        super().paintEvent(event)
        if not self._painted:
            self._painted = True
            QTimer.singleShot(250, self._warm_up)

    def _warm_up(self) -> None:
        if self._shown:
            self.encoders.load_chosen_encoder()
            self.embedding.show_cache_size()
            self.segmenting.autosave.look()


@functools.cache
def _has_umap() -> bool:
    """Whether UMAP is installed; looked up once, since that searches folders."""
    return importlib.util.find_spec("umap") is not None


def _release(tool: QAbstractButton, pressed: bool) -> None:
    """Let go of a tool that has the mouse when another one is pressed."""
    if pressed:
        tool.setChecked(False)
