"""Rough treatment: cancelling at any moment, things that vanish, odd layers, bare machines."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.progress import finish
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.widgets import embed_actions
from napari_s2dc.widgets import workbench as workbench_module
from napari_s2dc.widgets.preferences import Preferences
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_phantom, embed, open_workbench, threads_at_rest

MB = 2**20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096


def live_things() -> int:
    """Count scans and tensors that something still holds."""
    gc.collect()
    # by type, because isinstance would wake up lazy modules
    return sum(issubclass(type(thing), (Volume, torch.Tensor)) for thing in gc.get_objects())


def idle(workbench: Workbench) -> bool:
    return not workbench.jobs._running


# ---------------------------------------------------------------------------- cancelling
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_cancelling_at_any_moment_leaks_nothing(
    workbench: Workbench, scan: Any, viewer: Any, qtbot: Any, no_cache: None
) -> None:
    button = workbench.embed_tab.embed_button

    def cancel_after(milliseconds: int) -> None:
        button.click()
        qtbot.wait(milliseconds)
        workbench.jobs.cancel_all()
        qtbot.waitUntil(lambda: idle(workbench), timeout=20_000)

    embed(workbench, scan, qtbot)
    for number in range(10):  # until pools of threads and memory are filled
        cancel_after(12 * number)
    things, memory = live_things(), resident_bytes()
    for number in range(50):
        cancel_after((7 * number) % 120)
    threads_at_rest(qtbot)
    assert not workbench.jobs._unfinished
    assert live_things() <= things + 10  # 50 runs that kept one each would be 50
    assert resident_bytes() - memory < 100 * MB  # about 1 to 15: every thread has its own heap
    assert len(viewer.layers) == 2  # the scan and its colours
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: idle(workbench))
    network = workbench.session.encoder.network
    settings = EmbedSettings(window_vox=32, device="cpu")
    source = workbench.session.embedded(scan).source
    expected = finish(embed_volume(source.load(), network, settings))
    assert torch.equal(workbench.session.embedded(scan).embedding.features, expected.features)


def test_cancel_does_not_wait_for_the_other_windows(
    workbench: Workbench, scan: Any, qtbot: Any, slow_windows: Callable[[], None]
) -> None:
    with qtbot.waitSignal(workbench.jobs.progressed, timeout=30_000):
        workbench.embed_tab.embed_button.click()
    workbench.task_bar.cancel_button.click()
    qtbot.waitUntil(lambda: idle(workbench))  # without the other windows, which are held back
    assert workbench.session.embedded(scan) is None
    assert workbench.session.overlays.find(scan, "colours") is None
    assert workbench.embed_tab.embed_button.isEnabled()


# ------------------------------------------------------------------------- things that vanish
def test_a_layer_may_go_during_every_kind_of_job(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    embedded.probe_tab.views.setValue(2)
    embedded.probe_tab.map_button.click()
    embedded.embed_tab.clusters_button.click()
    assert not idle(embedded)
    for layer in list(viewer.layers):
        viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: idle(embedded), timeout=60_000)
    qtbot.wait(50)
    assert list(viewer.layers) == []


def test_a_renamed_layer_gets_its_result(
    workbench: Workbench,
    scan: Any,
    viewer: Any,
    qtbot: Any,
    slow_windows: Callable[[], None],
) -> None:
    with qtbot.waitSignal(workbench.jobs.progressed, timeout=30_000):
        workbench.embed_tab.embed_button.click()
    scan.name = "patient 7"
    slow_windows()
    qtbot.waitUntil(
        lambda: workbench.session.overlays.find(scan, "colours") is not None, timeout=30_000
    )
    assert "patient 7" in workbench.session.overlays.find(scan, "colours").name
    assert "patient 7 is embedded" in workbench.message.text()


@pytest.mark.parametrize("start", ["consistency", "clusters", "encoder"])
def test_the_viewer_may_be_closed_during_every_kind_of_job(
    start: str, new_viewer: Callable[[], Any], qtbot: Any
) -> None:
    viewer = new_viewer()
    layer = add_phantom(viewer, 1)
    workbench = open_workbench(viewer, qtbot)
    if start == "encoder":
        workbench.encoders.load_encoder("again", workbench.header.chosen_path)
    else:
        embed(workbench, layer, qtbot)
        tab = workbench.probe_tab
        (tab.map_button if start == "consistency" else workbench.embed_tab.clusters_button).click()
    assert not idle(workbench)
    viewer.close()
    threads_at_rest(qtbot)
    qtbot.wait(100)  # errors in slots would fail the test here


# ------------------------------------------------------------------------------ two at once
def test_two_viewers_embed_at_the_same_time(
    new_viewer: Callable[[], Any], qtbot: Any, slow_windows: Callable[[], None]
) -> None:
    viewers = [new_viewer(), new_viewer()]
    layers = [add_phantom(viewer, seed) for seed, viewer in enumerate(viewers, start=1)]
    benches = [open_workbench(viewer, qtbot) for viewer in viewers]
    benches[1].session.encoder = benches[0].session.encoder  # one network for both
    for bench, layer in zip(benches, layers, strict=True):
        bench.header.volume.choose(layer)
        with qtbot.waitSignal(bench.jobs.progressed, timeout=30_000):
            bench.embed_tab.embed_button.click()
    slow_windows()
    for bench, layer in zip(benches, layers, strict=True):
        qtbot.waitUntil(lambda b=bench, k=layer: b.session.embedded(k) is not None, timeout=60_000)
        network = bench.session.encoder.network
        volume = bench.session.embedded(layer).source.load()
        expected = finish(embed_volume(volume, network, EmbedSettings(window_vox=32, device="cpu")))
        found = bench.session.embedded(layer).embedding
        assert torch.equal(found.features, expected.features)
        qtbot.waitUntil(lambda b=bench: idle(b), timeout=60_000)


def test_two_workbenches_of_a_viewer_embed_two_scans(
    workbench: Workbench,
    scan: Any,
    viewer: Any,
    qtbot: Any,
    slow_windows: Callable[[], None],
) -> None:
    other = open_workbench(viewer, qtbot)
    second = add_phantom(viewer, 2, translate=(0, 0, 400))
    for bench, layer in ((workbench, scan), (other, second)):
        bench.header.volume.choose(layer)
        with qtbot.waitSignal(bench.jobs.progressed, timeout=30_000):
            bench.embed_tab.embed_button.click()
    slow_windows()
    for layer in (scan, second):
        qtbot.waitUntil(
            lambda one=layer: workbench.session.overlays.find(one, "colours") is not None,
            timeout=60_000,
        )
    qtbot.waitUntil(lambda: idle(workbench) and idle(other), timeout=60_000)
    kinds = [layer.name for layer in viewer.layers if "anatomy colours" in layer.name]
    assert len(kinds) == 2  # each panel showed them; neither showed them twice


# ------------------------------------------------------------------------------- odd layers
def _nothing(viewer: Any) -> None:
    pass


@pytest.mark.parametrize(
    "add",
    [
        _nothing,
        lambda viewer: viewer.add_image(np.ones((8, 9)), name="odd"),
        lambda viewer: viewer.add_image(np.ones((2, 8, 9, 9)), name="odd"),
        lambda viewer: viewer.add_image(np.ones((8, 9, 9, 3)), rgb=True, name="odd"),
        lambda viewer: viewer.add_image(np.ones((1, 9, 9)), name="odd"),
        lambda viewer: viewer.add_points(np.ones((4, 3)), name="odd"),
    ],
    ids=["nothing", "2D", "4D", "RGB", "one slice", "points"],
)
def test_what_is_no_scan_cannot_be_embedded_and_says_why(
    add: Callable[[Any], Any], viewer: Any, qtbot: Any
) -> None:
    layer = add(viewer)
    workbench = open_workbench(viewer, qtbot)
    button = workbench.embed_tab.embed_button
    assert workbench.header.volume.layer is None
    assert not button.isEnabled()
    assert button.toolTip()
    if layer is not None:
        viewer.layers.selection.active = layer
    workbench.embedding.embed()  # by the key, past the button
    assert not workbench.jobs.is_running("embed")
    assert "3D image" in workbench.message.text()
    assert len(viewer.layers) == (layer is not None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((32, 32, 32), np.nan, np.float32), "NaN"),
        (np.full((32, 32, 32), 7, np.int16), "same value"),
        (np.full((32, 32, 32), np.inf, np.float32), "infinite"),
    ],
    ids=["NaN", "constant", "infinite"],
)
def test_scans_without_usable_values_are_told(
    values: np.ndarray, words: str, viewer: Any, qtbot: Any
) -> None:
    layer = viewer.add_image(values, name="odd", contrast_limits=(0, 1))
    workbench = open_workbench(viewer, qtbot)
    workbench.header.volume.choose(layer)
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: words in workbench.message.text(), timeout=20_000)
    qtbot.waitUntil(lambda: idle(workbench), timeout=20_000)
    assert list(viewer.layers) == [layer]


# --------------------------------------------------------------------------- bare machines
@pytest.mark.parametrize("chosen", [True, False], ids=["in the preferences", "the user's own"])
def test_without_a_cache_folder_that_can_be_written_all_works(
    chosen: bool,
    own_folders: Preferences,
    workbench: Workbench,
    scan: Any,
    tmp_path: Path,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file, not even by root")
    place = replace(own_folders, cache_folder=tmp_path / "file" / "cache" if chosen else None)
    monkeypatch.setattr(embed_actions, "preferences", lambda: place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    embed(workbench, scan, qtbot)
    assert workbench.session.embedded(scan) is not None
    assert workbench.embed_tab.cache.text() == "Cache: off"
    workbench.embedding.show_cache_size()  # as on opening, in a thread: it may come later
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("cache"), timeout=10_000)
    assert workbench.embed_tab.cache.text() == "Cache: off"
    assert "Embeddings are not kept" in workbench.embed_tab.cache.toolTip()
    assert not workbench.embed_tab.clear_button.isEnabled()


def test_without_a_graphics_processor_only_what_is_there_is_offered(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.widgets.encoder_actions import _devices

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert [device for device, _ in _devices()] == ["auto", "cpu"]


def test_a_preferred_device_that_is_gone_is_told(
    own_folders: Preferences,
    viewer: Any,
    scan: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = replace(own_folders, device="cuda")
    monkeypatch.setattr(workbench_module, "preferences", lambda: wanted)
    workbench = open_workbench(viewer, qtbot)
    qtbot.waitUntil(lambda: "no CUDA device" in workbench.message.text(), timeout=10_000)
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: idle(workbench), timeout=60_000)
    assert workbench.session.embedded(scan) is not None


def test_without_any_encoder_the_workbench_says_how_to_get_one(
    new_viewer: Callable[[], Any], qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.engine import encoders

    monkeypatch.setattr(encoders, "available_encoders", list)
    viewer = new_viewer()
    add_phantom(viewer, 1)
    workbench = Workbench(viewer)
    viewer.window.add_dock_widget(workbench, name="Workbench")
    qtbot.waitUntil(workbench.isVisible, timeout=10_000)
    qtbot.waitUntil(lambda: idle(workbench), timeout=60_000)
    workbench.embedding.embed()
    assert "bundled encoder is missing" in workbench.message.text()
    assert idle(workbench)
