"""Features as colours and as clusters: one basis for several scans, so that they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.errors import ConfigurationError

__all__ = ["ColourBasis", "clusters"]

_TRIPLES = 3
# Percentiles of the tissue that become the darkest and the brightest of a colour.
_RANGE = (2.0, 98.0)


@dataclass(frozen=True, eq=False)
class ColourBasis:
    """Principal components of unit features, their signs and ranges fixed.

    Parameters
    ----------
    mean : Tensor (C,)
        Mean unit feature of the tissue.
    components : Tensor (C, k)
        Orthonormal columns, the one of most variance first; the largest entry of each is
        positive, because the sign of a component is arbitrary and equal weights should give equal
        colours.
    low, high : Tensor (k,)
        Coordinates that become 0 and 255.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, embeddings: Sequence[Embedding], sample: int = 20000, seed: int = 0) -> Self:
        """Find the components over the tissue of one or more scans.

        Parameters
        ----------
        embeddings : sequence of Embedding
            By the same encoder and stage; every scan counts the same.
        sample : int
            Tokens that are looked at, over all scans.
        seed : int
            Of the sample.

        Raises
        ------
        ConfigurationError
            There is no embedding, or they have different numbers of channels.
        """
        if not embeddings:
            raise ConfigurationError("There is no embedding to colour.", "Embed a scan first.")
        if len({len(embedding.features) for embedding in embeddings}) > 1:
            raise ConfigurationError(
                "Embeddings by different encoders or of different stages share no colours.",
                "Embed the scans with the same encoder and stage.",
            )
        generator = torch.Generator().manual_seed(seed)
        each = max(sample // len(embeddings), 2)
        chosen = []
        for embedding in embeddings:
            tissue = embedding.unit()[embedding.foreground.reshape(-1)]
            order = torch.randperm(len(tissue), generator=generator)[:each]
            chosen.append(tissue[order])
        tokens = torch.cat(chosen)
        mean = tokens.mean(0)
        centred = (tokens - mean).double()
        # Ascending in the variance.
        vectors = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1)[:, : 3 * _TRIPLES]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        components = (vectors * torch.sign(largest)).float()
        coordinates = ((tokens - mean) @ components).numpy()
        low, high = np.percentile(coordinates, _RANGE, axis=0)
        # Features that are all equal have one colour in the middle of the range.
        width = np.maximum(high - low, 1e-6)
        middle = (low + high) / 2
        return cls(
            mean,
            components,
            torch.from_numpy(middle - width / 2).float(),
            torch.from_numpy(middle + width / 2).float(),
        )

    @property
    def triples(self) -> int:
        """How many triples of components there are to colour by."""
        return self.components.shape[1] // 3

    def colours(self, embedding: Embedding, triple: int = 0) -> np.ndarray:
        """Colour tokens by three components.

        Parameters
        ----------
        embedding : Embedding
            By the encoder and stage of the basis.
        triple : int
            0 for components 1 to 3, 1 for 4 to 6, and so on below :attr:`triples`.

        Returns
        -------
        np.ndarray (tz, ty, tx, 3)
            uint8; black outside the tissue.

        Raises
        ------
        ConfigurationError
            No such triple, or an embedding of another encoder.
        """
        if not 0 <= triple < self.triples:
            raise ConfigurationError(
                f"There is no triple of components {triple}.", f"Use 0 to {self.triples - 1}."
            )
        part = slice(3 * triple, 3 * triple + 3)
        coordinates = self._coordinates(embedding, part)
        share = (coordinates - self.low[part]) / (self.high[part] - self.low[part])
        colours = share.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        colours[~embedding.foreground.reshape(-1)] = 0
        result: np.ndarray = colours.reshape(*embedding.grid, 3).numpy()
        return result

    def coordinates(self, embedding: Embedding) -> np.ndarray:
        """Places of all tokens, (tokens, 2) float32, first axis slowest, in the first components.

        Parameters
        ----------
        embedding : Embedding
            By the encoder and stage of the basis.
        """
        result: np.ndarray = self._coordinates(embedding, slice(0, 2)).numpy()
        return result

    def _coordinates(self, embedding: Embedding, part: slice) -> Tensor:
        unit = embedding.unit()
        if unit.shape[1] != len(self.mean):
            raise ConfigurationError(
                f"The colours are for {len(self.mean)} channels and {embedding.name} has "
                f"{unit.shape[1]}.",
                "Embed the scans with the same encoder and stage.",
            )
        components = self.components[:, part]
        return unit @ components - self.mean @ components


def clusters(embedding: Embedding, k: int, seed: int = 0) -> np.ndarray:
    """Group the tissue by its features.

    Parameters
    ----------
    embedding : Embedding
        Scan.
    k : int
        Groups; fewer where there are fewer tokens.
    seed : int
        Of the start of the search; the same seed gives the same groups.

    Returns
    -------
    np.ndarray (tz, ty, tx)
        int32; 1 to k in the tissue, 1 the largest group; 0 elsewhere.

    Raises
    ------
    ConfigurationError
        `k` is below 1.
    """
    from sklearn.cluster import MiniBatchKMeans

    if k < 1:
        raise ConfigurationError(f"{k} groups cannot be made.", "Use at least 1.")
    inside = embedding.foreground.reshape(-1)
    tissue = embedding.unit()[inside].numpy()
    search = MiniBatchKMeans(
        min(k, len(tissue)), random_state=seed, n_init=3, batch_size=4096, max_iter=50
    )
    group = search.fit_predict(tissue)
    # Numbered by size, so that the numbers mean the same after another start.
    counts = np.bincount(group, minlength=search.n_clusters)
    number = np.empty_like(counts)
    number[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    result = np.zeros(len(inside), dtype=np.int32)
    result[inside.numpy()] = number[group]
    return result.reshape(embedding.grid)
