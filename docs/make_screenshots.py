"""Make the pictures of the documentation from the running program.

    xvfb-run -a -s "-screen 0 1920x1200x24" .venv/bin/python docs/make_screenshots.py

Opens the sample torsos, embeds one, clusters it, probes it with real mouse events and photographs
the window after each step, in both themes. Needs an encoder: the one named, or the first at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_s2dc.widgets.commands import open_embed
from napari_s2dc.widgets.preferences import PLUGIN, Preferences
from napari_s2dc.widgets.workbench import Workbench

THEMES = ("dark", "light")
OUT = Path(__file__).parent / "pictures"


def main(about: str, make: Callable[..., list[Path]]) -> int:
    """Read the options and make pictures in every theme; returns the exit code."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the pictures")
    parser.add_argument("--encoder", type=Path, help="checkpoint; default: the first at hand")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 800), metavar=("W", "H"))
    parser.add_argument("--themes", nargs="+", default=THEMES, choices=THEMES)
    parser.add_argument("--small", action="store_true", help="small scans, for a quick check")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        _keep_out_of_the_users_cache(Path(cache))
        for theme in given.themes:
            for path in make(given.out, theme, tuple(given.size), given.encoder, small=given.small):
                print(path)
    return 0


def make_pictures(
    out: Path,
    theme: str,
    size: tuple[int, int],
    encoder: Path | None = None,
    *,
    small: bool = False,
) -> list[Path]:
    """Walk through the workbench once and photograph it.

    Parameters
    ----------
    out : Path
        Folder for the pictures.
    theme : str
        napari's theme.
    size : tuple of int
        Width and height of the window in pixels.
    encoder : Path, optional
        Checkpoint to open.
    small : bool
        Use a small scan.

    Returns
    -------
    list of Path
        What was written.
    """
    with window(out, theme, size) as (viewer, shoot, written):
        _open_scan(viewer, small)
        open_embed()
        workbench = workbench_of(viewer)
        if encoder is not None:
            workbench.encoders.load_encoder(encoder.parent.name, str(encoder))
        _until(lambda: workbench.session.encoder is not None, 120, "the encoder was read")
        layer = workbench.header.volume.layer
        _until(lambda: workbench.embed_tab.plan.text() != "", 120, "the plan is known")
        shoot("opened")
        _embed(workbench, layer)
        shoot("embedded")
        workbench.embed_tab.clusters_button.click()
        overlays = workbench.session.overlays
        _until(lambda: overlays.find(layer, "clusters") is not None, 300, "clusters are shown")
        workbench.embed_tab.colouring.setCurrentIndex(1)
        overlays.find(layer, "colours").visible = False
        shoot("clusters")
        overlays.find(layer, "clusters").visible = False
        workbench.tabs.setCurrentIndex(1)
        workbench.probe_tab.probe_button.click()
        nearest = workbench.probe_tab.nearest
        _click(viewer, layer, _inside_an_organ(layer), lambda: nearest.count() > 0)
        consistency = workbench.probe_tab.consistency
        _until(lambda: "nearby" in consistency.text(), 300, "the patch's consistency is known")
        shoot("probed")
        workbench.probe_tab.preview.click()
        _until(lambda: overlays.find(layer, "structure") is not None, 300, "a structure is shown")
        overlays.find(layer, "similarity").visible = False
        threshold = workbench.probe_tab.threshold
        before = overlays.find(layer, "structure").data.sum()
        threshold.setValue((threshold.value() + 1) / 2)
        _until(lambda: overlays.find(layer, "structure").data.sum() < before, 300, "it shrank")
        workbench.tabs.currentWidget().ensureWidgetVisible(workbench.probe_tab.map_button)
        shoot("structure")
        workbench.probe_tab.add_button.click()
        workbench.probe_tab.preview.click()
        workbench.probe_tab.target.layer.visible = False
        workbench.probe_tab.views.setValue(2)
        workbench.probe_tab.map_button.click()
        _until(lambda: overlays.find(layer, "consistency") is not None, 300, "the map is shown")
        shoot("consistency")
    return written


@contextlib.contextmanager
def window(
    out: Path, theme: str, size: tuple[int, int]
) -> Iterator[tuple[Any, Callable[[str], None], list[Path]]]:
    """Open a viewer; gives it, what photographs it under a name, and what was written so far."""
    out.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.theme = theme
    viewer.window.resize(*size)
    written: list[Path] = []

    def shoot(name: str) -> None:
        _settle(0.8)
        path = out / f"{name}_{theme}.png"
        viewer.window.screenshot(str(path), canvas_only=False, flash=False)
        written.append(path)

    try:
        yield viewer, shoot, written
    finally:
        viewer.close()
        _settle(0.2)


def workbench_of(viewer: Any) -> Workbench:
    """Give the workbench that is docked."""
    docked = viewer.window.dock_widgets.values()
    return next(widget for widget in docked if isinstance(widget, Workbench))


def _open_scan(viewer: Any, small: bool) -> None:
    if not small:
        viewer.open_sample(PLUGIN, "phantom_pair_ct")
        for layer in viewer.layers:
            layer.visible = layer.name == "torso 1 CT"
        viewer.layers.selection.active = viewer.layers["torso 1 CT"]
        return
    from napari.layers import Layer

    from napari_s2dc._reader import layer_data
    from napari_s2dc.volumes.phantom import phantom

    image, _ = phantom((32, 48, 48), seed=1)
    image.name = "torso 1 CT"
    viewer.add_layer(Layer.create(*layer_data(image)))


def _embed(workbench: Workbench, layer: Any) -> None:
    workbench.embed_tab.embed_button.click()
    overlays = workbench.session.overlays
    _until(lambda: overlays.find(layer, "colours") is not None, 300, "colours are shown")
    _until(lambda: not workbench.jobs.is_running("scatter"), 300, "dots are placed")


def _inside_an_organ(layer: Any) -> tuple[int, int, int]:
    """Voxel in the right half of the slice shown, in soft tissue."""
    z, y, x = (size // 2 for size in layer.data.shape)
    row = layer.data[z, y]
    soft = np.flatnonzero((row > 0) & (row < 250))
    return z, y, int(soft[len(soft) // 4]) if len(soft) else x


def _click(
    viewer: Any, layer: Any, voxel: tuple[int, int, int], answered: Callable[[], bool]
) -> None:
    """Press and release the mouse on a voxel of the slice that is shown, until that is answered.

    A click that comes before the window has drawn the slice goes to another place.
    """
    for _ in range(20):
        _click_once(viewer, layer, voxel)
        with contextlib.suppress(TimeoutError):
            _until(answered, 6, "the click was answered")
            return
    raise TimeoutError("clicked 20 times in vain")


def _click_once(viewer: Any, layer: Any, voxel: tuple[int, int, int]) -> None:
    world = np.asarray(layer.data_to_world(voxel))
    viewer.dims.set_point(0, float(world[0]))
    canvas = _canvas()
    away = (world[1:] - np.asarray(viewer.scene.camera.center)[-2:]) * viewer.scene.camera.zoom
    place = QPoint(round(canvas.width() / 2 + away[1]), round(canvas.height() / 2 + away[0]))
    _settle(0.3)
    QTest.mouseMove(canvas, place)
    _settle(0.1)
    none = Qt.KeyboardModifier.NoModifier
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, none, place)
    _settle(0.1)
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, none, place)


def _canvas() -> QWidget:
    """Widget that napari draws into."""
    for widget in QApplication.allWidgets():
        if "CanvasBackend" in type(widget).__name__ and widget.isVisible():
            return widget
    raise RuntimeError("napari shows no canvas")


def _until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain until {what}")
        QApplication.processEvents()
        time.sleep(0.01)


def _settle(seconds: float) -> None:
    """Let the window draw for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def _keep_out_of_the_users_cache(folder: Path) -> None:
    from napari_s2dc.widgets import embed_actions, segment_autosave

    embed_actions.preferences = lambda: Preferences(cache_folder=folder)
    segment_autosave.autosave_folder = lambda: folder / "autosave"


if __name__ == "__main__":
    sys.exit(main(__doc__, make_pictures))
