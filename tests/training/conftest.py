"""Small scans on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from s2dc_train.config import DataConfig

SaveScan = Callable[..., Path]


def textured_ball(shape: tuple[int, int, int] = (20, 24, 28), seed: int = 0) -> np.ndarray:
    """A bright, uneven ball on an empty background, (z, y, x) float32."""
    centred = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    z, y, x = np.meshgrid(*centred, indexing="ij")
    noise = np.random.default_rng(seed).uniform(200, 1000, shape)
    return np.where(z**2 + y**2 + x**2 < 0.8, noise, 0).astype(np.float32)


def save_nifti(
    path: Path,
    array: np.ndarray | None = None,
    *,
    seed: int = 0,
    spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
) -> Path:
    """Write (z, y, x) LPS voxels, so that what is read back has the same order."""
    array = textured_ball(seed=seed) if array is None else array
    z, y, x = spacing_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array.T if array.ndim <= 3 else array, np.diag([-x, -y, z, 1.0]))
    nibabel.save(image, path)
    return path


@pytest.fixture
def ball() -> Callable[..., np.ndarray]:
    return textured_ball


@pytest.fixture
def save_scan() -> SaveScan:
    return save_nifti


@pytest.fixture
def scan_folder(tmp_path: Path) -> Path:
    """Five scans with label maps in decathlon folders, without a dataset.json."""
    folder = tmp_path / "scans"
    for number in range(5):
        array = textured_ball((20 + number, 24, 28), seed=number)
        save_nifti(folder / "imagesTr" / f"case_{number}.nii.gz", array)
        labels = (array > 0).astype(np.uint8) + (array > 600)
        save_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", labels.astype(np.uint8))
    return folder


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """Settings that suit such scans: sub-volumes of 16 x 16 x 32 voxels."""

    def make(path: Path, **settings: object) -> DataConfig:
        values = {
            "path": str(path),
            "crop_size": 16,
            "grid": [1, 1, 2],
            "cache_dir": str(tmp_path / "cache"),
            "validation_volumes": 2,
            **settings,
        }
        return DataConfig(**values)  # type: ignore[arg-type]

    return make


TINY_RUN = """
data: {crop_size: 32, grid: [1, 1, 2], validation_volumes: 1}
model:
  {window_size: 2, head_hidden: 16, head_output: 8, queue_length: 7, teacher_momentum: 0.9}
optimizer: {warmup_steps: 2}
trainer:
  {max_steps: 6, save_every: 2, validate_every: 4, log_every: 1, accelerator: cpu, devices: "1"}
"""

TrainArguments = Callable[..., list[str]]


@pytest.fixture(scope="session")
def train_arguments(tmp_path_factory: pytest.TempPathFactory) -> TrainArguments:
    """Arguments of ``s2dc-train`` for a run of seconds on four labelled scans."""
    folder = tmp_path_factory.mktemp("tiny_run")
    for number in range(4):
        array = textured_ball((30 + number, 34, 60), seed=number)
        save_nifti(folder / "scans" / "imagesTr" / f"case_{number}.nii.gz", array)
        labels = ((array > 0).astype(np.uint8) + (array > 600)).astype(np.uint8)
        save_nifti(folder / "scans" / "labelsTr" / f"case_{number}.nii.gz", labels)
    (folder / "tiny.yaml").write_text(TINY_RUN)

    def make(out: Path, *more: str) -> list[str]:
        named = {
            "--config": folder / "tiny.yaml",
            "--data.path": folder / "scans",
            "--data.cache_dir": folder / "cache",
            "--out": out,
        }
        return [str(part) for pair in named.items() for part in pair] + list(more)

    return make
