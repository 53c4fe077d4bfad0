"""Ways to segment scans after a few of their kind were labelled, all called alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fewshot_forest import Filtered, classify, filtered, grow
from benchmarks.fewshot_runs import Memo
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.transfer import Transfer, fuse, transfer_labels
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its labels on one grid.

    Parameters
    ----------
    image : Volume
        Scan with raw intensities.
    labels : Volume
        0 is background; negative where a voxel is not labelled.
    """

    image: Volume
    labels: Volume


@dataclass(frozen=True)
class Case:
    """What a way is given.

    Parameters
    ----------
    scans : sequence of LabelledScan
        What is learned from.
    encoder : Path
        Pretrained on scans of the kind, without labels.
    seed : int
        Of everything random.
    """

    scans: Sequence[LabelledScan]
    encoder: Path
    seed: int


Segment = Callable[[Volume], np.ndarray]
"""From a scan with raw intensities to labels (Z, Y, X)."""

Way = Callable[[Case, Memo], Segment]
"""Learn from labelled scans."""


def encoder_of(path: Path, memo: Memo) -> SwinEncoder:
    """Load an encoder once."""
    return memo(("encoder", path), lambda: SwinEncoder.from_checkpoint(path).eval())


def transferred(case: Case, memo: Memo) -> Segment:
    """Carry the labels of every labelled scan and fuse them; nothing is trained."""
    encoder = encoder_of(case.encoder, memo)

    def embedded(image: Volume) -> Embedding:
        return memo(
            ("embedding", image.path, case.encoder),
            lambda: finish(embed_volume(image, encoder, EmbedSettings())),
        )

    atlases = [(scan, embedded(scan.image)) for scan in case.scans]

    def segment(image: Volume) -> np.ndarray:
        target = embedded(image)
        return fuse(
            [
                memo(
                    ("transfer", scan.image.path, image.path, case.encoder),
                    lambda scan=scan, atlas=atlas: _carried(scan, atlas, image, target),
                )
                for scan, atlas in atlases
            ]
        ).labels.array

    return segment


def _carried(scan: LabelledScan, atlas: Embedding, image: Volume, target: Embedding) -> Transfer:
    match = match_embeddings(atlas, target)
    return finish(transfer_labels(match, scan.labels, scan.image, image))


def random_forest(case: Case, memo: Memo) -> Segment:
    """Grow a random forest on filter responses, as users of ilastik do."""
    preset = encoder_of(case.encoder, memo).metadata["preprocessing"]["preset"]

    def features(image: Volume) -> Filtered:
        return memo(("filters", image.path, preset), lambda: filtered(image, preset))

    labelled = [(features(scan.image), scan.labels.array) for scan in case.scans]
    forest = grow(labelled, case.seed)
    return lambda image: classify(forest, features(image))


WAYS: dict[str, Way] = {
    "label transfer": transferred,
    "random forest": random_forest,
}
"""By the name of their row."""
