"""Checkpoint files on disk: read as tensors without running code in them, written whole or not."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_s2dc.errors import CheckpointError

METADATA_KEY = "napari_s2dc"
"""Key of our JSON in the header of a safetensors file."""

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_DEEPEST = 5


@dataclass(frozen=True)
class TensorFile:
    """Contents of a checkpoint file.

    Parameters
    ----------
    tensors : Every tensor under its full dotted name, nested mappings included.
    facts : Plain values at the top level (numbers, texts, mappings of them) beside the tensors.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def looks_like_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the first bytes are those of safetensors, a PyTorch zip or a pickle."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError:
        return False
    return _kind(head) is not None


def read_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Read safetensors or PyTorch files, told apart by content, not by name.

    PyTorch files go through ``torch.load(weights_only=True)``: code in them never runs.

    Raises
    ------
    CheckpointError
        The file is missing, a folder, unreadable, damaged, holds code, or is no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint file.",
            "Name the file in it, for example encoder.safetensors.",
        )
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint file {path}.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty.", "Copy or download it again.")
    kind = _kind(head)
    if kind is None:
        raise CheckpointError(
            f"{path} is not a checkpoint: it is neither safetensors nor a PyTorch file.",
            "If it was downloaded, open it as text: it may be an error page or a Git LFS pointer.",
        )
    return _read_safetensors(path) if kind == "safetensors" else _read_torch(path)


def _kind(head: bytes) -> str | None:
    # safetensors first: 8 bytes of header length, whose lowest may well be that of a pickle, then
    # the header's JSON object; zip files and pickles have other bytes there
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    return "torch" if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)) else None


def _read_safetensors(path: Path) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path) from error
    if METADATA_KEY not in header:
        return TensorFile(tensors, dict(header))
    try:
        facts = json.loads(header[METADATA_KEY])
    except ValueError as error:
        raise CheckpointError(f"The metadata of {path} is not valid JSON.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"The metadata of {path} is not a JSON object.")
    return TensorFile(tensors, {METADATA_KEY: facts})


def _read_torch(path: Path) -> TensorFile:
    try:
        # a stream, because torch.load takes a path ending in .safetensors for that format; the
        # warning it silences is about pickles that the refusal below describes better
        with (
            open(path, "rb") as stream,
            torch.serialization.safe_globals(_harmless_types()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names what it refused: "... GLOBAL os.system ...", or only "Unsupported operand"
        refused = re.search(r"GLOBAL\s+([\w.]+)", str(error))
        if refused is None and "Unsupported" not in str(error):
            raise _damaged(path) from error
        named = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{path} holds Python code or objects{named}, not only tensors, and such a file is "
            "never run.",
            "Save the state_dict alone with torch.save and use that file.",
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory.") from error
    except Exception as error:  # torch raises almost any type on a broken file
        if zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is not a PyTorch checkpoint but another kind of archive.",
                "Save the state_dict with torch.save and use that file.",
            ) from error
        raise _damaged(path) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a mapping of names to tensors."
        )
    facts = {
        key: value for key, value in content.items() if isinstance(key, str) and _is_plain(value)
    }
    return TensorFile(dict(_flatten(content)), facts)


def _flatten(
    content: Mapping[Any, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _harmless_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Plain holders of values that training scripts often store beside the weights."""
    import argparse
    import codecs

    import numpy as np
    from numpy._core import multiarray

    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    listed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        argparse.Namespace,
        codecs.encode,
        np.ndarray,
        np.dtype,
        *dict.fromkeys(dtypes),
    ]
    for name in ("scalar", "_reconstruct"):
        # the module moved in NumPy 2; files written before name the old place
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            listed.append((getattr(multiarray, name), f"{module}.{name}"))
    return listed


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or damaged, or not a checkpoint.", "Copy or download it again."
    )
