"""A plain training step with the habits of the released S²DC code, for comparison.

Written from a description of its behaviour, with nothing of its text: one crop at a time on the
CPU, a teacher that encodes everything three times, and losses that loop over problems. What it
computes is made equal to ours (labels, temperature, weights, sizes), so that only the way of
computing it differs. Where the released code computes something else (a wrong inverse, scale
factors of 0 to 2, unused parameters), this step does not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from s2dc_train.config import RunConfig, ViewConfig
from s2dc_train.module import S2DCModule
from s2dc_train.student_teacher import ProjectionHead
from torch import Tensor, nn

from benchmarks.released_losses import (
    global_contrast_loop,
    patch_to_patch_loop,
    patch_to_structure_loop,
)
from benchmarks.stopwatch import Stopwatch
from benchmarks.workload import Samples, autocast
from napari_s2dc.method.encoder import SwinEncoder

ITERATIONS = 100
"""Sinkhorn iterations of the released code, always all of them."""


class SliceHead(nn.Module):
    """Projection head whose batch normalisation takes z-slices as channels.

    Parameters
    ----------
    head : ProjectionHead
        Our head, whose linear weights are copied.
    slices : int
        Token slices of a volume; 0 for a head on whole crops, which normalises features.
    """

    def __init__(self, head: ProjectionHead, slices: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in copy.deepcopy(head):
            if isinstance(layer, nn.BatchNorm1d):
                layer = nn.BatchNorm1d(slices or layer.num_features, affine=False)
            layers.append(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Project (tokens, slices, C), or (crops, C)."""
        return F.normalize(self.layers(features).float(), dim=-1)


class PlainEncoder(nn.Module):
    """MONAI's Swin transformer as it comes, with plain attention and the weights of ours.

    Parameters
    ----------
    ours : SwinEncoder
        Where architecture and weights come from.
    """

    def __init__(self, ours: SwinEncoder) -> None:
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        config = ours.config
        self.swin = SwinTransformer(
            in_chans=config.in_channels,
            embed_dim=config.feature_size,
            window_size=(config.window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=config.depths,
            num_heads=config.num_heads,
            use_v2=config.use_v2,
        )
        # Without what follows from the window size, which ours need not keep.
        derived = dict(self.swin.named_buffers())
        self.swin.load_state_dict(derived | dict(ours.swin.state_dict()))

    def forward(self, crops: Tensor) -> list[Tensor]:
        """Features of every stage, as :class:`SwinEncoder` has them."""
        stages: list[Tensor] = self.swin(crops, normalize=True)
        return stages


class Network(nn.Module):
    """Encoder and both heads; the teacher is a deep copy."""

    def __init__(self, module: S2DCModule, slices: int) -> None:
        super().__init__()
        self.encoder = PlainEncoder(module.student.encoder)
        self.token_head = SliceHead(module.student.token_head, slices)
        self.contrast_head = SliceHead(module.student.contrast_head, 0)


def random_affine(config: ViewConfig, crop_size: int, random: np.random.Generator) -> np.ndarray:
    """Draw the (4, 4) map of view 2: in-plane shift, rotation about z and isotropic scale."""
    limit = config.translation * crop_size
    shift, rotation, scale = np.eye(4), np.eye(4), np.eye(4)
    shift[1:3, 3] = random.uniform(-limit, limit, size=2)
    angle = math.radians(random.uniform(-config.rotation_deg, config.rotation_deg))
    rotation[1:3, 1:3] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    scale[:3, :3] *= random.uniform(config.scale_min, config.scale_max)
    return shift @ rotation @ scale


def warp_volume(image: np.ndarray, matrix: np.ndarray) -> Tensor:
    """Warp a whole (1, Z, Y, X) sub-volume with MONAI on the CPU."""
    from monai.transforms import Affine

    warp = Affine(affine=matrix, mode="bilinear", padding_mode="zeros", image_only=True)
    return torch.as_tensor(np.asarray(warp(torch.from_numpy(image))))


def cut(volume: Any, grid: list[int], crop_size: int) -> list[Any]:
    """Cut a (1, Z, Y, X) volume into crops, one at a time, the first axis slowest."""
    crops = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                z, y, x = i * crop_size, j * crop_size, k * crop_size
                crops.append(volume[:, z : z + crop_size, y : y + crop_size, x : x + crop_size])
    return crops


def augment_crop(crop: Any, config: ViewConfig, crop_size: int, seed: int, *, move: bool) -> Tensor:
    """Change one crop's intensities, and its place if `move`, by transforms built for this call."""
    from monai.transforms import Compose, RandAffine, RandScaleIntensity, RandShiftIntensity

    transforms: list[Any] = []
    if move:
        transforms.append(
            RandAffine(
                prob=1.0,
                rotate_range=(math.radians(config.crop_rotation_deg),) * 3,
                translate_range=(config.crop_translation * crop_size,) * 3,
                scale_range=(config.crop_scale,) * 3,
                padding_mode="zeros",
            )
        )
    transforms += [
        RandScaleIntensity(factors=config.intensity_scale, prob=1.0),
        RandShiftIntensity(offsets=config.intensity_shift, prob=1.0),
    ]
    changed = Compose(transforms).set_random_state(seed)(crop)
    return torch.as_tensor(np.asarray(changed)).clamp(0, 1)


def pair_matrices(matrix: np.ndarray, token_grid: list[int], token_size: int) -> np.ndarray:
    """(slices, n, n) true pairs of one volume: mutual nearest cells, slice by slice."""
    shape = np.array(token_grid)
    index = np.stack(np.meshgrid(*map(np.arange, token_grid), indexing="ij"), -1).reshape(-1, 3)
    centres = (index + 0.5 - shape / 2) * token_size

    def cells(mapping: np.ndarray) -> np.ndarray:
        points = centres @ mapping[:3, :3].T + mapping[:3, 3]
        cell = np.floor(points / token_size + shape / 2).astype(int)
        inside = ((cell >= 0) & (cell < shape)).all(1)
        return np.where(inside, np.ravel_multi_index(cell.T, token_grid, mode="clip"), -1)

    there, back = cells(np.linalg.inv(matrix)), cells(matrix)
    per_slice = token_grid[1] * token_grid[2]
    pairs = np.zeros((token_grid[0], per_slice, per_slice), bool)
    for source, target in enumerate(there):
        same_slice = target // per_slice == source // per_slice
        if target >= 0 and same_slice and back[target] == source:
            pairs[source // per_slice, source % per_slice, target % per_slice] = True
    return pairs


class ReleasedStep:
    """The plain step.

    Parameters
    ----------
    module : S2DCModule
        Settings and weights to copy.
    samples : Samples
        Where batches come from.
    """

    def __init__(self, module: S2DCModule, samples: Samples) -> None:
        self.config: RunConfig = module.config
        self.samples = samples
        self.token_size = module.token_size_vox
        crop, grid = self.config.data.crop_size, self.config.data.grid
        self.token_grid = [count * crop // self.token_size for count in grid]
        self.student = Network(module, self.token_grid[0]).to(samples.device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        shape = (self.config.model.queue_length, self.config.model.head_output)
        self.queue = F.normalize(torch.randn(shape), dim=-1).to(samples.device)
        self.place = 0
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=self.config.optimizer.learning_rate,
            weight_decay=self.config.optimizer.weight_decay,
        )

    def views(self, images: Tensor, repetition: int) -> tuple[Tensor, ...]:
        """Crops of view 1, view 2 and the contrastive view, and the true pairs."""
        views, crop_size, grid = (
            self.config.views,
            self.config.data.crop_size,
            self.config.data.grid,
        )
        first, second, contrast, pairs = [], [], [], []
        for volume, image in enumerate(images.cpu().numpy()):
            random = np.random.default_rng([repetition, volume])
            matrix = random_affine(views, crop_size, random)
            warped = warp_volume(image, matrix)
            for crop in cut(image, grid, crop_size):
                seed = int(random.integers(2**31))
                first.append(augment_crop(crop, views, crop_size, seed, move=False))
            for crop in cut(warped, grid, crop_size):
                seed = int(random.integers(2**31))
                second.append(augment_crop(crop, views, crop_size, seed, move=False))
            for crop in cut(image, grid, crop_size):
                seed = int(random.integers(2**31))
                contrast.append(augment_crop(crop, views, crop_size, seed, move=True))
            pairs.append(torch.from_numpy(pair_matrices(matrix, self.token_grid, self.token_size)))
        parts = [torch.stack(first), torch.stack(second), torch.stack(contrast), torch.cat(pairs)]
        return tuple(part.to(self.samples.device) for part in parts)

    def _tokens(self, network: Network, features: Tensor) -> Tensor:
        """(B * slices, n, C) projected tokens, laid on their grid and projected per volume."""
        grid = self.config.data.grid
        per_volume = math.prod(grid)
        projected = []
        for volume in range(len(features) // per_volume):
            crops = iter(features[volume * per_volume : (volume + 1) * per_volume])
            planes = []
            for _ in range(grid[0]):
                rows = [torch.cat([next(crops) for _ in range(grid[2])], 3) for _ in range(grid[1])]
                planes.append(torch.cat(rows, 2))
            tokens = torch.cat(planes, 1).flatten(2).permute(2, 1, 0)
            projected.append(network.token_head(tokens).transpose(0, 1))
        return torch.cat(projected)

    def step(self, repetition: int, watch: Stopwatch) -> float:
        """Train on one batch; see :meth:`benchmarks.our_step.OurStep.step`."""
        device, settings, model = self.samples.device, self.config.loss, self.config.model
        stage = model.token_stage
        with watch.part("data"):
            images = self.samples.read(repetition)["image"]
        with watch.part("views"):
            first, second, contrast, pairs = self.views(images, repetition)
        per_volume = len(first) // len(images)
        random = np.random.default_rng([repetition])
        chosen = [v * per_volume + int(random.integers(per_volume)) for v in range(len(images))]
        with watch.part("teacher"), torch.no_grad(), autocast(device):
            key = self._tokens(self.teacher, self.teacher.encoder(second)[stage])
            pooled = self.teacher.encoder(contrast)[-1].mean((-3, -2, -1))
            keys = self.teacher.contrast_head(pooled)
            # The pass for the queue encodes all crops again and keeps one of each volume.
            pooled = self.teacher.encoder(contrast)[-1].mean((-3, -2, -1))
            kept = self.teacher.contrast_head(pooled)[chosen]
        with watch.part("student"), autocast(device):
            stages = self.student.encoder(first)
            query = self._tokens(self.student, stages[stage])
            vectors = self.student.contrast_head(stages[-1].mean((-3, -2, -1)))[chosen]
        query_leaf = query.detach().requires_grad_()
        vector_leaf = vectors.detach().requires_grad_()
        with watch.part("losses"):
            rows = torch.arange(len(keys), device=device)
            negatives = [torch.cat([keys[rows != place], self.queue]) for place in chosen]
            loss = (
                settings.patch_to_patch
                * patch_to_patch_loop(
                    query_leaf,
                    key,
                    pairs,
                    settings.temperature,
                    settings.dustbin,
                    ITERATIONS,
                )
                + settings.patch_to_structure * patch_to_structure_loop(query_leaf, key, pairs)
                + settings.global_contrast
                * global_contrast_loop(
                    vector_leaf, keys[chosen], negatives, settings.global_temperature
                )
            )
            loss.backward()
            for vector in kept:
                self.queue[self.place] = vector
                self.place = (self.place + 1) % len(self.queue)
        with watch.part("student"):
            torch.autograd.backward([query, vectors], [query_leaf.grad, vector_leaf.grad])
        with watch.part("optimizer"):
            nn.utils.clip_grad_norm_(self.student.parameters(), self.config.trainer.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            momentum = model.teacher_momentum
            for kept_parameter, new in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                kept_parameter.data.mul_(momentum).add_(new.data, alpha=1 - momentum)
        return float(loss.detach())
