"""How a scan is embedded: the settings, and what they mean for a scan and an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_s2dc.errors import ConfigurationError

if TYPE_CHECKING:
    from napari_s2dc.method.encoder import SwinEncoder

__all__ = ["DEVICES", "OVERLAP", "WINDOW_VOX", "EmbedSettings", "region_of", "stage_of"]

WINDOW_VOX = 96
"""Side of a window. Wider than the small presets' crops: on mouse brains (crops of 48) the
5-NN accuracy of structures across subjects was 0.584 at 96, and 0.570 at 48 with half overlap."""
OVERLAP = 0.25
DEVICES = ("auto", "cpu", "cuda", "mps")

_USUAL_STAGE = 2

Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class EmbedSettings:
    """How a scan is embedded.

    Parameters
    ----------
    stage : int, optional
        Encoder stage, 0 to 4; left out, the one the encoder was trained to match tokens at.
    preset : str
        Intensity preset: ``"checkpoint"`` for the one the encoder was trained with, ``"auto"``,
        or a key of :data:`napari_s2dc.volumes.preprocess.PRESETS`.
    window_vox : int
        Largest side of a window in voxels; they are shorter where as few will do.
    overlap : float
        Least share of a window that the next one covers again.
    device : str
        One of :data:`DEVICES`; ``"auto"`` takes CUDA or else the CPU.
    roi : tuple of (first, end), optional
        Region in voxels along z, y and x, end exclusive; the whole scan when left out.
    """

    stage: int | None = None
    preset: str = "checkpoint"
    window_vox: int = WINDOW_VOX
    overlap: float = OVERLAP
    device: str = "auto"
    roi: Region | None = None


def stage_of(encoder: SwinEncoder, settings: EmbedSettings) -> int:
    """Stage that is embedded: the settings', else the encoder's own, else 2."""
    if settings.stage is not None:
        return settings.stage
    own = encoder.metadata.get("token_stage")
    return own if isinstance(own, int) and 0 <= own <= 4 else _USUAL_STAGE


def region_of(shape: tuple[int, ...], settings: EmbedSettings) -> tuple[slice, slice, slice]:
    """Slices (z, y, x) of the region of interest, or of the whole scan.

    Raises
    ------
    ConfigurationError
        The region is empty or reaches out of the scan.
    """
    roi = settings.roi or tuple((0, side) for side in shape)
    fits = len(roi) == 3 and all(
        0 <= first < end <= side for (first, end), side in zip(roi, shape, strict=True)
    )
    if not fits:
        raise ConfigurationError(
            f"The region {settings.roi} does not lie in the scan of {tuple(shape)} voxels.",
            "Give first and end voxel along z, y and x, the end not included.",
        )
    z, y, x = (slice(first, end) for first, end in roi)
    return z, y, x
