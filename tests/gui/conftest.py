"""A real viewer on a (virtual) screen, a small scan, and an untrained encoder to see it with."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Settings of the person who runs the tests are neither read nor written.
os.environ.setdefault("NAPARI_CONFIG", "")
pytest.importorskip("napari")

from qtpy.QtCore import QObject

import napari_s2dc
from napari_s2dc._reader import layer_data
from napari_s2dc.engine.loading import load_engine, load_fine_tuning
from napari_s2dc.engine.progress import Progress
from napari_s2dc.widgets.match_tab import MatchTab
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.preferences import PLUGIN, Preferences
from napari_s2dc.widgets.probe_mouse import REPLACE, ProbePoint
from napari_s2dc.widgets.threads import busy
from napari_s2dc.widgets.workbench import Workbench
from napari_s2dc.widgets.workers import Jobs

SHAPE = (32, 48, 48)
STEPS = 24
"""Of a training of Quick."""


@pytest.fixture(scope="session", autouse=True)
def screen() -> None:
    """Skip where there is no screen: Qt would end the process.

    What all tests import is kept from the garbage collections that napari asks for with every layer
    that it removes; going through it took up to half a second each.
    """
    linux = sys.platform.startswith("linux")
    if linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        pytest.skip("no screen: run the tests with make test, or install Xvfb")
    load_engine()
    load_fine_tuning()  # later, it would undo what follows
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an untrained tiny encoder."""
    import torch

    from napari_s2dc.method.encoder import SwinEncoder

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "untrained.safetensors"
    SwinEncoder.from_size("tiny", window_size=4).save(
        path, {"preprocessing": {"preset": "ct_wide"}, "spacing_mm": [3.0, 3.0, 3.0]}
    )
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Preferences:
    """Keep the user's cache and notes out of the tests; several small windows make progress."""
    from napari_s2dc.engine import encoders
    from napari_s2dc.widgets import (
        consistency_actions,
        embed_actions,
        encoder_actions,
        feature_views,
        match_actions,
        scatter_views,
        segment_choices,
    )
    from napari_s2dc.widgets import workbench as workbench_module

    chosen = Preferences(device="cpu", window_vox=32, cache_folder=tmp_path / "cache")
    modules = (
        consistency_actions,
        embed_actions,
        encoder_actions,
        feature_views,
        match_actions,
        scatter_views,
        segment_choices,
        workbench_module,
    )
    for module in modules:
        monkeypatch.setattr(module, "preferences", lambda: chosen)
    choice = encoders.EncoderChoice("untrained", checkpoint, "tiny, CT")
    monkeypatch.setattr(encoders, "available_encoders", lambda: [choice])
    return chosen


@pytest.fixture(scope="module")
def window(qapp: Any) -> Iterator[Any]:
    """Open one viewer for a module: opening and closing it takes longer than most tests."""
    import napari

    viewer = napari.Viewer(show=True)
    yield viewer
    viewer.close()


@pytest.fixture
def qtbot(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Wait for as long as a machine needs that has much else to do."""
    wait_until = qtbot.waitUntil

    def patiently(ready: Callable[[], Any], *, timeout: int = 0) -> None:
        wait_until(ready, timeout=max(timeout, 60_000))

    monkeypatch.setattr(qtbot, "waitUntil", patiently)
    return qtbot


@pytest.fixture
def no_cache(own_folders: Preferences, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every embedding a real one."""
    from napari_s2dc.widgets import embed_actions

    nothing = replace(own_folders, cache_limit_bytes=0)
    monkeypatch.setattr(embed_actions, "preferences", lambda: nothing)


@pytest.fixture
def slow_windows(no_cache: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Hold every embedding after its first window until it is let go (or cancelled)."""
    from napari_s2dc.engine import encode

    go = threading.Event()
    real = encode.run_windows

    def held(*arguments: Any, **more: Any) -> Any:
        running = real(*arguments, **more)
        yield next(running)
        while not go.wait(0.005):
            yield 1
        return (yield from running)

    monkeypatch.setattr(encode, "run_windows", held)
    yield go.set
    go.set()


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Hold whatever waits for it, until the test has ended at the latest."""
    go = threading.Event()
    yield go
    go.set()


@pytest.fixture
def hold(
    held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any, str], threading.Event]:
    """Make a function of a module wait for `held`; gives an event that says that it does."""

    def hold(module: Any, name: str) -> threading.Event:
        own, inside = getattr(module, name), threading.Event()

        def waiting(*given: Any, **more: Any) -> Any:
            inside.set()
            assert held.wait(60)
            return own(*given, **more)

        monkeypatch.setattr(module, name, waiting)
        return inside

    return hold


@pytest.fixture
def jobs(qtbot: Any, window: Any) -> Iterator[Jobs]:
    """Give jobs without a workbench, in a viewer that notes them."""
    parent = QObject()
    jobs = Jobs(parent)
    yield jobs
    jobs.cancel_all()
    threads_at_rest(qtbot)


def steps(count: int, closed: list[bool] | None = None) -> Callable[[], Iterator[Progress]]:
    """Make an engine function of some steps, which notes that it was closed."""

    def make() -> Iterator[Progress]:
        try:
            for number in range(count):
                time.sleep(0.002)
                yield Progress(number + 1, count, "windows")
            return "result"
        finally:
            if closed is not None:
                closed.append(True)

    return make


def threads_at_rest(qtbot: Any) -> None:
    """Wait until no thread works any more: it would do so into the next test."""
    qtbot.waitUntil(lambda: busy() == 0)


@pytest.fixture
def viewer(window: Any, qtbot: Any) -> Iterator[Any]:
    """Give a viewer without layers and docks."""
    yield window
    for widget in list(window.window.dock_widgets.values()):
        if isinstance(widget, Workbench):
            widget.jobs.cancel_all()
            window.window.remove_dock_widget(widget)
            widget.close()
            widget.deleteLater()
    window.layers.clear()
    window.dims.ndisplay = 2
    threads_at_rest(qtbot)
    qtbot.wait(20)


@pytest.fixture
def plugin(viewer: Any) -> Any:
    """Give a viewer that knows the plugin, as when it is installed."""
    from npe2 import PluginManager, PluginManifest

    if PLUGIN not in PluginManager.instance():
        manifest = Path(napari_s2dc.__file__).parent / "napari.yaml"
        PluginManager.instance().register(PluginManifest.from_file(manifest))
    return viewer


@pytest.fixture
def new_viewer(qtbot: Any) -> Iterator[Callable[[], Any]]:
    """Open further viewers, for tests that need two or that close one."""
    import napari

    opened = []

    def make() -> Any:
        opened.append(napari.Viewer(show=True))
        return opened[-1]

    yield make
    for viewer in opened:
        with contextlib.suppress(RuntimeError, ReferenceError):
            for widget in viewer.window.dock_widgets.values():
                if isinstance(widget, Workbench):
                    widget.jobs.cancel_all()
        with contextlib.suppress(RuntimeError):  # the test has closed it
            viewer.close()
    threads_at_rest(qtbot)
    qtbot.wait(50)


@pytest.fixture
def scan(viewer: Any) -> Any:
    """Open the phantom's image as a layer."""
    return add_phantom(viewer, seed=1)


@pytest.fixture
def workbench(viewer: Any, scan: Any, qtbot: Any) -> Workbench:
    """Open the workbench beside the phantom, its encoder read."""
    return open_workbench(viewer, qtbot)


@pytest.fixture
def embedded(workbench: Workbench, scan: Any, qtbot: Any) -> Workbench:
    """Embed the phantom and wait for its colours."""
    embed(workbench, scan, qtbot)
    return workbench


@pytest.fixture
def light_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train Quick on the features of one stage, in few steps, and let strokes spread a little."""
    from napari_s2dc.engine import quick_smooth, quick_spread
    from napari_s2dc.engine.fewshot_settings import QuickSettings
    from napari_s2dc.widgets.segment_choices import SegmentChoices

    settings = SegmentChoices.settings
    light = QuickSettings(stages=(1,), smoothing_vox=(0.0, 1.0), steps=STEPS)
    monkeypatch.setattr(SegmentChoices, "settings", lambda own: replace(settings(own), quick=light))
    for module in (quick_spread, quick_smooth):
        monkeypatch.setattr(module, "_ITERATIONS", 10)


@pytest.fixture
def other(viewer: Any, scan: Any) -> Any:
    """Open another torso that lies elsewhere."""
    return add_phantom(viewer, seed=2, translate=(10.0, -200.0, 35.0), metadata={})


@pytest.fixture
def by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare patches by themselves.

    Of sixty patches that an untrained encoder describes, hardly one is like one of another person
    together with its neighbours.
    """
    chosen = MatchTab.matching.fget
    alone = property(lambda tab: {"neighbours": 0.0, **chosen(tab)})
    monkeypatch.setattr(MatchTab, "matching", alone)


@pytest.fixture
def pair(workbench: Workbench, scan: Any, other: Any, qtbot: Any, by_themselves: None) -> Workbench:
    """Embed both torsos and choose them on the Match tab."""
    for layer in (other, scan):
        embed(workbench, layer, qtbot)
    workbench.tabs.setCurrentIndex(2)
    workbench.match_tab.moving.choose(scan)
    workbench.match_tab.reference.choose(other)
    workbench.match_tab.align.setChecked(False)  # further looks take seconds
    return workbench


@pytest.fixture
def matched(pair: Workbench, qtbot: Any) -> Workbench:
    """Match the two torsos."""
    match(pair, qtbot)
    return pair


def add_phantom(viewer: Any, seed: int, **changes: Any) -> Any:
    """Add a phantom scan as the reader would."""
    from napari.layers import Layer

    from napari_s2dc.volumes.phantom import phantom

    image, _ = phantom(SHAPE, seed=seed)
    image.name = f"torso {seed}"
    data, keywords, kind = layer_data(image)
    return viewer.add_layer(Layer.create(data, {**keywords, **changes}, kind))


def open_workbench(viewer: Any, qtbot: Any) -> Workbench:
    """Dock a workbench, shown, with its encoder in memory."""
    workbench = Workbench(viewer)
    viewer.window.add_dock_widget(workbench, name="Workbench")
    qtbot.waitUntil(workbench.isVisible, timeout=10_000)
    workbench.encoders.load_chosen_encoder()
    qtbot.waitUntil(lambda: workbench.session.encoder is not None, timeout=60_000)
    return workbench


def embed(workbench: Workbench, layer: Any, qtbot: Any) -> None:
    """Press the button and wait."""
    workbench.header.volume.choose(layer)
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(
        lambda: workbench.session.overlays.find(layer, "colours") is not None, timeout=60_000
    )
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("scatter"), timeout=60_000)


def point(layer: Any, voxel: tuple[float, ...], kind: str = REPLACE, dragged: bool = False) -> Any:
    """Give what a click on a voxel asks for, in a slice."""
    return ProbePoint(tuple(layer.data_to_world(voxel)), kind, None, [1, 2], False, dragged)


def probe_at(
    workbench: Workbench, layer: Any, voxel: tuple[float, ...], qtbot: Any, kind: str = REPLACE
) -> None:
    """Click a voxel while probing, and wait for the panel."""
    workbench.probing.probe(point(layer, voxel, kind))
    qtbot.waitUntil(lambda: not workbench.probing._panel.isActive())


def match(workbench: Workbench, qtbot: Any) -> None:
    """Press the button and wait for the match and its checks."""
    workbench.match_tab.match_button.click()
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("match"), timeout=60_000)
    assert workbench.matching.scans is not None
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("mirror"), timeout=60_000)


def named(viewer: Any, title: str) -> Any:
    """Give the only layer whose name ends so."""
    (layer,) = [layer for layer in viewer.layers if layer.name.endswith(title)]
    return layer


def add_labels(viewer: Any, scan: Any) -> Any:
    """Open the phantom's organs as labels on its grid."""
    from napari_s2dc.volumes.phantom import LABELS, phantom

    _, organs = phantom(SHAPE, seed=1)
    return viewer.add_labels(
        organs.array,
        name="torso 1 labels",
        features={"index": [0, *LABELS], "name": ["background", *LABELS.values()]},
        colormap={1: "red", 2: "blue", None: "green"},
        **geometry_of(scan),
    )
