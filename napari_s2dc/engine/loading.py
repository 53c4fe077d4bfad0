"""Import torch and what builds on it from a thread, without the window standing still meanwhile.

An import holds Python's interpreter lock for long in three ways; each made a window that shares
the process stop for 0.3 to 0.8 seconds (``python -m benchmarks.responsiveness``): the dynamic
linker at work on torch's library of hundreds of MB, full garbage collections while a million
objects are made, and a switch to another thread every 5 ms only, which painting asks for often.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

__all__ = ["load_engine", "load_fine_tuning", "load_optimisers"]

_MODULES = (
    "napari_s2dc.engine.cache",
    "napari_s2dc.engine.colours",
    "napari_s2dc.engine.consistency",
    "napari_s2dc.engine.probe",
    "napari_s2dc.engine.structure",
    "monai.data.utils",
    "napari_s2dc.method.swin",
    "sklearn.cluster",
    "sklearn.decomposition",
)
_OPTIMISERS = ("torch._dynamo",)
"""Imported by whichever optimiser is made first: 800 modules."""
_FINE_TUNING = (*_OPTIMISERS, "lightning.fabric")
_SWITCH_SECONDS = 5e-4

_lock = Lock()
_loaded: set[str] = set()


def load_engine() -> None:
    """Import everything that the workbench's jobs need; a second call does nothing.

    Meant for a thread beside the one that paints. Other threads that call it wait for the first.
    """
    _load(_MODULES)


def load_optimisers() -> None:
    """Import what torch's optimisers import when the first one is made, as for Quick."""
    _load(_OPTIMISERS)


def load_fine_tuning() -> None:
    """Import what a fine-tuning needs besides the engine."""
    _load(_FINE_TUNING)


def _load(modules: Sequence[str]) -> None:
    if _loaded.issuperset(modules):
        return  # without waiting for another thread that imports something else
    with _lock:
        if _loaded.issuperset(modules):
            return
        _link_torch()
        with _other_threads_first():
            from napari_s2dc.method.kernels import hide_triton

            hide_triton()
            for name in modules:
                importlib.import_module(name)
        _loaded.update(modules)


def _link_torch() -> None:
    """Have torch's largest library loaded by the dynamic linker while other threads run.

    ``import torch`` would do the same, holding the lock. Where this does nothing (Windows, an
    unusual installation), that import does it all.
    """
    spec = find_spec("torch")
    if "torch" in sys.modules or spec is None or spec.origin is None or sys.platform == "win32":
        return
    ending = "dylib" if sys.platform == "darwin" else "so"
    library = Path(spec.origin).parent / "lib" / f"libtorch_cpu.{ending}"
    with suppress(OSError, AttributeError):
        # Called as a foreign function, it runs without the lock; ctypes.CDLL(library) keeps it.
        link = ctypes.CDLL(None).dlopen
        link.restype = ctypes.c_void_p
        link(os.fsencode(library), os.RTLD_NOW | os.RTLD_LOCAL)


@contextmanager
def _other_threads_first() -> Iterator[None]:
    """Hand the lock over often, and collect no garbage while modules are executed."""
    interval, collecting = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
    gc.disable()
    try:
        yield
    finally:
        # What was made counts as old: the next collection would otherwise go through all of it.
        gc.freeze()
        gc.unfreeze()
        if collecting:
            gc.enable()
        sys.setswitchinterval(interval)
