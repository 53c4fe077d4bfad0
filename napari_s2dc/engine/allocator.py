"""Keep big buffers inside the process: page faults otherwise take half the time of a CPU step."""

from __future__ import annotations

import ctypes
import platform

# Parameter numbers of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_MAX = -4


def keep_large_buffers() -> bool:
    """Tell glibc not to hand freed buffers back to the system; call before torch allocates.

    Returns
    -------
    bool
        Whether the settings took effect; False on systems without glibc, where nothing changes.

    Notes
    -----
    Memory stays at its peak until the process ends. ``python -m benchmarks.step`` measures a step
    with and without it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def release_free_buffers() -> bool:
    """Hand back to the system what is free now, as before a part that needs room of another shape.

    Returns
    -------
    bool
        Whether any memory was given back; False on systems without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        return ctypes.CDLL(None).malloc_trim(0) == 1
    except (OSError, AttributeError):
        return False
