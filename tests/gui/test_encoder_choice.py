"""Which encoder is used when the user is faster than the workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, threads_at_rest


def test_an_encoder_opened_at_once_is_not_displaced(
    viewer: Any, tmp_path: Path, checkpoint: Path, qtbot: Any
) -> None:
    add_phantom(viewer, 1)
    own = tmp_path / "own.safetensors"
    own.write_bytes(checkpoint.read_bytes())
    workbench = Workbench(viewer)
    viewer.window.add_dock_widget(workbench, name="Workbench")
    qtbot.waitUntil(workbench.isVisible, timeout=10_000)
    workbench.encoders.load_encoder("own", str(own))
    workbench._warm_up()  # as a moment after it is shown; reads the encoder that was chosen
    qtbot.waitUntil(lambda: workbench.session.encoder is not None)
    workbench._warm_up()
    threads_at_rest(qtbot)
    assert workbench.session.encoder.name == "own"
    assert workbench.header.encoder.currentText() == "own"
