"""Keys are napari's own: listed in its settings, there to be changed."""

from __future__ import annotations

from typing import Any

import pytest
from napari.settings import get_settings
from napari.utils.action_manager import action_manager
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_s2dc.widgets.shortcuts import EMBED, MATCH, PROBE, SEGMENT, key_hint, register


def test_actions_are_listed_in_the_settings_with_their_keys(workbench: Any, qtbot: Any) -> None:
    from napari._qt.widgets.qt_keyboard_settings import ShortcutEditor

    editor = ShortcutEditor()
    qtbot.addWidget(editor)
    table = editor._table
    rows = {
        table.item(row, 0).text(): table.item(row, editor._shortcut_col).text()
        for row in range(table.rowCount())
    }
    assert rows["S²DC: embed the chosen volume"] == "Ctrl+Alt+E"
    assert rows["S²DC: click to probe, on and off"] == "Ctrl+Alt+C"
    assert key_hint(EMBED) == " (Ctrl+Alt+E)"
    assert "(Ctrl+Alt+E)" in workbench.embed_tab.embed_button.toolTip()


def test_the_keys_do_what_the_buttons_do(embedded: Any, viewer: Any, qtbot: Any) -> None:
    keys = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier
    canvas = embedded.window()
    QTest.keyClick(canvas, Qt.Key.Key_C, keys)
    qtbot.waitUntil(lambda: embedded.probe_tab.probe_button.isChecked(), timeout=5000)
    assert embedded.tabs.tabText(embedded.tabs.currentIndex()) == "Consistency"
    QTest.keyClick(canvas, Qt.Key.Key_C, keys)
    qtbot.waitUntil(lambda: not embedded.probe_tab.probe_button.isChecked(), timeout=5000)


def test_no_key_is_one_of_napari(workbench: Any) -> None:
    from napari._app_model import get_app_model
    from napari.utils.shortcuts import default_shortcuts

    taken = {str(binding.keybinding) for binding in get_app_model().keybindings}
    taken |= {str(key) for keys in default_shortcuts.values() for key in keys}
    assert "Ctrl+Alt+S" in taken  # in a menu
    for name in (EMBED, PROBE, MATCH, SEGMENT):
        key = key_hint(name).strip(" ()")
        assert key.startswith("Ctrl+Alt+")
        assert key not in taken


def test_a_key_that_cannot_do_anything_says_why(workbench: Any, viewer: Any, scan: Any) -> None:
    workbench.main_action("Consistency")
    assert "Embed a volume first" in workbench.message.text()


def test_a_key_chosen_by_the_user_is_kept(workbench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shortcuts = dict(get_settings().shortcuts.shortcuts)
    monkeypatch.setattr(get_settings().shortcuts, "shortcuts", {**shortcuts, PROBE: ["Control-J"]})
    ours = action_manager.unbind_shortcut(PROBE)
    assert ours
    try:
        register()
        assert not action_manager._shortcuts[PROBE]  # napari binds what is in its settings
        assert key_hint(PROBE) == " (Ctrl+J)"
    finally:
        for key in ours:
            action_manager.bind_shortcut(PROBE, key)
