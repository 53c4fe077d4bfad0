"""Heavy imports in a thread: what they need is there, and Python's settings are as they were."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from napari_s2dc.engine import loading


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_first_of_two_threads_imports_and_no_collection_goes_through_it_all() -> None:
    code = """
import gc, sys
from threading import Thread
from napari_s2dc.engine import loading
assert "torch" not in sys.modules
before = (sys.getswitchinterval(), gc.isenabled())
collections = []
gc.callbacks.append(lambda phase, about: collections.append(about["generation"]))
done = []
def work():
    loading.load_engine()
    done.append("napari_s2dc.engine.consistency" in sys.modules)
threads = [Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
young = len(gc.get_objects(generation=0))
print(done, 2 in collections, young < 10_000, gc.get_freeze_count(),
      (sys.getswitchinterval(), gc.isenabled()) == before)
"""
    assert _python(code) == "[True, True] False True 0 True"


def test_embedding_imports_nothing_large_any_more() -> None:
    code = """
import sys
from napari_s2dc.engine.loading import load_engine
load_engine()
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.probe import sharpe_map
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
network = SwinEncoder.from_size("tiny", window_size=4)
network.metadata["preprocessing"] = {"preset": "ct_wide"}
scan, _ = phantom((32, 32, 32), seed=0)
before = set(sys.modules)
embedding = finish(embed_volume(scan, network, EmbedSettings(window_vox=32, device="cpu")))
sharpe_map(embedding)
print(len(set(sys.modules) - before))
"""
    assert int(_python(code)) < 20  # 800 where torch's compiler came with the first window


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_is_there_before_torch_is() -> None:
    code = """
import sys
from napari_s2dc.engine import loading
loading._link_torch()
with open("/proc/self/maps") as maps:
    print("libtorch_cpu" in maps.read(), "torch" in sys.modules)
import torch
print(float(torch.ones(3).sum()))
"""
    assert _python(code).split() == ["True", "False", "3.0"]


def test_a_library_that_is_not_where_it_should_be_is_left_to_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        origin = str(tmp_path / "torch" / "__init__.py")

    monkeypatch.setattr(loading, "find_spec", lambda name: Spec)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    loading._link_torch()


def test_settings_come_back_after_an_error_and_the_next_call_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_loaded", set())
    before = (sys.getswitchinterval(), gc.isenabled())
    modules = loading._MODULES
    monkeypatch.setattr(loading, "_MODULES", ("napari_s2dc.no_such_module",))
    with pytest.raises(ModuleNotFoundError):
        loading.load_engine()
    assert (sys.getswitchinterval(), gc.isenabled()) == before
    monkeypatch.setattr(loading, "_MODULES", modules)
    thread = Thread(target=loading.load_engine)
    thread.start()
    thread.join()
    assert loading._loaded == set(modules)
    loading.load_fine_tuning()
    assert "lightning.fabric" in loading._loaded
