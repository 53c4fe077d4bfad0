"""Neighbourhood consistency: of the probed patch, and as a map of the whole volume."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qtpy.QtCore import QObject, QTimer

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.probe_actions import ProbeActions, Token
from napari_s2dc.widgets.probe_tab import ProbeTab
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.probe import ConsistencyMap, ConsistencyReading

__all__ = ["ConsistencyActions"]

_REST_MS = 400
"""The mouse has come to rest: only then views of a patch are worth their second."""


class ConsistencyActions(QObject):
    """Carry out what the Consistency tab asks for about consistency itself.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : ProbeTab
        Controls.
    probe : ProbeActions
        Says which patch was chosen.
    jobs : Jobs
        Threads.
    current : callable
        Gives the volume chosen in the header.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: ProbeTab,
        probe: ProbeActions,
        jobs: Jobs,
        current: Callable[[], Layer | None],
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._probe, self._jobs = session, tab, probe, jobs
        self._current, self._tell = current, tell
        self._maps: WeakKeyDictionary[Any, ConsistencyMap] = WeakKeyDictionary()
        self._waiting: tuple[Any, Token] | None = None
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST_MS)
        self._rest.timeout.connect(self._read_nearby)
        probe.patch_chosen.connect(self._on_patch)
        probe.forgotten.connect(self._stop)
        tab.consistency_wanted.connect(self.compute_map)
        session.embedding_changed.connect(self._on_embedding)

    def _on_embedding(self, layer: Layer) -> None:
        # Another embedding, or none: the map would not be its own.
        self._maps.pop(plain(layer), None)
        self._session.overlays.remove(layer, "consistency")

    # --------------------------------------------------------------------------- a patch
    def _stop(self) -> None:
        self._waiting = None
        self._rest.stop()
        self._jobs.cancel("near")

    def _on_patch(self, layer: Layer, token: Token) -> None:
        """Read the map where it is computed, or wait until the mouse rests."""
        from napari_s2dc.engine.probe import consistency_at

        known = self._maps.get(plain(layer))
        if known is not None:
            self._stop()
            self._tab.show_consistency(_words(consistency_at(known, token), "of the map"))
            return
        if self._waiting is not None and self._waiting == (plain(layer), token):
            return  # being computed, or shown
        self._stop()
        self._waiting = plain(layer), token
        self._tab.show_consistency("…")
        self._rest.start()

    def _read_nearby(self) -> None:
        waiting = self._waiting
        embedded = None if waiting is None else self._session.embedded(waiting[0])
        if waiting is None or embedded is None:
            return
        if any(self._jobs.is_running(name) for name in ("embed", "consistency", "match", "mirror")):
            self._rest.start()  # they need the processor
            return
        token, seed = waiting[1], preferences().seed

        def steps() -> Generator[Any, None, ConsistencyReading]:
            from napari_s2dc.engine.local_consistency import consistency_near

            return (
                yield from consistency_near(
                    embedded.source.load(),
                    embedded.encoder.network,
                    embedded.settings,
                    embedded.embedding,
                    token,
                    seed=seed,
                )
            )

        def done(found: ConsistencyReading) -> None:
            if self._waiting == waiting:
                self._tab.show_consistency(_words(found, "nearby"))

        self._tab.show_consistency("comparing views…")
        self._jobs.run("near", "Consistency of the patch", steps, done, quiet=True)

    # ------------------------------------------------------------------------------- map
    def compute_map(self, views: int) -> None:
        """Compute the neighbourhood consistency of the chosen volume in a thread and show it."""
        layer = self._current()
        embedded = self._session.embedded(layer)
        if layer is None or embedded is None:
            self._tell("Embed the chosen volume first, on the Embed tab.")
            return
        seed = preferences().seed

        def steps() -> Generator[Any, None, ConsistencyMap]:
            from napari_s2dc.engine.probe import consistency_map

            return (
                yield from consistency_map(
                    embedded.source.load(),
                    embedded.encoder.network,
                    embedded.settings,
                    views=views,
                    seed=seed,
                    embedding=embedded.embedding,
                )
            )

        def done(found: ConsistencyMap) -> None:
            self._show(layer, embedded, found)

        self._tell("")
        self._stop()
        self._jobs.run("consistency", f"Consistency of {embedded.source.name}", steps, done)

    def _show(self, layer: Layer, embedded: Embedded, found: ConsistencyMap) -> None:
        if not self._session.has(layer):
            self._tell("The volume was removed, so its map is not shown.")
            return
        if self._session.embedded(layer) is not embedded:
            change = self._session.change_of(layer)
            self._tell(f"{change}, so the map of before is not shown.")
            return
        self._maps[plain(layer)] = found
        self._session.overlays.show_heat(
            layer, found.mean.numpy(), embedded.geometry(layer), "consistency"
        )
        self._probe.announce()  # the readout takes the map's value
        self._tell(f"The consistency map of {layer.name} is shown.")


def _words(reading: ConsistencyReading, what: str) -> str:
    if reading.count == 0:
        return "not known: no tissue, or no view shows it"
    views = "1 view" if reading.count == 1 else f"{reading.count} views"
    return f"{reading.mean:.2f} ± {reading.spread:.2f}, {views} {what}"
