"""What the engine's tests share: a small scan and an encoder."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed_volume
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume


@pytest.fixture(scope="session")
def tiny() -> SwinEncoder:
    """An untrained encoder, in training mode as it is built."""
    torch.manual_seed(0)
    return SwinEncoder.from_size("tiny", window_size=4)


@pytest.fixture(scope="session")
def settings() -> EmbedSettings:
    """Small windows on the CPU, so that several are needed."""
    return EmbedSettings(window_vox=32, device="cpu")


@pytest.fixture(scope="session")
def torso() -> Volume:
    """A CT-like scan with voxels that are not cubes, away from the origin."""
    image, _ = phantom((32, 48, 48), spacing_mm=(4.0, 3.0, 3.0), seed=1)
    image.affine[:3, 3] = (-50.0, 20.0, 70.0)
    return image


@pytest.fixture(scope="session")
def embedding(torso: Volume, tiny: SwinEncoder, settings: EmbedSettings) -> Embedding:
    """The torso's features at stage 2."""
    return finish(embed_volume(torso, tiny, settings))
