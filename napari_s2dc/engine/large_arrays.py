"""Arrays that may be larger than memory: above a budget they lie in a temporary file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["IN_MEMORY_BYTES", "zeros"]

IN_MEMORY_BYTES = 2**30
"""Arrays up to this size are held in memory."""


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make zeros, in memory or, above ``IN_MEMORY_BYTES``, in a file mapped into memory.

    The system writes parts of a mapped file to disk when memory is short. The file lies where
    Python's ``tempfile`` puts it (``TMPDIR``), has no name that others see where the system allows
    that, and is gone with the last view of the tensor. Where the disk has no room for it, memory is
    used; where that folder is itself one in memory, as ``/tmp`` of some systems, no less is.

    Parameters
    ----------
    shape : sequence of int
        Of the tensor.
    dtype : torch.dtype
        Of the tensor.

    Returns
    -------
    Tensor
        On the CPU.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > IN_MEMORY_BYTES:
        try:
            return _mapped(size).view(dtype).reshape(tuple(shape))
        except OSError:  # no room, or a folder that cannot be written
            pass
    return torch.zeros(tuple(shape), dtype=dtype)


def _mapped(size: int) -> Tensor:
    """Bytes of a temporary file, all of which are there before the first is written."""
    with tempfile.TemporaryFile(prefix="napari-s2dc-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        # Else a disk that is full when a part is written would end the process.
        elif shutil.disk_usage(tempfile.gettempdir()).free < 2 * size:
            raise OSError("the disk has too little room")
        array = np.memmap(file, dtype=np.uint8, mode="w+", shape=(size,))
    return torch.from_numpy(array)
