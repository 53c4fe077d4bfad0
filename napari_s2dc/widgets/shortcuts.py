"""Keys for the main action of each tab, listed and changed under Preferences ▸ Shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["EMBED", "MATCH", "PROBE", "SEGMENT", "key_hint", "register"]

EMBED, PROBE, MATCH = "napari-s2dc:embed", "napari-s2dc:probe", "napari-s2dc:match"
SEGMENT = "napari-s2dc:segment"

# Name: what the list says, the key as napari writes it, the tab that holds the action.
_ACTIONS = {
    EMBED: ("S²DC: embed the chosen volume", "Control-Alt-E", "Embed"),
    PROBE: ("S²DC: click to probe, on and off", "Control-Alt-C", "Consistency"),
    MATCH: ("S²DC: match the chosen volumes", "Control-Alt-M", "Match"),
    SEGMENT: ("S²DC: train on the chosen labels", "Control-Alt-G", "Segment"),
}


def register() -> None:
    """Make the actions known to napari; a key the user has chosen is left alone."""
    from napari.components import ViewerModel
    from napari.settings import get_settings
    from napari.utils.action_manager import action_manager

    chosen = get_settings().shortcuts.shortcuts
    for name, (description, key, tab) in _ACTIONS.items():
        action_manager.register_action(
            name=name,
            command=_action_of(tab),
            description=description,
            keymapprovider=ViewerModel,
        )
        if name not in chosen:
            action_manager.bind_shortcut(name, key)


def key_hint(name: str) -> str:
    """Key of an action in brackets, for the end of a tooltip; empty when the user took it away."""
    from napari.settings import get_settings
    from napari.utils.interactions import Shortcut

    keys = get_settings().shortcuts.shortcuts.get(name, [_ACTIONS[name][1]])
    return f" ({Shortcut(keys[0]).platform})" if keys else ""


def _action_of(tab: str) -> Callable[[Viewer], None]:
    def act(viewer: Viewer) -> None:
        from napari_s2dc.widgets.commands import open_tab

        open_tab(viewer, tab, take_active=False).main_action(tab)

    return act
