"""What every test shares: the same random numbers each time, no screen, no surprises."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import pytest_xvfb

# Before anything imports these libraries. POT otherwise tries every array library it finds.
os.environ.setdefault("MPLBACKEND", "Agg")
for _backend in ("JAX", "CUPY", "TENSORFLOW"):
    os.environ.setdefault(f"POT_BACKEND_DISABLE_{_backend}", "1")


def _has_gpu() -> bool:
    import torch  # only now, when the number of threads is set

    return torch.cuda.is_available()


if not _has_gpu():  # its kernels run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")


_status = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Give processes that test side by side one thread each: the other cores have tests, too.

    This is set before they start, since napari's plugin for pytest imports numpy and numba, which
    read it once. Without numba's, napari's labels, drawn with numba, gave OpenMP a thread per core
    again; threads of torch then waited for each other and took thirty times as long.
    """
    if getattr(config.option, "numprocesses", None):
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the tests went."""
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's own clean-up, once everything is reported.

    After the whole suite, and not after its halves, the process crashed on leaving (a segmentation
    fault after "860 passed"). The cause is not known; many native libraries are loaded by then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _status in config.stash:
        pytest_xvfb.shutdown_xvfb()  # would be done at exit
        os._exit(config.stash[_status])


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point the folders of cache and data somewhere else, for all tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("XDG_DATA_HOME", str(home / "data"))
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed the global generators, so that a test does not depend on those that ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries still draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
