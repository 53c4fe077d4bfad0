"""What the Match tab asks for: matching, self-check, what is shown of it, export."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import QObject, Signal

from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets.layer_combo import most_alike
from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.match_jobs import check_itself, check_mirrored, match_two
from napari_s2dc.widgets.match_layers import MatchLayers
from napari_s2dc.widgets.match_places import MatchedScans
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.moves import Moves
from napari_s2dc.widgets.preferences import preferences
from napari_s2dc.widgets.session import Embedded, Session
from napari_s2dc.widgets.workers import Jobs

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_s2dc.engine.match import Match
    from napari_s2dc.engine.match_checks import Assessment
    from napari_s2dc.engine.self_check import SelfCheck

__all__ = ["MatchActions"]


class MatchActions(QObject):
    """Carry out what the Match tab asks for.

    Parameters
    ----------
    session : Session
        State of the viewer.
    tab : MatchTab
        Controls.
    jobs : Jobs
        Threads.
    tell : callable
        Shows a sentence to the user.
    """

    match_changed = Signal()
    """Another match, none, or the same one in another place."""
    choices_changed = Signal()
    """Layers, choices or the match: what can be done next."""

    def __init__(
        self,
        session: Session,
        tab: MatchTab,
        jobs: Jobs,
        tell: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._session, self._tab, self._jobs, self._tell = session, tab, jobs, tell
        self.layers = MatchLayers(session)
        self._moves = Moves(self)
        self._moves.happened.connect(self._on_moved)
        self._scans: MatchedScans | None = None
        self._found: Assessment | None = None
        self._views = 0
        self._suspended = False
        self._reference_is_users = False
        self._labels_of: ref[Any] | None = None
        tab.match_wanted.connect(self.match)
        tab.scans_changed.connect(self.update)
        tab.pairs_changed.connect(self._show_pairs)
        tab.beside_changed.connect(self.place)
        tab.unmatched_changed.connect(lambda on: self.layers.show_unmatched(on))
        tab.export_wanted.connect(self._export)
        tab.reference.activated.connect(self._on_reference)  # by the user, not by the program
        session.embedding_changed.connect(self._on_embedding)

    @property
    def scans(self) -> MatchedScans | None:
        """The match that is shown."""
        return self._scans

    @property
    def found(self) -> Assessment | None:
        """What is known of it."""
        return self._found

    # ------------------------------------------------------------------------ what is possible
    def offer(self) -> None:
        """Renew the choices after layers came, went or changed name."""
        layers = list(self._session.viewer.layers)
        self._tab.moving.offer(layers)
        self._tab.reference.offer(layers)
        self._tab.labels.offer(layers)
        self.update()

    def let_go_of_removed(self) -> None:
        """Drop a match whose volumes the user has removed, and what stood for a removed copy.

        It removes layers itself, so it must not be called while napari removes some.
        """
        scans, beside = self._scans, self._tab.beside
        if scans is not None and not (
            self._session.has(scans.moving)
            and (scans.reference is None or self._session.has(scans.reference))
        ):
            self._forget()
            self._tell("A matched volume was removed, so the match is gone.")
        elif self.layers.is_copy_gone:
            if beside.isChecked():
                beside.setChecked(False)  # shows the reference again
            else:
                self.place(beside=False)

    def _on_reference(self, _: int) -> None:
        self._reference_is_users = True

    def _suggest_reference(self) -> None:
        """Choose another embedded volume where none is chosen."""
        moving = self._tab.moving.layer
        others = [one for one in self._session.embedded_layers() if plain(one) is not moving]
        if self._tab.reference.layer is None and others and self._scans is None:
            self._tab.reference.choose(others[-1])

    def _suggest_labels(self) -> None:
        """Choose the labels whose name is most like that of another moving scan than before."""
        moving, offered = self._tab.moving.layer, self._tab.labels.layers
        before = None if self._labels_of is None else self._labels_of()
        if moving is None or not offered or moving is before:
            return
        self._labels_of = ref(moving)
        self._tab.labels.choose(most_alike(offered, str(moving.name)))

    def choose(self, layer: Layer) -> None:
        """Take a layer as the moving one, and another one as reference where it was that one."""
        if self._tab.moving.choose(layer) and self._tab.reference.layer is self._tab.moving.layer:
            self._tab.reference.choose(None)
            self._suggest_reference()

    def update(self) -> None:
        """Say what the buttons will do, or why they cannot."""
        self._suggest_labels()
        moving, reference = self._tab.moving.layer, self._tab.reference.layer
        words, problem = "Match", self._problem(moving, reference)
        if moving is not None:
            other = "a random view of itself" if reference is None else reference.name
            words = f"Match {moving.name} with {other}"
        self._tab.show_ready(words, problem)
        self.choices_changed.emit()

    def _problem(self, moving: Layer | None, reference: Layer | None) -> str:
        if moving is None:
            return "Open a 3D image first"
        one = self._session.embedded(moving)
        if one is None:
            return f"Embed {moving.name} first, on the Embed tab"
        if reference is None:
            return ""
        if reference is moving:
            return "Choose another volume, or “Same volume, random view”"
        two = self._session.embedded(reference)
        if two is None:
            return f"Embed {reference.name} first, on the Embed tab"
        if not one.comparable_to(two):
            return f"Embed {moving.name} and {reference.name} with the same encoder"
        return ""

    def _on_embedding(self, layer: Layer) -> None:
        scans = self._scans
        if scans is not None and plain(layer) in (scans.moving, scans.reference):
            self._forget()  # it was made of other features
        self.offer()
        if not self._reference_is_users:
            self._suggest_reference()

    def _forget(self) -> None:
        for name in ("mirror", "transfer"):
            self._jobs.cancel(name)
        self._scans, self._found = None, None
        self._moves.watch(())
        self.layers.close()
        self._tab.show_match("", 0)
        self.match_changed.emit()
        self.update()

    # -------------------------------------------------------------------------------- matching
    def match(self) -> None:
        """Match the chosen scans in a thread and show the pairs; until then stays what is shown."""
        moving, reference = self._tab.moving.layer, self._tab.reference.layer
        if self._problem(moving, reference):
            return
        a, b = self._session.embedded(moving), self._session.embedded(reference)
        assert a is not None
        chosen, align = self._tab.matching, self._tab.align.isChecked()
        seed = preferences().seed + self._views
        self._tell("")
        if reference is None or b is None:
            self._views += 1  # another view the next time

            def checked(found: tuple[SelfCheck, Assessment, Any]) -> None:
                if self._is_outdated(moving, a):
                    return
                check, worth, alone = found
                scans = MatchedScans(
                    check.match, worth.pairs, alone, moving, a, view=check.known.image
                )
                self._show(scans, worth, f"Known truth: {check.sentence}")

            self._jobs.run(
                "match",
                f"Matching {a.source.name} with itself",
                lambda: check_itself(a, chosen, align, seed),
                checked,
            )
            return

        def matched(found: tuple[Match, Assessment, Any]) -> None:
            if self._is_outdated(moving, a) or self._is_outdated(reference, b):
                return
            match, worth, alone = found
            self._show(MatchedScans(match, worth.pairs, alone, moving, a, reference, b), worth)
            self._jobs.run(
                "mirror",
                "Checking left and right",
                lambda: check_mirrored(match, a, b, chosen),
                self._show_mirrored,
            )

        self._jobs.run(
            "match",
            f"Matching {a.source.name} with {b.source.name}",
            lambda: match_two(a, b, chosen, align),
            matched,
        )

    def _is_outdated(self, layer: Layer, embedded: Embedded) -> bool:
        """Whether a layer went, or its embedding did, while it was matched; says so."""
        if not self._session.has(layer):
            self._tell("A volume was removed, so the match is not shown.")
        elif self._session.embedded(layer) is not embedded:
            change = self._session.change_of(layer)
            self._tell(f"{change}, so the match of before is not shown.")
        else:
            return False
        return True

    def _show(self, scans: MatchedScans, found: Assessment, summary: str = "") -> None:
        self._forget()  # the match of before, which was kept until now
        self._scans, self._found = scans, found
        if not summary:
            alignment = found.alignment
            summary = f"{found.confident} of {len(found.pairs)} patches have a confident partner"
            summary += (
                "; they agree on no map."
                if alignment is None
                else f"; {int(alignment.inliers.sum())} agree on a map within "
                f"{alignment.residual_mm:.1f} mm."
            )
        self._tab.show_match(summary, len(found.pairs), has_map=found.alignment is not None)
        self._tab.show_warnings(found.warnings)
        self.layers.take(scans)
        if not self._suspended:  # else it is placed when the panel is shown again
            self.place(self._tab.beside.isChecked())
        self.update()

    def _show_mirrored(self, sentence: str) -> None:
        if sentence and self._found is not None:
            self._tab.show_warnings((*self._found.warnings, sentence))

    # --------------------------------------------------------------------------------- showing
    def place(self, beside: bool) -> None:
        """Show the reference beside the moving scan, or both where they are."""
        self.layers.place(beside=beside, keep=[self._tab.labels.layer])
        self._show_pairs()
        self.layers.show_unmatched(self._tab.unmatched.isChecked())
        self._moves.watch(self.layers.placed)
        self.match_changed.emit()

    def _on_moved(self) -> None:
        """Let the segments end where their patches are by now."""
        if self._scans is not None and all(map(self._session.has, self.layers.placed)):
            self._show_pairs()
            self.match_changed.emit()
            self.update()

    def suspend(self) -> None:
        """Show the user's layers as they were, while the panel is hidden."""
        self._suspended = True
        self._moves.watch(())
        self.layers.withdraw()

    def resume(self) -> None:
        """Show the match again."""
        self._suspended = False
        if self._scans is not None:
            self.place(self._tab.beside.isChecked())
        elif not self._reference_is_users:
            self._suggest_reference()

    def _show_pairs(self) -> None:
        if self._scans is not None:
            self.layers.show_pairs(self._tab.pairs.choice)

    # ---------------------------------------------------------------------------------- export
    def _export(self, what: str, path: str) -> None:
        scans, found = self._scans, self._found
        if scans is None or found is None:
            return
        names = {"a": str(scans.moving.name), "b": scans.name_of_b, "kind": "affine"}

        def write() -> str:
            from napari_s2dc.engine.match_files import save_affine, save_pairs, save_plan

            if what == "pairs":
                return str(save_pairs(scans.in_stored_voxels(found.pairs), path))
            if what == "plan":
                return str(save_plan(scans.match, path))
            if found.alignment is None:
                raise S2DCError("The confident pairs agree on no map, so there is none to write.")
            return str(save_affine(found.alignment, path, **names))

        self._jobs.write("Exporting", write, lambda written: self._tell(f"Saved {written}."))
