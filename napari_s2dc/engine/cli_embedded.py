"""Embeddings for the commands that compare scans: read from files, from the cache, or made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_s2dc.engine.cli_scans import encoder_of, read_scan
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.errors import ConfigurationError

if TYPE_CHECKING:
    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.volumes.volume import Volume

__all__ = ["EmbeddedScans", "is_embedding_file", "require_same_encoder"]


def is_embedding_file(path: Path) -> bool:
    """Whether a path names a file of ``s2dc embed`` instead of a scan."""
    from napari_s2dc.engine.embedding_file import SUFFIX

    return path.name.lower().endswith(SUFFIX)


class EmbeddedScans:
    """Embeddings by path, all made by one encoder, which is read when it is first needed.

    Parameters
    ----------
    encoder : str, optional
        As ``--encoder`` has it.
    settings : EmbedSettings
        Settings.
    """

    def __init__(self, encoder: str | None, settings: EmbedSettings) -> None:
        self._option = encoder
        self.settings = settings
        self._network: SwinEncoder | None = None

    @property
    def network(self) -> SwinEncoder:
        """The encoder."""
        if self._network is None:
            self._network = encoder_of(self._option)
        return self._network

    def of(self, path: Path) -> tuple[Embedding, Volume]:
        """Embedding, and the scan or, for a file of features, the grid it was made on.

        Parameters
        ----------
        path : Path
            Scan, or file of ``s2dc embed``.
        """
        from napari_s2dc.engine.embedding_file import load_embedding

        if is_embedding_file(path):
            embedding = load_embedding(path)
            return embedding, _own_grid(embedding)
        volume = self.scan(path)
        return self.embed(volume), volume

    def scan(self, path: Path) -> Volume:
        """Read a scan; says on standard error when it is far from what the encoder knows."""
        return read_scan(path, self.network)

    def embed(self, volume: Volume) -> Embedding:
        """Embed a scan under a bar, or take its embedding from the cache."""
        from napari_s2dc.engine.cache import EmbeddingCache, embed_cached
        from napari_s2dc.engine.progress import finish_with_bar

        return finish_with_bar(embed_cached(volume, self.network, self.settings, EmbeddingCache()))


def require_same_encoder(
    first: Embedding, second: Embedding, path_of_first: Path, path_of_second: Path
) -> None:
    """Refuse embeddings that cannot be compared; ConfigurationError names the files."""
    if first.metadata.get("weights") != second.metadata.get("weights"):
        raise ConfigurationError(
            f"{path_of_second} was embedded by another encoder than {path_of_first}.",
            "Embed both with the same one.",
        )


def _own_grid(embedding: Embedding) -> Volume:
    """Grid of an embedding whose scan is not at hand."""
    import numpy as np

    from napari_s2dc.volumes.volume import Volume

    shift = np.eye(4)
    shift[:3, 3] = embedding.offset_vox
    # Zeros that take no memory: only the shape is needed.
    array = np.broadcast_to(np.float32(0), embedding.shape)
    return Volume(array, embedding.affine @ shift, name=embedding.name)
