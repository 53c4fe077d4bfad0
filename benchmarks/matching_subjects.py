"""Labels carried between subjects: ours beside no alignment, centres of mass and SimpleITK."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.report import table
from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed_volume
from napari_s2dc.engine.evaluate import Evaluation, evaluate_labels
from napari_s2dc.engine.label_borders import refine_borders
from napari_s2dc.engine.match import Match, match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.registration import RegistrationSettings
from napari_s2dc.engine.transfer import Transfer, TransferSettings, fuse, transfer_labels
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.volume import Volume

TARGETS = 5
ATLASES = 5
PAIRS_ALONE = RegistrationSettings(affine_steps=0, bending_steps=0)


@dataclass(frozen=True)
class Subject:
    """A labelled scan and its embedding."""

    image: Volume
    labels: Volume
    embedding: Embedding


def read_subjects(data: Path, encoder: SwinEncoder) -> tuple[list[Subject], float]:
    """Read and embed all labelled scans of a decathlon folder; seconds to embed one, too."""
    subjects, seconds = [], 0.0
    for file in sorted((data / "imagesTr").iterdir()):
        image = read_volume(file)
        begun = time.perf_counter()
        embedding = finish(embed_volume(image, encoder, EmbedSettings()))
        seconds += time.perf_counter() - begun
        labels = read_volume(data / "labelsTr" / file.name, labels=True)
        subjects.append(Subject(image, labels, embedding))
    return subjects, seconds / len(subjects)


def centred(a: Subject, b: Subject) -> np.ndarray:
    """Labels moved so that the centres of mass of both images agree."""
    from scipy import ndimage

    middles = [ndimage.center_of_mass(one.image.array) for one in (b, a)]
    moved: np.ndarray = ndimage.shift(a.labels.array, np.subtract(*middles), order=0)
    return moved


def through_plan(a: Subject, b: Subject, match: Match | None = None) -> np.ndarray:
    """Shares of A's labels in its patches, through the plan and interpolated to the voxels of B."""
    match = match or match_embeddings(a.embedding, b.embedding)
    labels = torch.from_numpy(a.labels.array.astype(np.int64))
    padding: list[int] = []
    for side in reversed(labels.shape):
        padding += [0, -side % match.a.stride]
    names = [int(name) for name in labels.unique()]
    grid = torch.zeros(len(names), int(np.prod(match.b.grid)))
    grid[names.index(0)] = 1e-6  # where nothing arrives, background
    for row, name in enumerate(names):
        mask = F.pad((labels == name).float(), padding)[None, None]
        share = F.avg_pool3d(mask, match.a.stride).flatten()[match.index_a]
        grid[row, match.index_b] = share @ match.mass
    shares = grid.reshape(1, len(names), *match.b.grid)
    large = F.interpolate(shares, scale_factor=float(match.b.stride), mode="trilinear")[0]
    z, y, x = b.image.shape
    found: np.ndarray = torch.tensor(names)[large.argmax(0)[:z, :y, :x]].numpy()
    return found


def registered(a: Subject, b: Subject) -> np.ndarray:
    """Labels through SimpleITK's affine registration (Mattes mutual information, three levels)."""
    import SimpleITK as sitk  # not a dependency: pip install SimpleITK

    def picture(volume: Volume, kind: int) -> sitk.Image:
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(tuple(float(side) for side in reversed(volume.spacing_mm)))
        return sitk.Cast(image, kind)

    fixed, moving = picture(b.image, sitk.sitkFloat32), picture(a.image, sitk.sitkFloat32)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    # The first step is about a voxel; plain gradient descent got much less far here.
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-4,
        numberOfIterations=200,
        estimateLearningRate=method.Once,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(fixed, moving)
    carried = sitk.Resample(
        picture(a.labels, sitk.sitkInt32), fixed, found, sitk.sitkNearestNeighbor, 0
    )
    result: np.ndarray = sitk.GetArrayFromImage(carried)
    return result


def carried(a: Subject, b: Subject, settings: TransferSettings | None = None) -> Transfer:
    """Labels of A carried to B as the tools do it."""
    match = match_embeddings(a.embedding, b.embedding)
    return finish(transfer_labels(match, a.labels, a.image, b.image, settings))


def walked(a: Subject, b: Subject) -> np.ndarray:
    """Labels as carried, unsure borders decided by a random walker."""
    return refine_borders(carried(a, b), b.image, b.embedding).labels.array


def judged(found: np.ndarray, b: Subject) -> Evaluation:
    """Compare labels on the grid of B with its own."""
    return evaluate_labels(b.labels.with_array(found.astype(b.labels.array.dtype)), b.labels)


def _ours(settings: TransferSettings | None = None) -> Callable[[Subject, Subject], np.ndarray]:
    return lambda a, b: carried(a, b, settings).labels.array


WAYS: dict[str, Callable[[Subject, Subject], np.ndarray]] = {
    "no alignment": lambda a, _: a.labels.array,
    "centre of mass": centred,
    "SimpleITK affine": registered,
    "ours": _ours(),
}
PARTS_ALONE: dict[str, Callable[[Subject, Subject], np.ndarray]] = {
    "ours": _ours(),
    "ours, refined without features": _ours(
        TransferSettings(registration=RegistrationSettings(feature_weight=0.0))
    ),
    "ours, borders by random walker": walked,
    "ours, affine map of the pairs alone": _ours(TransferSettings(registration=PAIRS_ALONE)),
    "ours, pairs and thin-plate spline": _ours(
        TransferSettings(registration=PAIRS_ALONE, bend_by_pairs=True)
    ),
    "ours, soft labels through the plan": lambda a, b: through_plan(a, b),
}
_HEADER = ["way", "mean Dice", "worst pair", "HD95, mm", "seconds, embedding included"]


def between_pairs(
    subjects: Sequence[Subject],
    embedding_seconds: float,
    pairs: int,
    ways: dict[str, Callable[[Subject, Subject], np.ndarray]],
) -> list[list[str]]:
    """Carry labels between ordered pairs of subjects; a row for every way.

    Parameters
    ----------
    subjects : sequence of Subject
        The last :data:`TARGETS` are the targets.
    embedding_seconds : float
        What embedding one of them took.
    pairs : int
        Ordered pairs (atlas, target), the same for every call.
    ways : dict
        From atlas and target to labels on the target's grid.
    """
    count = len(subjects)
    ordered = [(a, b) for a in range(count) for b in range(count - TARGETS, count) if a != b]
    chosen = [ordered[k] for k in np.random.default_rng(0).permutation(len(ordered))[:pairs]]
    scores: dict[str, list[Evaluation]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for a, b in chosen:
        for name, way in ways.items():  # in turn, so that all meet the same moments
            begun = time.perf_counter()
            found = way(subjects[a], subjects[b])
            seconds[name].append(time.perf_counter() - begun)
            scores[name].append(judged(found, subjects[b]))
        print(f"{len(seconds[name])} of {len(chosen)} pairs", flush=True)
    return [
        _row(
            name,
            scores[name],
            float(np.mean(seconds[name])) + 2 * embedding_seconds * name.startswith("ours"),
        )
        for name in ways
    ]


def from_several(subjects: Sequence[Subject], embedding_seconds: float) -> list[str]:
    """Carry labels from :data:`ATLASES` subjects to each target and fuse them; a row."""
    random = np.random.default_rng(0)
    count = len(subjects)
    scores, seconds = [], []
    for b in range(count - TARGETS, count):
        others = [a for a in range(count) if a != b]
        atlases = random.permutation(others)[:ATLASES]
        begun = time.perf_counter()
        fused = fuse([carried(subjects[a], subjects[b]) for a in atlases])
        seconds.append(time.perf_counter() - begun + (ATLASES + 1) * embedding_seconds)
        scores.append(judged(fused.labels.array, subjects[b]))
    return _row(f"ours, {ATLASES} atlases fused", scores, float(np.mean(seconds)))


def subject_table(rows: Sequence[Sequence[str]]) -> str:
    """Tabulate rows of :func:`between_pairs` and :func:`from_several`."""
    return table(_HEADER, rows)


def _row(name: str, scores: Sequence[Evaluation], seconds: float) -> list[str]:
    dice = [score.mean_dice for score in scores]
    distance = np.mean([score.mean_hd95_mm for score in scores])
    return [
        name,
        f"{np.mean(dice):.3f} ± {np.std(dice):.3f}",
        f"{np.min(dice):.3f}",
        f"{distance:.2f}",
        f"{seconds:.1f}",
    ]
