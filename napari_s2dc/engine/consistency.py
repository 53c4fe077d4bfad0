"""How well the neighbourhood of every patch looks the same from randomly turned views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_s2dc.engine.embed import embed_volume, normalised
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encode import encode
from napari_s2dc.engine.progress import Progress, Steps, as_one
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.similarity import neighbourhood_consistency
from napari_s2dc.method.tokens import partners
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "ConsistencyMap",
    "ConsistencyReading",
    "consistency_at",
    "consistency_map",
    "in_whole_tokens",
    "random_view",
]


# Views: about what the pretraining saw, degrees, factors and voxels.
_ROTATION_DEG = 20.0
_TILT_DEG = 8.0
_SCALE = (0.9, 1.1)
_SHIFT_VOX = 8.0

# Features of neighbours that are gathered at a time.
_LARGEST_GATHER_BYTES = 128 * 2**20


@dataclass(frozen=True)
class ConsistencyReading:
    """Neighbourhood consistency of one patch.

    Parameters
    ----------
    mean : float
        From -1 to 1, 1 where the neighbourhood looks the same from every view.
    spread : float
        Standard deviation over the views; 0 with a single one.
    count : int
        Views in which the patch and enough of its neighbours could be followed.
    """

    mean: float
    spread: float
    count: int


@dataclass(frozen=True, eq=False)
class ConsistencyMap:
    """Neighbourhood consistency on the token grid.

    Parameters
    ----------
    mean, spread : Tensor (tz, ty, tx)
        float32, mean and standard deviation over the views; NaN in the background and where no
        view knows the patch.
    count : Tensor (tz, ty, tx)
        int32, views that know the patch.
    """

    mean: Tensor
    spread: Tensor
    count: Tensor


def consistency_map(
    volume: Volume,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    *,
    views: int = 8,
    seed: int = 0,
    radius: float = 2.0,
    embedding: Embedding | None = None,
) -> Steps[ConsistencyMap]:
    """Embed randomly turned, scaled and shifted views and compare neighbourhoods with the scan's.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder : SwinEncoder
        As for :func:`napari_s2dc.engine.embed.embed_volume`.
    settings : EmbedSettings
        Settings; of a region only the region itself is turned.
    views : int
        How many views.
    seed : int
        Of the views; the same seed gives the same ones.
    radius : float
        Neighbours are at most this many tokens away.
    embedding : Embedding, optional
        That of the scan with these settings, where it is already there.

    Yields
    ------
    Progress
        Views done, after each of them and also in between, after every batch of windows.

    Returns
    -------
    ConsistencyMap

    Raises
    ------
    ConfigurationError
        There is no view to make.
    """
    if views < 1:
        raise ConfigurationError(f"{views} views cannot be compared.", "Use at least 1.")
    if embedding is None:
        embedding = yield from as_one(
            embed_volume(volume, encoder, settings), Progress(0, views, "views")
        )
    image = in_whole_tokens(
        torch.from_numpy(normalised(volume, encoder, settings)), embedding.stride
    )
    generator = torch.Generator().manual_seed(seed)
    known = torch.zeros(embedding.grid, dtype=torch.int32)
    total = torch.zeros(embedding.grid, dtype=torch.float64)
    squares = torch.zeros(embedding.grid, dtype=torch.float64)
    for number in range(views):
        view = random_view(generator, volume.spacing_mm)
        partner = _partners(embedding, view)
        compared = torch.zeros(embedding.grid, dtype=torch.bool)
        compared.view(-1)[partner[partner >= 0]] = True
        turned = encode(view.warp(image).numpy(), encoder, settings, tissue=compared)
        features, _ = yield from as_one(turned, Progress(number, views, "views"))
        agreement = _agreement(embedding, features, partner, radius)
        there = agreement.isfinite()
        values = torch.where(there, agreement, 0.0).double()
        known += there
        total += values
        squares += values.square()
        yield Progress(number + 1, views, "views")
    mean = total / known  # NaN where no view knows the patch
    spread = (squares / known - mean.square()).clamp(min=0).sqrt()
    return ConsistencyMap(mean.float(), spread.float(), known)


def consistency_at(consistency: ConsistencyMap, token: Sequence[int]) -> ConsistencyReading:
    """Read the map at a token (z, y, x); mean and spread are NaN where it is not known."""
    z, y, x = token
    return ConsistencyReading(
        float(consistency.mean[z, y, x]),
        float(consistency.spread[z, y, x]),
        int(consistency.count[z, y, x]),
    )


def in_whole_tokens(image: Tensor, stride: int) -> Tensor:
    """Pad an image (Z, Y, X) at its ends to whole tokens: then its centre is the token grid's."""
    padding = [part for side in reversed(image.shape) for part in (0, -side % stride)]
    return torch.nn.functional.pad(image, padding)


def random_view(
    generator: torch.Generator, spacing_mm: Sequence[float], *, in_plane: bool = False
) -> Affine3D:
    """Draw a view: turned about z, tilted a little about y and x, scaled and shifted.

    Parameters
    ----------
    generator : torch.Generator
        Source of the random numbers.
    spacing_mm : sequence of 3 floats
        Of the scan; the view is turned in mm.
    in_plane : bool
        Without tilt and without shift along z.
    """
    numbers = torch.rand(7, dtype=torch.float64, generator=generator)
    turn, tilt_y, tilt_x = (
        float(2 * number - 1) * most
        for number, most in zip(numbers, (_ROTATION_DEG, _TILT_DEG, _TILT_DEG), strict=False)
    )
    scale = float(_SCALE[0] + (_SCALE[1] - _SCALE[0]) * numbers[3])
    shift_vox = (2 * numbers[4:] - 1) * _SHIFT_VOX
    if in_plane:
        tilt_y, tilt_x, shift_vox[0] = 0.0, 0.0, 0.0
    turned = Affine3D.compose(
        torch.zeros(3), [(turn, (1, 2)), (tilt_y, (0, 2)), (tilt_x, (0, 1))], scale
    )
    # Turned in mm, or slices further apart than pixels would be sheared.
    to_mm = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    in_voxels = Affine3D(torch.linalg.inv(to_mm) @ turned.matrix @ to_mm)
    return in_voxels.translated(shift_vox)


def _partners(embedding: Embedding, view: Affine3D) -> Tensor:
    """Token (tokens,) of the view that shows each token of the tissue; -1 without one."""
    partner = partners(view, embedding.grid, embedding.stride)
    return torch.where(embedding.foreground.reshape(-1), partner, -1)


def _agreement(embedding: Embedding, features: Tensor, partner: Tensor, radius: float) -> Tensor:
    """Neighbourhood consistency (tz, ty, tx) between the scan and one view.

    It is that of the tokens whose partner (tokens,) in the view is not -1.
    """
    depth, height, width = embedding.grid
    plane = height * width
    first = embedding.unit()
    second = features.reshape(len(features), -1).mT.float()
    positions = torch.cartesian_prod(*(torch.arange(n) for n in embedding.grid)).float()
    # Slab by slab with the neighbours around it, because all neighbours' features are gathered.
    reach = math.ceil(radius)
    per_plane = plane * (4 * radius**3 + 1) * first.shape[1] * 4
    thick = max(2, int(_LARGEST_GATHER_BYTES / per_plane) - 2 * reach)
    result = torch.full((depth, height, width), torch.nan)
    for start in range(0, depth, thick):
        stop = min(start + thick, depth)
        low, high = max(start - reach, 0), min(stop + reach, depth)
        part = slice(low * plane, high * plane)
        if bool((partner[part] < 0).all()):
            continue
        agreement = neighbourhood_consistency(
            first[part], second, partner[part], positions[part], radius=radius
        )
        result[start:stop] = agreement.reshape(-1, height, width)[start - low : stop - low]
    return result
