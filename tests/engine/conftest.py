"""What the engine's tests share: small scans, labelled ones as files, and an encoder."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
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


@pytest.fixture(scope="session")
def checkpoint(tiny: SwinEncoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """File of the untrained encoder, which says that it knows CT."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    tiny.save(path, {"token_stage": 2, "preprocessing": {"preset": "ct_wide"}})
    return str(path)


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three torsos with two organs labelled, as decathlon has them: x to the right, y ahead."""
    folder = tmp_path_factory.mktemp("labelled")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-60.0, -70.0, 30.0)
    for seed in (1, 2, 3):
        image, labels = phantom((24, 32, 32), spacing_mm=(4.0, 4.0, 4.0), seed=seed)
        organs = np.where(np.isin(labels.array, (1, 3)), labels.array, 0).astype(np.uint8)
        for array, kind in ((image.array, "imagesTr"), (organs, "labelsTr")):
            voxels = np.ascontiguousarray(array.transpose(2, 1, 0)[::-1, ::-1])
            path = folder / kind / f"torso{seed}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    (folder / "dataset.json").write_text('{"labels": {"0": "background", "1": "first organ"}}')
    return folder


@pytest.fixture(scope="session")
def torsos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two torsos with labels, stored (x, y, z) to the right and the front, as decathlon does."""
    folder = tmp_path_factory.mktemp("torsos")
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-60.0, -70.0, 30.0)
    for seed in (1, 2):
        for volume, kind in zip(
            phantom((32, 48, 48), seed=seed), ("images", "labels"), strict=True
        ):
            voxels = np.ascontiguousarray(volume.array.transpose(2, 1, 0)[::-1, ::-1])
            (folder / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / kind / f"torso{seed}.nii.gz")
    return folder


@pytest.fixture
def coarse_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small torsos count as large."""
    small = {"MOST_VOXELS": 20_000, "_WORTH_IT": 1000, "_FEWEST": 100, "_SHORTEST": 1}
    for name, value in small.items():
        monkeypatch.setattr(f"napari_s2dc.volumes.coarser.{name}", value)
