"""Embeddings kept on disk, named by what they were made from, the least used ones dropped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import platformdirs

from napari_s2dc import __version__
from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings, region_of, stage_of
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.embedding_file import SUFFIX, load_embedding, save_embedding
from napari_s2dc.engine.encoders import preset_of, weights_hash
from napari_s2dc.engine.progress import Steps
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

__all__ = ["EmbeddingCache", "embed_cached", "embedding_key"]

# Changes whenever the same scan, weights and settings give other features than before.
_RECIPE = 2
# A temporary file this old was left by a process that was killed.
_ENDING = f".cached{SUFFIX}"
_STALE_SECONDS = 3600.0


def embedding_key(volume: Volume, encoder: SwinEncoder, settings: EmbedSettings) -> str:
    """Name an embedding by everything that decides its features.

    Parameters
    ----------
    volume : Volume
        Its voxels count; its name and place do not.
    encoder : SwinEncoder
        Its architecture and weights count.
    settings : EmbedSettings
        Preset, stage, windows and region count as they are resolved; the device does not.

    Returns
    -------
    str
        Hexadecimal, 40 characters.
    """
    region = region_of(volume.shape, settings)
    recipe = [
        _RECIPE,
        __version__,
        weights_hash(encoder),
        preset_of(volume, encoder, settings.preset),
        stage_of(encoder, settings),
        settings.window_vox,
        settings.overlap,
        [[part.start, part.stop] for part in region],
        list(volume.shape),
        volume.array.dtype.str,
        volume.voxels_hash(),
    ]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:40]


class EmbeddingCache:
    """Embeddings in a folder, up to a size; beyond it the least recently used ones go.

    A folder that cannot be written, a full disk and damaged files never raise: then the cache
    holds less, or nothing, and :attr:`problem` says why.

    Parameters
    ----------
    folder : Path, optional
        Where the files lie; the user's cache folder when left out. Made when first needed.
    limit_bytes : int
        Size that is kept to.

    Attributes
    ----------
    problem : str
        Why the last embedding was not kept, in one sentence; "" when all is well.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = 5 * 2**30) -> None:
        if folder is None:
            folder = platformdirs.user_cache_path("napari-s2dc", appauthor=False) / "embeddings"
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.problem = ""

    def get(self, key: str) -> Embedding | None:
        """Give an embedding, or None when it is not there; a damaged file is removed.

        Parameters
        ----------
        key : str
            As made by :func:`embedding_key`.
        """
        path = self._place(key)
        try:
            if not path.is_file():
                return None
            embedding = load_embedding(path)
        except S2DCError:
            _remove(path)
            return None
        except OSError:  # a folder that may not be entered
            return None
        with suppress(OSError):  # a cache that can only be read still serves
            os.utime(path)
        return embedding

    def put(self, key: str, embedding: Embedding) -> None:
        """Keep an embedding and drop the least recently used ones beyond the limit.

        Parameters
        ----------
        key : str
            As made by :func:`embedding_key`.
        embedding : Embedding
            What to keep; one that alone exceeds the limit is not.
        """
        size = embedding.features.nbytes + embedding.foreground.nbytes
        if size > self.limit_bytes:
            self.problem = (
                f"The embedding of {embedding.name} takes {size / 2**20:.0f} MB, more than the "
                f"cache may hold ({self.limit_bytes / 2**20:.0f} MB)."
            )
            return
        try:
            save_embedding(embedding, self._place(key))
        except S2DCError as error:
            self.problem = f"Embeddings are not kept: {error.sentence}"
            return
        self.problem = ""
        self._evict(keep=self._place(key))

    def size_bytes(self) -> int:
        """Size of all files of the cache."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Remove every embedding from the cache."""
        for _, _, path in self._entries():
            _remove(path)

    def _place(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, leftovers of killed processes included."""
        entries = []
        try:
            # Never a file that somebody else keeps in the same folder.
            paths = [*self.folder.glob(f"*{_ENDING}")]
        except OSError:
            return []
        for path in paths:
            try:
                facts = path.stat()
            except OSError:  # another process has just removed it
                continue
            # The temporary file of a process at work is none of ours.
            if path.name.startswith(".") and time.time() - facts.st_mtime < _STALE_SECONDS:
                continue
            entries.append((facts.st_mtime, facts.st_size, path))
        return entries

    def _evict(self, keep: Path) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            leftover = path.name.startswith(".")
            if leftover or (total > self.limit_bytes and path != keep):
                _remove(path)
                total -= size


def _remove(path: Path) -> None:
    with suppress(OSError):  # in a folder that cannot be written nothing can be removed either
        path.unlink(missing_ok=True)


def embed_cached(
    volume: Volume, encoder: SwinEncoder, settings: EmbedSettings, cache: EmbeddingCache
) -> Steps[Embedding]:
    """Embed a scan, or take its embedding from the cache.

    Parameters
    ----------
    volume, encoder, settings
        As for :func:`napari_s2dc.engine.embed.embed_volume`.
    cache : EmbeddingCache
        Where the embedding is looked for and kept.

    Yields
    ------
    Progress
        As `embed_volume` does; nothing when the cache has it.

    Returns
    -------
    Embedding
        With the name and place of this volume, whichever it was made from.
    """
    key = embedding_key(volume, encoder, settings)
    found = cache.get(key)
    if found is not None:
        return replace(
            found,
            name=volume.name,
            affine=volume.affine,
            spacing_mm=volume.spacing_mm,
            # The notice is of the run that made it; voxels are not noted in files of before.
            metadata=found.metadata | {"notice": "", "voxels": volume.voxels_hash()},
        )
    embedding = yield from embed_volume(volume, encoder, settings)
    # Smaller windows, for want of memory, are not what was asked for: the next time may do better.
    if embedding.metadata["window_vox"] == settings.window_vox:
        cache.put(key, embedding)
    return embedding
