"""From matched patches to a map of every voxel: an affine start, pulled into place and bent.

Transport says which patches correspond, to a fraction of a patch. From there the map follows the
gradient of how well the scans agree under it: their features, and the local correlation of their
intensities. Everything is computed on grids of bounded size, in mm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.scan_agreement import Agreement, Level, grid_places, masked_mean, to_tensor
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.volumes.preprocess import foreground_mask, normalize
from napari_s2dc.volumes.volume import Volume

__all__ = ["Registration", "RegistrationSettings", "register"]

_MOST_VOXELS = 200_000
"""Of the finest grid that is compared: about half of a mouse brain's resolution."""
_CONTROL_STEP = 2
"""Voxels of the compared grid between points at which the bending is free."""
_STEPS_A_REPORT = 5
_STILL_FALLING = 0.03
"""Fall of the loss over the last third of the whole map's steps from which on as many more are
made: 0.05 and 0.08 where the pairs of a cut-out torso lay 34 and 40 mm off and the map was on its
way, 0 to 0.02 for brains, hippocampi, thoraces and phantoms, which had arrived."""
_MOST_ROUNDS = 5


@dataclass(frozen=True)
class RegistrationSettings:
    """How long and how freely a map is refined.

    Parameters
    ----------
    affine_steps : int
        Steps in which the whole map moves, by a grid of twice the finest voxels, and as many again
        while it still gets better, five times as many in all at most; 0 keeps the start.
    bending_steps : int
        Steps in which it bends; 0 keeps it affine.
    stiffness : float
        Weight of the bending's roughness; larger is smoother.
    feature_weight : float
        Weight of the agreement of features beside that of intensities.
    fine_affine_steps : int
        Steps in which the whole map moves by the finest grid, before it bends: they find a place
        more exactly, from less far away.
    """

    affine_steps: int = 30
    bending_steps: int = 30
    stiffness: float = 0.05
    feature_weight: float = 0.2
    fine_affine_steps: int = 0

    def __post_init__(self) -> None:
        if min(self.affine_steps, self.fine_affine_steps, self.bending_steps) < 0:
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
    correlation : float
        Its mean over the tissue of B that scan A shows too: of squared local correlations.
    overlap : float
        Share of the tissue of B that scan A shows too.
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
    correlation: float
    overlap: float
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
        to_a = to_tensor(np.linalg.inv(affine) @ self.matrix @ self.affine)
        turn = to_tensor(np.linalg.inv(affine)[:3, :3])
        bending = self._at_voxels(self.bending_mm, planes).movedim(0, -1)
        places = grid_places((planes.stop - planes.start, *self.shape[1:]), first=planes.start)
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


def _descend(
    optimizer: torch.optim.Optimizer, steps: int, loss: Callable[[], Tensor]
) -> Generator[float, None, None]:
    """Take steps; yields the loss before each of them."""
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        yield float(value.detach())


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
    total = settings.affine_steps + settings.fine_affine_steps + settings.bending_steps
    done = 0
    yield Progress(done, total, "steps")
    parts = []
    for embedding, volume in zip(embeddings, images, strict=True):
        tissue = foreground_mask(volume.array)
        image = normalize(volume.array, embedding.metadata.get("preset", "auto"), tissue)
        parts.append((to_tensor(image), to_tensor(tissue), volume))
    image_b = images[1]
    extent_mm3 = float(np.prod(image_b.shape) * abs(np.linalg.det(image_b.affine[:3, :3])))
    fine_mm = max((extent_mm3 / _MOST_VOXELS) ** (1 / 3), min(image_b.spacing_mm))
    coarse_a, fine_a = (Level.of(*parts[0], side) for side in (2 * fine_mm, fine_mm))
    coarse_b, whole_b = (Level.of(*parts[1], side) for side in (2 * fine_mm, fine_mm))
    # Air decides nothing; between brains it is more than half of the time.
    box = whole_b.box()
    coarse = coarse_a, coarse_b.cropped(coarse_b.box())
    fine = fine_a, whole_b.cropped(box)
    model = Agreement(embeddings, start, settings.feature_weight)

    # The whole map settles on the coarse grid; the fine one is for bending, and for more exactness.
    moving = [model.shift, model.change]
    for levels, steps, rate, rounds in (
        (coarse, settings.affine_steps, 0.5, _MOST_ROUNDS),
        (fine, settings.fine_affine_steps, 0.25, 1),
    ):
        optimizer = torch.optim.Adam(moving, lr=rate * fine_mm)
        for more in reversed(range(rounds)):
            losses = []
            for value in _descend(optimizer, steps, partial(model.loss, None, *levels)):
                losses.append(value)
                done += 1
                if done % _STEPS_A_REPORT == 0:
                    yield Progress(done, total, "steps")
            early, late = losses[: -(steps // 3)], losses[-(steps // 3) :]
            if not more or not early or min(early) - min(late) < _STILL_FALLING:
                break
            total += steps
    for parameter in moving:
        parameter.requires_grad_(False)

    grid = fine[1].image.shape[1:]
    control = torch.zeros(3, *(-(-side // _CONTROL_STEP) for side in grid))
    if bending is not None:
        points = _control_points_mm(control.shape[1:], fine[1])
        control = to_tensor(bending(points.reshape(-1, 3))).mT.reshape(control.shape)
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
        agreement, counts = model.local_correlation(bend, *fine)
        agreement = agreement.clamp(0, 1)
    margins = []
    for part, length in reversed(list(zip(box, whole_b.tissue.shape, strict=True))):
        margins += [part.start, length - part.stop]
    yield Progress(total, total, "steps")
    return Registration(
        matrix=model.matrix(),
        bending_mm=F.pad(bend[None], margins, mode="replicate")[0],
        agreement=F.pad(agreement, margins),
        correlation=float(masked_mean(agreement, counts)),
        overlap=float(counts.sum() / (fine[1].tissue & fine[1].middle).sum().clamp(min=1)),
        block=whole_b.block,
        shape=image_b.shape,
        affine=image_b.affine,
    )


def _control_points_mm(counts: Sequence[int], level: Level) -> np.ndarray:
    """Positions (*counts, 3) in mm of points spread over a level from edge to edge."""
    sides = torch.tensor(level.image.shape[1:]) / torch.tensor(counts)
    where = ((grid_places(counts) + 0.5) * sides - 0.5).double().numpy()
    points: np.ndarray = where @ level.affine[:3, :3].T + level.affine[:3, 3]
    return points


def _smooth(control: Tensor) -> Tensor:
    for _ in range(2):
        control = F.avg_pool3d(control[None], 3, 1, 1, count_include_pad=False)[0]
    return control
