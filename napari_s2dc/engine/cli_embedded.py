"""Embeddings for the commands that compare scans: read from files, from the cache, or made."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_s2dc.engine.cli_scans import encoder_of, read_values, tell_mismatch
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.volumes.volume import Volume

__all__ = ["EmbeddedScan", "EmbeddedScans", "is_embedding_file", "require_same_encoder"]


def is_embedding_file(path: Path) -> bool:
    """Whether a path names a file of ``s2dc embed`` instead of a scan."""
    from napari_s2dc.engine.embedding_file import SUFFIX

    return path.name.lower().endswith(SUFFIX)


@dataclass(frozen=True, eq=False)
class EmbeddedScan:
    """A scan and its embedding.

    Parameters
    ----------
    embedding : Embedding
        Features.
    grid : Volume
        What was embedded: the scan, where it is large on a coarser grid; of a file of features
        the grid alone, without values.
    scan : Volume
        The scan as it was read; of a file of features the same as `grid`.
    """

    embedding: Embedding
    grid: Volume
    scan: Volume

    @property
    def own_affine(self) -> np.ndarray | None:
        """Affine of the scan where another grid was embedded, else None."""
        return None if self.grid is self.scan else self.scan.affine


class EmbeddedScans:
    """Embeddings by path, all made by one encoder, which is read when it is first needed.

    Parameters
    ----------
    encoder : str, optional
        As ``--encoder`` has it.
    settings : EmbedSettings
        Settings.
    full : bool
        Whether large scans are embedded with all of their voxels, instead of on the grid of
        :func:`napari_s2dc.volumes.coarser.grid_to_match`: the first scan on the finest, the others
        with voxels like it.
    """

    def __init__(self, encoder: str | None, settings: EmbedSettings, *, full: bool = True) -> None:
        self._option = encoder
        self.settings = settings
        self._full = full
        self._side_mm: float | None = None
        self._most: int | None = None
        self._network: SwinEncoder | None = None

    @property
    def network(self) -> SwinEncoder:
        """The encoder."""
        if self._network is None:
            self._network = encoder_of(self._option)
        return self._network

    def like(self, path: Path) -> None:
        """Embed scans with voxels like those of a file of features, however many there are."""
        from napari_s2dc.engine.embedding_file import load_embedding
        from napari_s2dc.volumes.coarser import side_mm

        self._side_mm = side_mm(load_embedding(path).spacing_mm)
        self._most = sys.maxsize

    def of(self, path: Path) -> EmbeddedScan:
        """Read and embed a scan, or read a file of features.

        Parameters
        ----------
        path : Path
            Scan, or file of ``s2dc embed``.
        """
        from napari_s2dc.engine.embedding_file import load_embedding

        if is_embedding_file(path):
            embedding = load_embedding(path)
            self._require_as_asked(embedding, path)
            grid = _own_grid(embedding)
            return EmbeddedScan(embedding, grid, grid)
        return self.of_scan(read_values(path), path)

    def _require_as_asked(self, embedding: Embedding, path: Path) -> None:
        """Refuse a file of features that ``--encoder`` or ``--stage`` would not have made."""
        from napari_s2dc.engine.encoders import weights_hash

        hint = "Leave the option out, or embed the scan again."
        if self._option is not None and embedding.metadata.get("weights") != weights_hash(
            self.network
        ):
            raise ConfigurationError(
                f"{path} was embedded by another encoder than --encoder {self._option}.", hint
            )
        stage = self.settings.stage
        if stage is not None and embedding.metadata.get("stage", stage) != stage:
            raise ConfigurationError(
                f"{path} holds features of stage {embedding.metadata['stage']}, not of --stage "
                f"{stage}.",
                hint,
            )

    def of_scan(self, scan: Volume, path: Path) -> EmbeddedScan:
        """Embed a scan; says on standard error when it is far from what the encoder knows."""
        from napari_s2dc.volumes.coarser import grid_to_match, on_grid, side_mm

        shape = scan.shape
        if not self._full:
            shape = grid_to_match(scan.shape, scan.spacing_mm, self._side_mm, self._most)
        grid = on_grid(scan, shape)
        self._side_mm = self._side_mm or side_mm(grid.spacing_mm)
        tell_mismatch(grid, path, self.network)
        return EmbeddedScan(self._embed(grid), grid, scan)

    def _embed(self, volume: Volume) -> Embedding:
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
