"""Keep labels and classes in files while they are painted, and offer them after a crash."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from qtpy.QtCore import QObject, QTimer

from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets.layers import geometry_of, plain
from napari_s2dc.widgets.segment_layers import (
    colormap_of,
    finest,
    kept_colours,
    name_class,
    names_of,
)
from napari_s2dc.widgets.segment_meaning import Meaning
from napari_s2dc.widgets.segment_painting import PaintingActions
from napari_s2dc.widgets.segment_recovery import (
    KeptLabels,
    autosave_folder,
    left_behind,
    own_name,
    read_facts,
    read_labels,
)
from napari_s2dc.widgets.segment_tab import SegmentTab
from napari_s2dc.widgets.session import Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["AutosaveActions"]

_PAUSE_MS = 3000
"""Between two files: a stroke waits for as long, at most, until it is kept."""

_numbers = count()
_own: set[Path] = set()


@atexit.register
def _remove_own() -> None:
    """Nothing is to be restored when a session ends as it should."""
    for path in _own:
        with suppress(OSError):
            path.unlink()


class AutosaveActions(QObject):
    """Keep what is painted, and carry out what is asked for about what was kept.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : SegmentTab
        Controls.
    painting : PaintingActions
        The labels.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    def __init__(
        self,
        session: Session,
        tab: SegmentTab,
        painting: PaintingActions,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._painting = session, tab, painting
        self._jobs, self._tell = jobs, tell
        self._paths: WeakKeyDictionary[Any, Path] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
        self._due: WeakSet[Any] = WeakSet()
        self._being_written = 0
        self._left: list[tuple[Path, KeptLabels]] = []
        self._looked = False
        self._problem = ""
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_PAUSE_MS)
        self._soon.timeout.connect(self.keep)
        painting.undone.connect(self.mark)
        painting.changed.connect(self._on_changed)
        tab.mode_changed.connect(self._on_changed)
        tab.restore_wanted.connect(self._restore)
        tab.discard_wanted.connect(self._discard)

    # ----------------------------------------------------------------------------- keeping
    def follow(self, layer: Labels) -> None:
        """Keep what is painted in a layer from now on, whether or not the tab has chosen it."""
        for emitter in (layer.events.paint, layer.events.data):
            emitter.connect(self._on_painted)  # connecting twice connects once

    def mark(self, layer: Labels) -> None:
        """Keep a layer as it is now."""
        self._due.add(plain(layer))
        self._start()

    def _on_painted(self, event: Any) -> None:
        with suppress(RuntimeError):  # the workbench was closed, and its timer went with it
            self.mark(event.source)

    def _on_changed(self) -> None:
        """Follow the chosen labels, and keep their classes once they were painted."""
        layer = self._painting.labels
        if layer is None:
            return
        self.follow(layer)
        if layer in self._kept and _without_time(self._facts(layer)) != self._kept[layer]:
            self.mark(layer)

    def _start(self) -> None:
        # Not begun anew: who paints without a rest is kept too. A large file may take longer.
        if not (self._soon.isActive() or self._being_written):
            self._soon.start()

    def keep(self) -> None:
        """Write what is due in a thread."""
        for layer in list(self._due):
            facts, labels = self._facts(layer), finest(layer)
            path = self._paths.setdefault(layer, autosave_folder() / own_name(next(_numbers)))
            _own.add(path)
            self._kept[layer] = _without_time(facts)
            self._being_written += 1
            self._jobs.write("Keeping the labels", _writer(facts, labels, path), self._on_kept)
        self._due.clear()

    def _on_kept(self, problem: str) -> None:
        self._being_written -= 1
        if self._due:
            self._start()
        if problem and problem != self._problem:  # once, not after every stroke
            self._tell(f"The labels are not kept for the case of a crash. {problem}")
        self._problem = problem

    def _facts(self, layer: Labels) -> KeptLabels:
        meaning = self._painting.meaning_of(layer)
        painted = self._painting.counts if layer is self._painting.labels else None
        known = layer.metadata.get("s2dc", {})
        affine = known.get("affine")
        return KeptLabels(
            name=str(layer.name),
            geometry=_as_plain_values(geometry_of(layer)),
            names=names_of(layer),
            colours=kept_colours(layer, painted or ()),
            zero=meaning.zero,
            background=meaning.background,
            image=str(known.get("path") or ""),
            affine=None if affine is None else np.asarray(affine, float).tolist(),
            mode=str(self._tab.mode.currentData()),
        )

    # --------------------------------------------------------------------------- restoring
    def look(self) -> None:
        """Look once for labels of a session that ended in a crash, in a thread."""
        if not self._looked:
            self._looked = True
            self._jobs.run("segment left", "Looking for labels", _look, self._offer, quiet=True)

    def _offer(self, left: list[tuple[Path, KeptLabels]]) -> None:
        self._left = left
        if left and not self._tab.isVisible():
            self._tell("The Segment tab offers labels of a session that did not end properly.")
        words = [f"{facts.name} ({_when(facts)})" for _, facts in left]
        self._tab.show_offer(
            f"Labels of a session that did not end properly: {', '.join(words)}." if left else ""
        )

    def _restore(self) -> None:
        left, self._left = self._left, []
        self._tab.show_offer("")

        def read() -> list[np.ndarray | None]:
            found: list[np.ndarray | None] = []
            for path, _ in left:
                try:
                    found.append(read_labels(path))
                except S2DCError:
                    found.append(None)
            return found

        def done(found: list[np.ndarray | None]) -> None:
            damaged = [
                facts.name for (_, facts), one in zip(left, found, strict=True) if one is None
            ]
            for (path, facts), labels in zip(left, found, strict=True):
                if labels is not None:
                    self._show(path, facts, labels)
            images = {facts.image for _, facts in left if facts.image}
            words = "The labels are back."
            if images:
                words += f" They were painted on {', '.join(sorted(images))}."
            if damaged:
                words += f" What was kept of {', '.join(damaged)} is damaged."
            self._tell(words)

        self._jobs.run("segment restore", "Restoring the labels", read, done)

    def _show(self, path: Path, facts: KeptLabels, labels: np.ndarray) -> None:
        layer = plain(
            self._session.overlays.own_labels(
                labels,
                facts.name,
                facts.geometry,
                colormap=colormap_of(facts.colours),
                metadata=self._grid_of_file(facts),
            )
        )
        name_class(layer, facts.names)
        self.follow(layer)
        mode = self._tab.mode.findData(facts.mode)
        if mode >= 0:
            self._tab.mode.setCurrentIndex(mode)
        image = self._painting.scan_of(layer, facts.image)
        self._painting.take(layer, Meaning(facts.zero, facts.background), image)
        # Until the next stroke the file is all there is, so this process takes it over.
        mine = autosave_folder() / own_name(next(_numbers))
        self._paths[layer] = mine
        self._kept[layer] = _without_time(self._facts(layer))
        _own.add(mine)
        self._jobs.write("Keeping the labels", lambda: path.replace(mine), lambda _: None)

    def _grid_of_file(self, facts: KeptLabels) -> dict[str, Any]:
        """Metadata by which labels are saved on the grid of the scan that they were painted on."""
        if facts.affine is None:
            return {}
        for layer in self._session.viewer.layers:
            known = layer.metadata.get("s2dc", {})
            if facts.image and str(known.get("path")) == facts.image:
                return {"s2dc": known}
        return {"s2dc": {"affine": np.array(facts.affine), "path": facts.image or None}}

    def _discard(self) -> None:
        left, self._left = self._left, []
        self._tab.show_offer("")

        def remove() -> None:
            for path, _ in left:
                path.unlink(missing_ok=True)

        self._jobs.write("Deleting the labels", remove, lambda _: None)


def _writer(facts: KeptLabels, labels: Any, path: Path) -> Callable[[], str]:
    def write() -> str:
        try:
            facts.write(labels, path)
        except Exception as error:  # told, whatever it is, so that the next file is tried
            return str(error) or type(error).__name__
        return ""

    return write


def _look() -> list[tuple[Path, KeptLabels]]:
    found = []
    for path in left_behind(autosave_folder()):
        with suppress(S2DCError):  # a damaged file is of no use to anyone
            found.append((path, read_facts(path)))
    return found


def _without_time(facts: KeptLabels) -> dict[str, Any]:
    return {name: value for name, value in asdict(facts).items() if name != "saved"}


def _as_plain_values(geometry: dict[str, Any]) -> dict[str, Any]:
    """Give a geometry as JSON holds it."""
    values: dict[str, Any] = {
        name: np.asarray(geometry[name]).tolist()
        for name in ("scale", "translate", "rotate", "shear", "affine")
    }
    values["units"] = [str(unit) for unit in geometry["units"]]
    values["axis_labels"] = list(geometry["axis_labels"])
    return values


def _when(facts: KeptLabels) -> str:
    return datetime.fromisoformat(facts.saved).strftime("%d %b %Y, %H:%M")
