"""A whole scan segmented by a fine-tuned network, in overlapping windows and little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor

from napari_s2dc.engine.encode import lacks_operation, out_of_memory, windows_at_once
from napari_s2dc.engine.fewshot_settings import SegmentSettings
from napari_s2dc.engine.finetune_network import SegmentationNetwork, network_of
from napari_s2dc.engine.finetune_planes import ProbabilityPlanes
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.foreground import foreground_mask
from napari_s2dc.volumes.volume import Volume

__all__ = ["box_of", "places_of", "segment_with_network"]

_MIRRORS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))
_FRAME_VOX = 4
"""Voxels around the tissue that are segmented too."""
_MAPS = 12
"""Maps of the decoder's last level, float32, that a window takes; 7 to 12 on a CPU."""
_OUTPUT_MAPS = 6
"""And maps of each output: logits, what they are made of, and probabilities."""


def places_of(volume: Volume, grid: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the voxels of a volume lie on another grid with the same directions.

    Parameters
    ----------
    volume : Volume
        Its voxels.
    grid : Volume
        The volume on another spacing.

    Returns
    -------
    tuple of np.ndarray
        Places along z, y and x in voxels of the grid.
    """
    matrix = np.linalg.inv(grid.affine) @ volume.affine
    z, y, x = (matrix[a, a] * np.arange(n) + matrix[a, 3] for a, n in enumerate(volume.shape))
    return z, y, x


def segment_with_network(
    image: np.ndarray,
    model: SegmentationModel,
    settings: SegmentSettings,
    device: torch.device,
    *,
    places: Sequence[np.ndarray] | None = None,
) -> Steps[tuple[np.ndarray, np.ndarray]]:
    """Segment an image.

    Windows of one intensity that are far from tissue are left out, and what no window covers is
    background. That changes nothing in the tissue, because every window that reaches it is there.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        On the grid of the model, normalised to [0, 1].
    model : SegmentationModel
        Of kind ``finetune``.
    settings : SegmentSettings
        Overlap of windows, and whether mirror images are averaged.
    device : torch.device
        Where the network runs.
    places : sequence of 3 np.ndarray, optional
        Voxels that are wanted, as of :func:`places_of`; those of the image when left out. The
        probabilities of classes are interpolated at them, which keeps borders smooth and thin
        structures whole where a scan has smaller voxels than the model.

    Yields
    ------
    Progress
        After every batch of windows.

    Returns
    -------
    outputs : np.ndarray
        uint8 or uint16: 0 is background, ``1 + i`` is class ``i``.
    uncertainty : np.ndarray
        float16 of the same shape, 0 to 1: entropy over its largest value.

    Raises
    ------
    S2DCError
        There is not enough memory.
    """
    tissue = foreground_mask(image)
    box = box_of(tissue, _FRAME_VOX)
    wanted = [np.arange(n, dtype=float) for n in image.shape] if places is None else list(places)
    planes = ProbabilityPlanes(model.outputs, wanted, box)
    if box is None:  # nothing but air
        return planes.found, planes.uncertainty
    network = network_of(model).to(device)
    mirrors = _MIRRORS if settings.flips else _MIRRORS[:1]
    try:
        yield from _windows(
            image[box], tissue[box], model, network, settings.overlap, mirrors, planes
        )
    except (RuntimeError, MemoryError) as error:
        if lacks_operation(error, device):
            raise S2DCError(
                "PyTorch lacks an operation on Apple's graphics that the model needs.",
                "Choose the processor (cpu) as the device.",
            ) from error
        if not out_of_memory(error):
            raise
        raise S2DCError(
            "There is not enough memory to segment the scan.",
            "Close other programs, or use a model trained by s2dc finetune with a lower "
            "--finetune.crop_vox.",
        ) from error
    return planes.found, planes.uncertainty


def box_of(mask: np.ndarray, frame: int = 0) -> tuple[slice, slice, slice] | None:
    """Box of what a mask (Z, Y, X) holds, and a frame around it; None where it holds nothing."""
    sides = []
    for axis, length in enumerate(mask.shape):
        there = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(there):
            return None
        first, end = int(there[0]) - frame, int(there[-1]) + 1 + frame
        sides.append(slice(max(0, first), min(length, end)))
    return sides[0], sides[1], sides[2]


def _windows(
    image: np.ndarray,
    tissue: np.ndarray,
    model: SegmentationModel,
    network: SegmentationNetwork,
    overlap: float,
    mirrors: Sequence[tuple[int, ...]],
    planes: ProbabilityPlanes,
) -> Steps[None]:
    """Run the windows with z growing and hand finished planes of probabilities on.

    MONAI's ``sliding_window_inference`` would hold the probabilities of all classes for the whole
    scan, and return only once it is done.
    """
    window = tuple(int(side) for side in model.metadata["window_vox"])
    device = next(network.parameters()).device
    padding = [max(0, side - length) for side, length in zip(window, image.shape, strict=True)]
    before = [missing // 2 for missing in padding]
    pad = [(b, p - b) for b, p in zip(before, padding, strict=True)]
    framed, tissue = np.pad(image, pad), np.pad(tissue, pad)
    steps = [max(1, int(side * (1 - overlap))) for side in window]
    places = [
        place
        for place in dense_patch_slices(framed.shape, window, steps)
        # The tissue is that of large parts, such as a torso without the hands beside it
        if _near(tissue, place) or framed[place].min() < framed[place].max()
    ]
    weight = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).to(device)
    shape = (model.outputs + 1, window[0], *framed.shape[1:])
    slab = torch.zeros(shape, dtype=torch.float16)
    first = done = 0
    maps = _MAPS * network.swinViT.embed_dim + _OUTPUT_MAPS * model.outputs
    together = windows_at_once(device, 4 * math.prod(window) * maps)
    crop = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))

    def pass_on(count: int, at: int) -> None:
        """Hand over the first planes of the slab, the first of which is plane `at`."""
        low, high = max(at, crop[0].start), min(at + count, crop[0].stop)
        if low < high:
            part = slab[:, low - at : high - at, crop[1], crop[2]].float()
            weights = part[-1:]
            part[:1][weights == 0] = 1  # no window: background
            planes.add(part[:-1].div_(weights.where(weights > 0, 1)))

    while done < len(places):
        batch = places[done : done + together]
        crops = torch.from_numpy(np.stack([framed[place] for place in batch])[:, None])
        try:
            found = _probabilities(network, crops.to(device), mirrors, weight).cpu()
        except (RuntimeError, MemoryError) as error:
            if together == 1 or not out_of_memory(error):
                raise
            found = None
        if found is None:  # outside the handler, whose traceback keeps the failed batch's tensors
            together = max(1, together // 4)
            continue
        for place, one in zip(batch, found, strict=True):
            while first < place[0].start:
                moved = min(place[0].start - first, window[0])
                pass_on(moved, first)
                kept = window[0] - moved
                slab[:, :kept] = slab[:, moved:].clone()
                slab[:, kept:] = 0
                first += moved
            slab[:, :, place[1], place[2]] += one
        done += len(batch)
        yield Progress(done, len(places), "windows")
    pass_on(window[0], first)
    planes.close()


def _near(tissue: np.ndarray, place: Sequence[slice]) -> bool:
    """Whether a window or the frame around it holds tissue."""
    around = tuple(slice(max(0, p.start - _FRAME_VOX), p.stop + _FRAME_VOX) for p in place)
    return bool(tissue[around].any())


def _probabilities(
    network: SegmentationNetwork, images: Tensor, mirrors: Sequence[tuple[int, ...]], weight: Tensor
) -> Tensor:
    """Weighted probabilities, and the weight behind them, (B, outputs + 1, *window)."""
    device = images.device
    total = None
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
    ):
        for axes in mirrors:
            logits = network(images.flip(axes) if axes else images)
            found = logits.float().softmax(1)
            found = found.flip(axes) if axes else found
            total = found if total is None else total + found
    assert total is not None
    weighted = total / len(mirrors) * weight
    return torch.cat([weighted, weight.expand(len(images), 1, *weight.shape)], dim=1)
