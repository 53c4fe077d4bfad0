"""Features of a whole scan by a sliding window, with progress and cancel."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from napari_s2dc import __version__
from napari_s2dc.engine.embed_settings import (
    DEVICES,
    OVERLAP,
    WINDOW_VOX,
    EmbedSettings,
    region_of,
    stage_of,
)
from napari_s2dc.engine.embedding import Embedding, Token, to_voxels
from napari_s2dc.engine.encode import device_of, encode, windows_at_once
from napari_s2dc.engine.encoders import name_of, preset_of, weights_hash
from napari_s2dc.engine.measures import foreground_tokens
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.window_plan import WindowPlan, plan_windows
from napari_s2dc.engine.windows import run_windows
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import check_values
from napari_s2dc.volumes.preprocess import foreground_mask, normalize, scaling_of
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "DEVICES",
    "OVERLAP",
    "WINDOW_VOX",
    "EmbedSettings",
    "Embedding",
    "Token",
    "WindowPlan",
    "embed",
    "embed_volume",
    "normalised",
    "plan",
    "to_voxels",
]


def plan(shape: tuple[int, ...], encoder: SwinEncoder, settings: EmbedSettings) -> WindowPlan:
    """Count the windows and estimate the memory before anything is embedded.

    Where the tissue lies is not known yet: without the air round it there may be fewer windows,
    and shorter ones, never more.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x) of the scan.
    encoder : SwinEncoder
        Encoder.
    settings : EmbedSettings
        Settings.

    Raises
    ------
    ConfigurationError
        A setting is out of range, or the encoder takes several images at once.
    """
    if encoder.config.in_channels != 1:
        raise ConfigurationError(
            f"This encoder takes {encoder.config.in_channels} images at once; a scan is one.",
            "Choose an encoder with one input channel.",
        )
    region = region_of(shape, settings)
    return plan_windows(
        [part.stop - part.start for part in region],
        encoder.config,
        stage=stage_of(encoder, settings),
        window_vox=settings.window_vox,
        overlap=settings.overlap,
        windows_at_once=windows_at_once(device_of(settings.device)),
    )


def embed_volume(volume: Volume, encoder: SwinEncoder, settings: EmbedSettings) -> Steps[Embedding]:
    """Embed the tissue of a scan or of a region of it.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder : SwinEncoder
        Not changed; several runs may share it.
    settings : EmbedSettings
        Settings.

    Yields
    ------
    Progress
        Once before the tissue is looked for, with the windows of :func:`plan`, which are the most
        there may be; then after every batch of windows, with those there are. Where the memory of
        the graphics processor does not suffice, windows start anew: smaller, then on the CPU.

    Returns
    -------
    Embedding
        Tokens of tissue and their neighbours have features; others may be 0.
        ``metadata["notice"]`` says so when windows started anew.

    Raises
    ------
    VolumeError
        The scan holds no usable values.
    ConfigurationError
        A setting is out of range or the device is not there.
    """
    check_values(volume)
    windows = plan(volume.shape, encoder, settings)
    yield Progress(0, windows.windows, "windows")
    region = region_of(volume.shape, settings)
    tissue = foreground_mask(volume.array)
    foreground = foreground_tokens(tissue[region], windows.stride)
    if not bool(foreground.any()):  # nothing but thin structures
        foreground = torch.ones_like(foreground)
    preset = preset_of(volume, encoder, settings.preset)
    scale = scaling_of(volume.array, preset, tissue)
    features, facts = yield from encode(
        volume.array[region], encoder, settings, tissue=foreground, scale=scale
    )
    z, y, x = (part.start for part in region)
    return Embedding(
        features=features,
        foreground=foreground,
        stride=windows.stride,
        shape=windows.shape,
        offset_vox=(z, y, x),
        spacing_mm=volume.spacing_mm,
        affine=volume.affine,
        name=volume.name,
        metadata={
            "encoder": name_of(encoder),
            "weights": weights_hash(encoder),
            "borders": encoder.config.borders,
            "preset": preset,
            "stage": windows.stage,
            "voxels": volume.voxels_hash(),
            "settings": asdict(settings),
            "version": __version__,
            **facts,
        },
    )


def normalised(
    volume: Volume,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    tissue: np.ndarray | None = None,
) -> np.ndarray:
    """Intensities of the region in [0, 1], float32 (Z, Y, X).

    Percentiles are those of the tissue (Z, Y, X) of the whole scan, so that a region looks as it
    does in the whole; it is found when left out.
    """
    image = normalize(volume.array, preset_of(volume, encoder, settings.preset), tissue)
    return image[region_of(volume.shape, settings)]


def embed(
    image: np.ndarray,
    encoder: SwinEncoder,
    *,
    stage: int,
    window_vox: int = WINDOW_VOX,
    overlap: float = OVERLAP,
    windows_at_once: int = 4,
) -> Tensor:
    """Encode a normalised image window by window, in one go.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Scan normalised to [0, 1].
    encoder : SwinEncoder
        On the device that is to do the work; used in evaluation mode.
    stage : int
        Encoder stage, 0 to 4; a token is a cube of ``STRIDES[stage]`` voxels.
    window_vox : int
        Side of a window in voxels; at least 32, a multiple of 16 and of the token side. Along an
        axis on which the scan is shorter, the window is only as long as it needs to be.
    overlap : float
        Least share of a window that the next one covers again, 0 up to (not including) 1.
    windows_at_once : int
        Windows encoded together.

    Returns
    -------
    Tensor (C, tz, ty, tx)
        float32 on the CPU. Token ``i`` of an axis covers voxels ``[i * stride, (i + 1) * stride)``;
        the last one may reach past the scan, where the image counts as 0.

    Raises
    ------
    ConfigurationError
        A setting is out of range.
    """
    windows = plan_windows(
        image.shape, encoder.config, stage=stage, window_vox=window_vox, overlap=overlap
    )
    running = run_windows(
        image, encoder, windows, windows_at_once=windows_at_once, dtype=torch.float32
    )
    while True:
        try:
            next(running)
        except StopIteration as stop:
            features: Tensor = stop.value
            return features
