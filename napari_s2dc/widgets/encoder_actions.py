"""What the header asks for: encoders, devices, what embedding will take, warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_s2dc.engine.embed_settings import EmbedSettings, Region
from napari_s2dc.errors import S2DCError, VolumeError
from napari_s2dc.volumes.coarser import first_small
from napari_s2dc.widgets.embed_tab import IN_BOX, IN_VIEW, WHOLE, EmbedTab
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.regions import finder_round, region_shown, words
from napari_s2dc.widgets.session import LoadedEncoder, Session
from napari_s2dc.widgets.volumes_of_layers import (
    LayerSnapshot,
    problem_of,
    resolutions_of,
    snapshot,
    type_of,
)
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["EncoderActions"]

_PLAN_MS = 250
"""A stroke or a zoom has ended: only then its region is looked at."""


class EncoderActions(QObject):
    """Carry out what the header asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Choices.
    tab : EmbedTab
        Shows what embedding will take.
    jobs : Jobs
        Threads.
    """

    devices_known = Signal()

    def __init__(
        self, session: Session, header: Header, tab: EmbedTab, jobs: Jobs, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._tab, self._jobs = session, header, tab, jobs
        self._following = False
        self._followed: list[Any] = []  # emitters
        self._shapes: list[tuple[int, ...]] = []  # resolutions of the chosen volume
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_PLAN_MS)
        self._soon.timeout.connect(self._plan_now)
        self._look_again = False
        header.encoder_chosen.connect(self.load_encoder)
        header.details_wanted.connect(self._show_details)
        header.settings_changed.connect(self.update_plan)
        header.level.currentIndexChanged.connect(self._warn_of_mismatch)
        header.volume_changed.connect(self._on_volume)
        tab.region_changed.connect(self._on_region)
        session.encoder_changed.connect(self._on_encoder)

    def follow(self, on: bool) -> None:
        """Keep the plan up to date with what the region depends on, while the panel is shown."""
        self._following = on
        if on:
            self._on_region()
        else:
            self._soon.stop()
            self._let_go()

    def _on_region(self) -> None:
        self._let_go()
        layer = self._tab.box.layer
        if self._following and self._tab.region.currentData() == IN_VIEW:
            camera = self._session.viewer.scene.camera
            self._followed = [camera.events.zoom, camera.events.center]
        elif self._following and self._tab.region.currentData() == IN_BOX and layer is not None:
            self._followed = [layer.events.data]
            if type_of(layer) == "labels":
                self._followed.append(layer.events.paint)
        for emitter in self._followed:
            emitter.connect(self._plan_soon)
        self.update_plan()

    def _let_go(self) -> None:
        for emitter in self._followed:
            emitter.disconnect(self._plan_soon)
        self._followed = []

    def _plan_soon(self, _: object = None) -> None:
        self._look_again = self._tab.region.currentData() == IN_VIEW
        self._soon.start()

    def _plan_now(self) -> None:
        self.update_plan()
        if self._look_again:  # what the view shows is known only once it is drawn, maybe late
            self._look_again = False
            self._soon.start()

    def list_encoders(self) -> None:
        """Show which encoders are at hand, without reading them."""
        from napari_s2dc.engine.encoders import available_encoders

        choices = available_encoders()
        self._header.show_encoders(
            [(choice.name, str(choice.path), choice.description) for choice in choices]
        )
        if choices:
            self._header.about.setText(choices[0].description)
        encoder = self._session.encoder
        if encoder is not None:  # read by another panel of this viewer
            self._on_encoder()

    def load_chosen_encoder(self) -> None:
        """Read the chosen encoder, unless it is in memory; imports torch in a thread."""
        if self._jobs.is_running("encoder"):  # the user was faster
            return
        path = self._header.chosen_path
        loaded = self._session.encoder
        if path and (loaded is None or str(loaded.path) != path):
            self.load_encoder(self._header.encoder.currentText(), path)
        elif loaded is not None:  # another panel read it, this one does not know the devices
            self._jobs.run("devices", "Devices", _devices, self._show_devices, quiet=True)

    def _show_devices(self, devices: list[tuple[str, str]]) -> None:
        self._header.show_devices(devices)
        self.devices_known.emit()

    def load_encoder(self, name: str, path: str) -> None:
        """Read an encoder from any supported checkpoint.

        Parameters
        ----------
        name : str
            What to call it.
        path : str
            The file.
        """

        def load() -> tuple[LoadedEncoder, list[tuple[str, str]]]:
            from napari_s2dc.method.encoder import SwinEncoder

            network = SwinEncoder.from_checkpoint(path)
            return LoadedEncoder(network, name, Path(path)), _devices()

        def done(found: tuple[LoadedEncoder, list[tuple[str, str]]]) -> None:
            encoder, devices = found
            self._show_devices(devices)
            self._session.encoder = encoder

        self._jobs.run("encoder", f"Reading encoder {name}", load, done)

    def _on_encoder(self) -> None:
        encoder = self._session.encoder
        self._header.details.setEnabled(encoder is not None)
        if encoder is not None:
            self._header.add_encoder(encoder.name, str(encoder.path))
            self._header.about.setText(_about(encoder))
        self.update_plan()
        self._warn_of_mismatch()

    def _show_details(self) -> None:
        encoder = self._session.encoder
        if encoder is None:
            return
        network = encoder.network
        lines = [str(network.report)] if network.report is not None else []
        parts = (("Architecture", network.config.as_dict()), ("Metadata", network.metadata))
        for title, facts in parts:
            lines += ["", title]
            lines += [f"  {key.replace('_', ' ')}: {value}" for key, value in facts.items()]
        self._header.show_details(f"Encoder {encoder.name}", "\n".join(lines))

    def look_again(self) -> None:
        """Renew what is said of the chosen volume, whose data was replaced."""
        layer = self._header.volume.layer
        if resolutions_of(layer) != self._shapes:
            self._on_volume(layer)
        else:
            self._warn_of_mismatch()

    def _on_volume(self, layer: Layer | None) -> None:
        made = layer is not None and not getattr(layer, "multiscale", False)
        self._shapes = shapes = resolutions_of(layer)
        first = first_small(shapes) if made and shapes else 0
        self._header.show_levels(shapes, made=made, first=first)
        problem = problem_of(layer)
        self._tab.show_ready("" if layer is None else str(layer.name), problem)
        self.update_plan()
        self._warn_of_mismatch()

    def settings(self, source: LayerSnapshot) -> Callable[[], EmbedSettings]:
        """Note the settings as the header, the tab and the preferences have them.

        Parameters
        ----------
        source : LayerSnapshot
            What is to be embedded; the region is in its voxels.

        Returns
        -------
        callable
            Gives the settings; to be called in a thread, since it may look through labels. It
            raises VolumeError where the region that was chosen does not lie in the scan.

        Raises
        ------
        VolumeError
            The view shows nothing of the scan, or there is no layer to put a box round.
        """
        find = self._region(source)
        chosen = EmbedSettings(
            preset=self._header.preset.currentData(),
            device=self._header.device.currentData(),
            window_vox=preferences().window_vox,
        )
        return lambda: replace(chosen, roi=find())

    def _region(self, source: LayerSnapshot) -> Callable[[], Region | None]:
        layer, choice = self._header.volume.layer, self._tab.region.currentData()
        if layer is None or choice == WHOLE:
            return lambda: None
        if choice == IN_VIEW:
            dims = self._session.viewer.dims
            shown = tuple(axis - (dims.ndim - 3) for axis in dims.displayed)
            region = region_shown(layer, source, shown)
            return lambda: region
        bounds = self._tab.box.layer
        if bounds is None:
            raise VolumeError("There is no layer to put a box round.", "Choose the whole volume.")
        return finder_round(layer, bounds, source)

    def source(self) -> LayerSnapshot | None:
        """Note the chosen volume at its chosen resolution, None when it cannot be used."""
        layer = self._header.volume.layer
        try:
            return None if layer is None else snapshot(layer, self._header.level.currentData() or 0)
        except VolumeError:
            return None

    def update_plan(self, _: object = None) -> None:
        """Say what embedding will take with the choices of the moment."""
        source, encoder = self.source(), self._session.encoder
        if source is None or encoder is None:
            self._jobs.cancel("plan")
            self._tab.plan.setText("")
            return
        try:
            settings = self.settings(source)
        except S2DCError as error:
            self._jobs.cancel("plan")
            self._tab.plan.setText(str(error))
            return
        network = encoder.network

        def look() -> str:
            from napari_s2dc.engine.embed import plan

            try:
                chosen = settings()
                sentence = f"Takes {plan(source.shape, network, chosen).sentence}"
            except S2DCError as error:
                return str(error)
            where = words(chosen.roi)
            return f"{sentence}, for {where}." if where else f"{sentence}."

        if self._tab.region.currentData() != IN_BOX:
            self._jobs.cancel("plan")  # of the box that was chosen before
            self._tab.plan.setText(look())
        else:  # looks through all labels of a layer
            self._jobs.run("plan", "Planning", look, self._tab.plan.setText, quiet=True)

    def _warn_of_mismatch(self, _: object = None) -> None:
        """Compare scan and encoder in a thread, since it looks at the scan's values."""
        source, encoder = self.source(), self._session.encoder
        self._header.show_warning("")
        if source is None or encoder is None:
            return

        def compare() -> str:
            from napari_s2dc.engine.encoders import mismatch

            try:
                return mismatch(source.sample(), encoder.network)
            except VolumeError:
                return ""  # said when the user asks for the embedding

        self._jobs.run("mismatch", "Comparing", compare, self._header.show_warning, quiet=True)


def _about(encoder: LoadedEncoder) -> str:
    """Say what an encoder is and how much of its file fitted."""
    config, report = encoder.network.config, encoder.network.report
    words = f"{config.size_name.capitalize()} encoder, feature size {config.feature_size}"
    if config.borders:
        words += ", looks at borders of tissues"
    training = encoder.network.metadata.get("training")
    if isinstance(training, dict) and training.get("volumes"):
        words += f", trained on {training['volumes']} scans"
    if report is not None and report.fraction < 1:
        words += f"; {100 * report.fraction:.0f} % of its tensors fit"
    return words


def _devices() -> list[tuple[str, str]]:
    """Devices that torch finds, as (name in settings, words)."""
    import torch

    devices = [("auto", "Automatic"), ("cpu", "Processor")]
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        devices.append(("cuda", f"{name} (CUDA, {free / 1e9:.0f} GB free)"))
    if torch.backends.mps.is_available():
        devices.append(("mps", "Apple graphics (MPS, not tested)"))
    return devices
