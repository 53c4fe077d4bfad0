"""What the Embed tab asks for: embedding a volume, saving it, and the cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_s2dc.errors import VolumeError
from napari_s2dc.widgets.embed_tab import EmbedTab
from napari_s2dc.widgets.encoder_actions import EncoderActions
from napari_s2dc.widgets.header import Header
from napari_s2dc.widgets.preferences import Preferences, preferences
from napari_s2dc.widgets.session import Embedded, LoadedEncoder, Session
from napari_s2dc.widgets.volumes_of_layers import problem_of, snapshot
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari_s2dc.engine.cache import EmbeddingCache

__all__ = ["EmbedActions"]


class EmbedActions(QObject):
    """Carry out what the Embed tab asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    header : Header
        Choices.
    encoders : EncoderActions
        Gives the settings.
    tab : EmbedTab
        Controls.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        header: Header,
        encoders: EncoderActions,
        tab: EmbedTab,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._header, self._tab, self._jobs = session, header, tab, jobs
        self._encoders = encoders
        self._tell = tell
        self._cache_problem = ""  # of the last embedding; looking up the size cannot tell
        tab.embed_wanted.connect(self.embed)
        tab.save_wanted.connect(self._save)
        tab.clear_cache_wanted.connect(self._clear_cache)

    def embed(self) -> None:
        """Embed the chosen volume in a thread and show its colours."""
        if self._jobs.is_running("embed"):
            self._tell("A volume is being embedded; wait for it, or cancel it first.")
            return
        layer = self._header.volume.layer
        try:
            source = snapshot(layer, self._header.level.currentData() or 0) if layer else None
            settings = None if source is None else self._encoders.settings(source)
        except VolumeError as error:
            self._tell(str(error))
            return
        if source is None or settings is None:
            self._tell(problem_of(None))
            return
        path = self._header.chosen_path
        if not path:
            self._tell(
                "The bundled encoder is missing. Install napari-s2dc again, or open a checkpoint."
            )
            return
        name = self._header.encoder.currentText()
        loaded = self._session.encoder
        cache_place = preferences()

        def steps() -> Generator[Any, None, tuple[Embedded, int, str]]:
            from napari_s2dc.engine.cache import EmbeddingCache, embed_cached
            from napari_s2dc.engine.probe import sharpe_map
            from napari_s2dc.method.encoder import SwinEncoder

            chosen = settings()
            encoder = loaded
            if encoder is None or str(encoder.path) != path:
                network = SwinEncoder.from_checkpoint(path)
                encoder = LoadedEncoder(network, name, Path(path))
            cache = EmbeddingCache(cache_place.cache_folder, cache_place.cache_limit_bytes)
            volume = source.load()
            embedding = yield from embed_cached(volume, encoder.network, chosen, cache)
            embedding.unit()  # here, not at the first click
            sharpe_map(embedding)
            embedded = Embedded(embedding, source, encoder, chosen)
            return embedded, cache.size_bytes(), cache.problem

        def done(found: tuple[Embedded, int, str]) -> None:
            embedded, size_bytes, self._cache_problem = found
            self._show_cache(size_bytes)
            if self._session.encoder is None:
                self._session.encoder = embedded.encoder
            if layer is None or not self._session.has(layer):
                self._tell(f"{source.name} was removed, so its embedding is not shown.")
                return
            self._session.keep(layer, embedded)
            if self._session.embedded(layer) is not embedded:
                return  # its data was replaced meanwhile, as the user is told
            notice = str(embedded.embedding.metadata.get("notice") or "")
            self._tell(notice or f"{layer.name} is embedded.")

        self._tell("")
        self._jobs.run("embed", f"Embedding {source.name}", steps, done)

    def _save(self, path: str) -> None:
        embedded = self._session.embedded(self._header.volume.layer)
        if embedded is None:
            return

        def save() -> str:
            from napari_s2dc.engine.embedding_file import save_embedding

            return str(save_embedding(embedded.embedding, path))

        self._jobs.write("Saving", save, lambda written: self._tell(f"Saved {written}."))

    def show_cache_size(self) -> None:
        """Look up in a thread how much is kept on disk."""
        look = _in_cache(preferences(), lambda cache: None)
        self._jobs.run("cache", "Cache", look, self._show_cache, quiet=True)

    def _clear_cache(self) -> None:
        self._jobs.cancel("cache")  # its answer would be that of before
        clear = _in_cache(preferences(), lambda cache: cache.clear())
        self._jobs.write("Clearing the cache", clear, self._show_cache)

    def _show_cache(self, size_bytes: int) -> None:
        self._tab.show_cache(size_bytes, self._cache_problem)


def _in_cache(place: Preferences, act: Callable[[EmbeddingCache], None]) -> Callable[[], int]:
    """Give a function for a thread that does something with the cache and returns its bytes."""

    def run() -> int:
        from napari_s2dc.engine.cache import EmbeddingCache

        cache = EmbeddingCache(place.cache_folder, place.cache_limit_bytes)
        act(cache)
        return cache.size_bytes()

    return run
