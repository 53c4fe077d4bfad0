"""Embeddings of random features, for tests of matching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from napari_s2dc.engine.embedding import Embedding

SPACING = (2.0, 1.5, 1.0)


def embedding(
    shape: tuple[int, int, int] = (6, 8, 7), *, seed: int = 0, channels: int = 24
) -> Embedding:
    """Random features: no two tokens are alike."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(channels, *shape, generator=generator)
    return Embedding(
        features=features.half(),
        foreground=torch.ones(shape, dtype=torch.bool),
        stride=4,
        shape=tuple(side * 4 for side in shape),  # type: ignore[arg-type]
        offset_vox=(0, 0, 0),
        spacing_mm=SPACING,
        affine=np.diag([*SPACING, 1.0]),
        name="scan",
        metadata={},
    )


def moved(one: Embedding, steps: tuple[int, int, int]) -> Embedding:
    """The same anatomy some tokens further on; what comes in at the edge is new."""
    fresh = embedding(tuple(one.features.shape[1:]), seed=9)  # type: ignore[arg-type]
    features = torch.roll(one.features, steps, (1, 2, 3))
    for axis, step in enumerate(steps, start=1):
        index = torch.arange(features.shape[axis])
        edge = index < step if step >= 0 else index >= features.shape[axis] + step
        features.index_copy_(axis, index[edge], fresh.features.index_select(axis, index[edge]))
    return replace(one, features=features)
