"""Embeddings as files: safetensors with JSON in the header, read by the tools and by Python."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.errors import S2DCError
from napari_s2dc.files import holds_tensors, reading_tensors, write_tensors

__all__ = ["SUFFIX", "EmbeddingFileError", "holds_embedding", "load_embedding", "save_embedding"]

SUFFIX = ".safetensors"

_KEY = "napari_s2dc_embedding"
_FORMAT = 1


class EmbeddingFileError(S2DCError):
    """A file of features cannot be read."""


def save_embedding(embedding: Embedding, path: str | Path) -> Path:
    """Write an embedding; the file appears whole or not at all.

    Parameters
    ----------
    embedding : Embedding
        What to write.
    path : str or Path
        File to write, usually ``*.safetensors``; its folder is created. The tensors ``features``
        (C, tz, ty, tx) float16 and ``foreground`` (tz, ty, tx) bool can be read with the
        safetensors library alone.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    path = Path(path)
    tensors = {
        "features": embedding.features.contiguous(),
        "foreground": embedding.foreground.contiguous(),
    }
    facts = {
        "format": _FORMAT,
        "stride": embedding.stride,
        "shape": embedding.shape,
        "offset_vox": embedding.offset_vox,
        "spacing_mm": embedding.spacing_mm,
        "affine": embedding.affine.tolist(),
        "name": embedding.name,
        "metadata": embedding.metadata,
        "checksum": _checksum(tensors),
    }
    write_tensors(path, tensors, {_KEY: json.dumps(facts)})
    return path


def load_embedding(path: str | Path) -> Embedding:
    """Read an embedding.

    Parameters
    ----------
    path : str or Path
        File that `save_embedding` wrote.

    Raises
    ------
    EmbeddingFileError
        The file is missing, damaged, of a later format, or holds something else.
    """
    path = Path(path)
    with reading_tensors(path, _KEY, _FORMAT, "embedding", "'s2dc embed'", EmbeddingFileError) as (
        facts,
        tensors,
    ):
        return _assemble(facts, tensors)


def holds_embedding(path: Path) -> bool:
    """Whether the header of a file says that `save_embedding` wrote it."""
    return holds_tensors(path, _KEY)


def _assemble(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Embedding:
    features, foreground = tensors["features"], tensors["foreground"]
    if facts["checksum"] != _checksum(tensors):
        raise ValueError("the tensors are not those that were written")
    if features.ndim != 4 or features.shape[1:] != foreground.shape:
        raise ValueError("features and foreground do not lie on one grid")
    z, y, x = (int(side) for side in facts["shape"])
    first_z, first_y, first_x = (int(first) for first in facts["offset_vox"])
    spacing_z, spacing_y, spacing_x = (float(side) for side in facts["spacing_mm"])
    return Embedding(
        features=features.to(torch.float16),
        foreground=foreground.to(torch.bool),
        stride=int(facts["stride"]),
        shape=(z, y, x),
        offset_vox=(first_z, first_y, first_x),
        spacing_mm=(spacing_z, spacing_y, spacing_x),
        affine=np.array(facts["affine"], dtype=np.float64).reshape(4, 4),
        name=str(facts["name"]),
        metadata=dict(facts["metadata"]),
    )


def _checksum(tensors: dict[str, Tensor]) -> int:
    """Checksum of the values, because safetensors itself notices only a wrong length."""
    value = 0
    for name in ("features", "foreground"):
        value = zlib.crc32(tensors[name].numpy().reshape(-1).view(np.uint8).data, value)
    return value
