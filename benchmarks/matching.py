"""Label transfer between subjects: ours beside no alignment, centres of mass and SimpleITK."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import machine, table, write_section
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.transfer import TransferSettings, transfer_labels
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.volume import Volume


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice over the labels of the truth."""
    names = np.unique(truth)
    top = int(max(found.max(), truth.max())) + 1
    joint = np.bincount(found[found == truth].ravel(), minlength=top)
    sizes = np.bincount(found.ravel(), minlength=top) + np.bincount(truth.ravel(), minlength=top)
    return float(np.mean([2 * joint[name] / sizes[name] for name in names if name > 0]))


def centred(labels: np.ndarray, image_a: np.ndarray, image_b: np.ndarray) -> np.ndarray:
    """Labels moved so that the centres of mass of both images agree."""
    from scipy import ndimage

    shift = np.subtract(ndimage.center_of_mass(image_b), ndimage.center_of_mass(image_a))
    moved: np.ndarray = ndimage.shift(labels, shift, order=0)
    return moved


def registered(labels: Volume, image_a: Volume, image_b: Volume) -> np.ndarray:
    """Labels through SimpleITK's affine registration (Mattes mutual information, three levels)."""
    import SimpleITK as sitk  # not a dependency: pip install SimpleITK

    def picture(volume: Volume, kind: int) -> sitk.Image:
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(tuple(float(side) for side in reversed(volume.spacing_mm)))
        return sitk.Cast(image, kind)

    fixed, moving = picture(image_b, sitk.sitkFloat32), picture(image_a, sitk.sitkFloat32)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 0)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(fixed, moving)
    carried = sitk.Resample(
        picture(labels, sitk.sitkInt32), fixed, found, sitk.sitkNearestNeighbor, 0
    )
    result: np.ndarray = sitk.GetArrayFromImage(carried)
    return result


def compare(encoder: SwinEncoder, cases: Sequence[tuple[Path, Path]], pairs: int) -> str:
    """Carry labels between `pairs` ordered pairs of subjects and tabulate the mean Dice.

    Parameters
    ----------
    encoder : SwinEncoder
        Embeds all.
    cases : sequence of (image, labels)
        Scans; the last three are the targets.
    pairs : int
        Ordered pairs (atlas, target).
    """
    images = [read_volume(image) for image, _ in cases]
    labels = [read_volume(label, labels=True) for _, label in cases]
    begun = time.perf_counter()
    embeddings = [finish(embed_volume(image, encoder, EmbedSettings())) for image in images]
    embedding_seconds = (time.perf_counter() - begun) / len(images)
    targets = range(len(cases) - 3, len(cases))
    ordered = [
        (atlas, target)
        for atlas, target in itertools.product(range(len(cases)), targets)
        if atlas != target
    ]
    chosen = [ordered[k] for k in np.random.default_rng(0).permutation(len(ordered))[:pairs]]

    def ours(atlas: int, target: int, *, smooth: bool) -> np.ndarray:
        match = match_embeddings(embeddings[atlas], embeddings[target], MatchSettings())
        settings = TransferSettings(smooth=smooth)
        return transfer_labels(match, labels[atlas], images[target], settings).labels.array

    ways: dict[str, Callable[[int, int], np.ndarray]] = {
        "no alignment": lambda a, b: labels[a].array,
        "centre of mass": lambda a, b: centred(labels[a].array, images[a].array, images[b].array),
        "ours, affine": lambda a, b: ours(a, b, smooth=False),
        "ours": lambda a, b: ours(a, b, smooth=True),
        "SimpleITK affine": lambda a, b: registered(labels[a], images[a], images[b]),
    }
    rows = []
    for name, way in ways.items():
        begun = time.perf_counter()
        dice = [mean_dice(way(a, b), labels[b].array) for a, b in chosen]
        seconds = (time.perf_counter() - begun) / len(chosen)
        if name.startswith("ours"):
            seconds += 2 * embedding_seconds
        rows.append([name, f"{np.mean(dice):.3f}", f"{np.min(dice):.3f}", f"{seconds:.1f}"])
    return table(["way", "mean Dice", "worst pair", "seconds a pair, embedding included"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="encoder trained on the data set's first scans")
    parser.add_argument("data", type=Path, help="decathlon folder with imagesTr and labelsTr")
    parser.add_argument("--pairs", type=int, default=20, help="ordered pairs (atlas, target)")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    images = sorted((options.data / "imagesTr").iterdir())
    cases = [(image, options.data / "labelsTr" / image.name) for image in images]
    text = "\n\n".join(
        [
            f"## Labels carried between subjects of {options.data.name}",
            f"{options.pairs} ordered pairs; targets are the last three scans. "
            f"{machine(torch.device('cpu'))}",
            compare(SwinEncoder.from_checkpoint(options.encoder), cases, options.pairs),
            f"    python -m benchmarks.matching {options.encoder.name} {options.data.name}",
        ]
    )
    print(text)
    if options.write:
        write_section(f"matching {options.data.name}", text)


if __name__ == "__main__":
    main()
