"""From matched patches to a map of every voxel: an affine start, pulled into place and bent.

Transport says which patches correspond, to a fraction of a patch. From there the map follows the
gradient of how well the scans agree under it: their features, and the local correlation of their
intensities. Everything is computed on grids of bounded size, in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.volumes.preprocess import foreground_mask, normalize
from napari_s2dc.volumes.volume import Volume

__all__ = ["Registration", "RegistrationSettings", "register"]

_MOST_VOXELS = 200_000
"""Of the finest grid that is compared: about half of a mouse brain's resolution."""
_KERNEL = 5
"""Side in voxels of the neighbourhood whose intensities are correlated."""
_FLAT = 1e-2
"""Sum of squared deviations below which a neighbourhood counts as flat."""
_CONTROL_STEP = 2
"""Voxels of the compared grid between points at which the bending is free."""
_STEPS_A_REPORT = 5


@dataclass(frozen=True)
class RegistrationSettings:
    """How long and how freely a map is refined.

    Parameters
    ----------
    affine_steps : int
        Steps in which the whole map moves; 0 keeps the start.
    bending_steps : int
        Steps in which it bends; 0 keeps it affine.
    stiffness : float
        Weight of the bending's roughness; larger is smoother.
    feature_weight : float
        Weight of the agreement of features beside that of intensities.
    """

    affine_steps: int = 60
    bending_steps: int = 60
    stiffness: float = 0.05
    feature_weight: float = 0.5

    def __post_init__(self) -> None:
        if min(self.affine_steps, self.bending_steps) < 0:
            raise ConfigurationError("A registration cannot take a negative number of steps.")
        if min(self.stiffness, self.feature_weight) < 0:
            raise ConfigurationError("Stiffness and the weight of features must not be negative.")


@dataclass(frozen=True, eq=False)
class Registration:
    """A map from one scan into another.

    Parameters
    ----------
    matrix : np.ndarray (4, 4)
        Takes (z, y, x, 1) in mm of scan B to mm of scan A.
    bending_mm : Tensor (3, gz, gy, gx)
        What is added to that, in mm of A, for blocks of voxels of scan B.
    agreement : Tensor (gz, gy, gx)
        Squared local correlation of the intensities, 0 to 1, for the same blocks.
    block : tuple of int
        Voxels (z, y, x) of a block.
    shape : tuple of int
        Voxels (z, y, x) of scan B.
    affine : np.ndarray (4, 4)
        (z, y, x) voxel of scan B to mm.
    """

    matrix: np.ndarray
    bending_mm: Tensor
    agreement: Tensor
    block: tuple[int, int, int]
    shape: tuple[int, int, int]
    affine: np.ndarray

    def voxels_in(self, affine: np.ndarray, planes: slice) -> Tensor:
        """Where the voxels of some planes of scan B lie in an array of scan A.

        Parameters
        ----------
        affine : np.ndarray (4, 4)
            (z, y, x) voxel of that array to mm.
        planes : slice
            First and end plane (z) of scan B.

        Returns
        -------
        Tensor (planes, Y, X, 3)
            Voxel coordinates (z, y, x), float32.
        """
        to_a = _tensor(np.linalg.inv(affine) @ self.matrix @ self.affine)
        turn = _tensor(np.linalg.inv(affine)[:3, :3])
        bending = self._at_voxels(self.bending_mm, planes).movedim(0, -1)
        places = _places((planes.stop - planes.start, *self.shape[1:]), first=planes.start)
        return places @ to_a[:3, :3].mT + to_a[:3, 3] + bending @ turn.mT

    def agreement_in(self, planes: slice) -> Tensor:
        """Agreement (planes, Y, X) at the voxels of some planes of scan B."""
        return self._at_voxels(self.agreement[None], planes)[0]

    def _at_voxels(self, blocks: Tensor, planes: slice) -> Tensor:
        """Interpolate values (C, gz, gy, gx) of blocks to the voxels of some planes."""
        place = (torch.arange(planes.start, planes.stop) + 0.5) / self.block[0] - 0.5
        place = place.clamp(0, blocks.shape[1] - 1)
        below = place.floor().long()
        above = (below + 1).clamp(max=blocks.shape[1] - 1)
        share = (place - below)[None, :, None, None]
        slab = blocks[:, below] * (1 - share) + blocks[:, above] * share
        factors = tuple(float(side) for side in self.block[1:])
        _, height, width = self.shape
        large = F.interpolate(slab, scale_factor=factors, mode="bilinear")
        return large[..., :height, :width]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def _places(shape: Sequence[int], first: int = 0) -> Tensor:
    """List the indices (*shape, 3) of every voxel, the first axis counted from `first`."""
    axes = [torch.arange(side, dtype=torch.float32) for side in shape]
    axes[0] += first
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(image: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Values (C, *places) of an image (C, Z, Y, X) at voxel coordinates (..., 3); 0 outside."""
    sides = torch.tensor(image.shape[1:], dtype=torch.float32)
    grid = ((2 * places + 1) / sides - 1).flip(-1)
    flat = grid.reshape(1, -1, 1, 1, 3)
    values = F.grid_sample(image[None], flat, mode=mode, align_corners=False)
    return values.reshape(len(image), *places.shape[:-1])


@dataclass(frozen=True, eq=False)
class _Level:
    """A scan on a grid of a bounded number of voxels: intensities and where they lie."""

    image: Tensor  # (1, Z, Y, X)
    tissue: Tensor  # (Z, Y, X)
    affine: np.ndarray
    block: tuple[int, int, int]  # voxels of the scan

    @cached_property
    def middle(self) -> Tensor:
        """Where a neighbourhood does not reach past the edge (Z, Y, X)."""
        inner = torch.zeros(self.image.shape[1:], dtype=torch.bool)
        reach = _KERNEL // 2
        inner[tuple(slice(reach, side - reach) for side in inner.shape)] = True
        return inner

    @classmethod
    def of(cls, image: Tensor, tissue: Tensor, volume: Volume, side_mm: float) -> _Level:
        """Average whole blocks of voxels that are about `side_mm` wide."""
        z, y, x = (
            min(max(1, round(side_mm / spacing)), length)
            for spacing, length in zip(volume.spacing_mm, volume.shape, strict=True)
        )
        block = (z, y, x)
        to_block = np.diag([*block, 1.0])
        to_block[:3, 3] = (np.asarray(block) - 1) / 2
        small, inside = (
            F.avg_pool3d(part[None, None], block, ceil_mode=True, count_include_pad=False)[0]
            for part in (image, tissue)
        )
        return cls(small, inside[0] >= 0.5, volume.affine @ to_block, block)


class _Model:
    """How well the scans agree under a map, as a loss."""

    def __init__(
        self,
        features: tuple[Embedding, Embedding],
        matrix: np.ndarray,
        feature_weight: float,
    ) -> None:
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        self.a, self.b = features
        self.feature_weight = feature_weight
        self.correlation = LocalNormalizedCrossCorrelationLoss(
            kernel_size=_KERNEL, smooth_dr=_FLAT, reduction="none"
        )
        tokens = torch.nonzero(self.b.foreground).float()
        to_token_b = _token_affine(self.b)
        self.points_mm = tokens @ to_token_b[:3, :3].mT + to_token_b[:3, 3]
        self.from_mm_a = torch.linalg.inv(_token_affine(self.a))
        tissue = self.a.foreground[None].float()
        unit_a = self.a.unit().mT.reshape(self.a.features.shape)
        self.tissue_and_unit_a = torch.cat([tissue, unit_a * tissue])
        self.unit_b = self.b.unit()[self.b.foreground.flatten()]
        self.middle = self.points_mm.mean(0)
        self.radius = float((self.points_mm - self.middle).square().sum(1).mean().sqrt())
        self.start = _tensor(matrix)
        # Both in mm: the shift, and the change of the matrix at one radius from the middle.
        self.shift = torch.zeros(3, requires_grad=True)
        self.change = torch.zeros(3, 3, requires_grad=True)

    def move(self, points_mm: Tensor) -> Tensor:
        """Affine part of the map, mm of B to mm of A."""
        change = (points_mm - self.middle) @ (self.change.mT / self.radius)
        return points_mm @ self.start[:3, :3].mT + self.start[:3, 3] + change + self.shift

    def matrix(self) -> np.ndarray:
        """Affine part of the map as a matrix."""
        change = self.change.detach() / self.radius
        matrix = self.start.clone()
        matrix[:3, :3] += change
        matrix[:3, 3] += self.shift.detach() - change @ self.middle
        return matrix.double().numpy()

    def features_loss(self, bending_mm: Tensor | None, level: _Level) -> Tensor:
        """One minus the mean cosine of the features that come to lie on each other."""
        mapped = self.move(self.points_mm)
        if bending_mm is not None:
            to_level = torch.linalg.inv(_tensor(level.affine))
            where = self.points_mm @ to_level[:3, :3].mT + to_level[:3, 3]
            mapped = mapped + sample(bending_mm, where).mT
        place = mapped @ self.from_mm_a[:3, :3].mT + self.from_mm_a[:3, 3]
        # Between the edge and the last patch's middle, that patch's own features.
        most = torch.tensor(self.a.grid, dtype=torch.float32) - 1
        sampled = sample(self.tissue_and_unit_a, place.clamp(torch.zeros(3), most))
        # Unit vectors get shorter in between; what is shorter for lack of tissue stays so.
        cosine = sampled[0] * (F.normalize(sampled[1:], dim=0) * self.unit_b.mT).sum(0)
        return 1 - _mean(cosine, _inside(place, self.a.grid, 0.5))

    def agreement(self, bending_mm: Tensor | None, a: _Level, b: _Level) -> tuple[Tensor, Tensor]:
        """Squared local correlation of the intensities on the grid of B, and where it counts.

        It does not where the neighbourhood reaches past the edge of either picture: edges of the
        field of view would be pulled onto each other.
        """
        to_mm, from_mm = _tensor(b.affine), torch.linalg.inv(_tensor(a.affine))
        mapped = self.move(_places(b.image.shape[1:]) @ to_mm[:3, :3].mT + to_mm[:3, 3])
        if bending_mm is not None:
            mapped = mapped + bending_mm.movedim(0, -1)
        place = mapped @ from_mm[:3, :3].mT + from_mm[:3, 3]
        result = -self.correlation(sample(a.image, place)[None], b.image[None])[0, 0]
        reach = _KERNEL // 2
        return result, b.tissue & b.middle & _inside(place, a.image.shape[1:], -reach)

    def loss(self, bending_mm: Tensor | None, a: _Level, b: _Level) -> Tensor:
        """Give what the steps make small."""
        loss = 1 - _mean(*self.agreement(bending_mm, a, b))
        if self.feature_weight:
            loss = loss + self.feature_weight * self.features_loss(bending_mm, b)
        return loss


def _inside(place: Tensor, shape: Sequence[int], margin: float) -> Tensor:
    """Whether places (..., 3) lie in a grid of a shape, made wider on each side by a margin."""
    most = torch.tensor(shape, dtype=torch.float32) - 1 + margin
    return ((place >= -margin) & (place <= most)).all(-1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 without any."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _token_affine(embedding: Embedding) -> Tensor:
    """Token index to mm."""
    to_voxel = np.diag([embedding.stride] * 3 + [1.0])
    to_voxel[:3, 3] = (embedding.stride - 1) / 2 + np.asarray(embedding.offset_vox)
    return _tensor(embedding.affine @ to_voxel)


def _descend(
    optimizer: torch.optim.Optimizer, steps: int, loss: Callable[[], Tensor]
) -> Generator[None, None, None]:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        yield


def register(
    embeddings: tuple[Embedding, Embedding],
    images: tuple[Volume, Volume],
    start: np.ndarray,
    *,
    bending: Callable[[np.ndarray], np.ndarray] | None = None,
    settings: RegistrationSettings | None = None,
) -> Steps[Registration]:
    """Refine a map from scan B into scan A.

    Parameters
    ----------
    embeddings : (Embedding, Embedding)
        Features of A and B, with the same encoder and stage.
    images : (Volume, Volume)
        The scans A and B themselves.
    start : np.ndarray (4, 4)
        From (z, y, x, 1) in mm of B to mm of A, as fitted to matched patches.
    bending : callable, optional
        What to add to that at first: from points (n, 3) in mm of B to displacements in mm of A.
    settings : RegistrationSettings, optional
        Defaults when left out.

    Yields
    ------
    Progress
        Steps done.

    Returns
    -------
    Registration

    Notes
    -----
    Gradient descent (Adam) on local normalised cross-correlation (Avants et al. 2008), cosine
    similarity of features, and a diffusion penalty of the bending.
    """
    settings = settings or RegistrationSettings()
    total = settings.affine_steps + settings.bending_steps
    done = 0
    yield Progress(done, total, "steps")
    parts = []
    for embedding, volume in zip(embeddings, images, strict=True):
        image = normalize(volume.array, embedding.metadata.get("preset", "auto"))
        parts.append((_tensor(image), _tensor(foreground_mask(volume.array)), volume))
    image_b = images[1]
    extent_mm3 = float(np.prod(image_b.shape) * abs(np.linalg.det(image_b.affine[:3, :3])))
    fine_mm = max((extent_mm3 / _MOST_VOXELS) ** (1 / 3), min(image_b.spacing_mm))
    coarse, fine = ([_Level.of(*part, side) for part in parts] for side in (2 * fine_mm, fine_mm))
    model = _Model(embeddings, start, settings.feature_weight)

    moving = [model.shift, model.change]
    first = settings.affine_steps // 2
    for levels, steps in ((coarse, first), (fine, settings.affine_steps - first)):
        side_mm = 2 * fine_mm if levels is coarse else fine_mm
        optimizer = torch.optim.Adam(moving, lr=0.25 * side_mm)
        for _ in _descend(optimizer, steps, partial(model.loss, None, *levels)):
            done += 1
            if done % _STEPS_A_REPORT == 0:
                yield Progress(done, total, "steps")
    for parameter in moving:
        parameter.requires_grad_(False)

    grid = fine[1].image.shape[1:]
    control = torch.zeros(3, *(-(-side // _CONTROL_STEP) for side in grid))
    if bending is not None:
        points = _control_points_mm(control.shape[1:], fine[1])
        control = _tensor(bending(points.reshape(-1, 3))).mT.reshape(control.shape)
    control.requires_grad_()

    def field() -> Tensor:
        return F.interpolate(_smooth(control)[None], grid, mode="trilinear")[0]

    def bent_loss() -> Tensor:
        # MONAI's DiffusionLoss indexes in a way that torch is about to give another meaning.
        steps = [torch.diff(control / fine_mm, dim=axis) for axis in (1, 2, 3)]
        rough = sum(step.square().mean() for step in steps if step.numel())
        return model.loss(field(), *fine) + settings.stiffness * rough

    optimizer = torch.optim.Adam([control], lr=0.25 * fine_mm)
    for _ in _descend(optimizer, settings.bending_steps, bent_loss):
        done += 1
        if done % _STEPS_A_REPORT == 0:
            yield Progress(done, total, "steps")
    with torch.no_grad():
        bend = field()
        agreement = model.agreement(bend, *fine)[0].clamp(0, 1)
    yield Progress(total, total, "steps")
    return Registration(
        model.matrix(), bend, agreement, fine[1].block, image_b.shape, image_b.affine
    )


def _control_points_mm(counts: Sequence[int], level: _Level) -> np.ndarray:
    """Positions (*counts, 3) in mm of points spread over a level from edge to edge."""
    sides = torch.tensor(level.image.shape[1:]) / torch.tensor(counts)
    where = ((_places(counts) + 0.5) * sides - 0.5).double().numpy()
    points: np.ndarray = where @ level.affine[:3, :3].T + level.affine[:3, 3]
    return points


def _smooth(control: Tensor) -> Tensor:
    for _ in range(2):
        control = F.avg_pool3d(control[None], 3, 1, 1, count_include_pad=False)[0]
    return control
