"""Ways to segment scans after a few of their kind were labelled, all called alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fewshot_forest import Filtered, classify, filtered, grow
from benchmarks.fewshot_runs import Memo
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.fewshot import prepare_fine_tuning
from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.engine.labelled_scans import LabelledScan as PaintedScan
from napari_s2dc.engine.labelled_scans import classes_in
from napari_s2dc.engine.match import match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.quick import train_quick
from napari_s2dc.engine.quick_scan import QuickScan, prepare_scan
from napari_s2dc.engine.quick_spread import learn_from_spread_strokes
from napari_s2dc.engine.segment import QuickSegmenter, segment_volume
from napari_s2dc.engine.transfer import Transfer, fuse, transfer_labels
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

SCRATCH, PRETRAINED = "Swin UNETR from scratch", "Swin UNETR pretrained"
CARRIED, CARRIED_TO_SCRATCH = "pretrained, labels carried", "from scratch, labels carried"
NETWORKS = (SCRATCH, PRETRAINED, CARRIED_TO_SCRATCH, CARRIED)
"""Ways that learn at ``network_spacing_mm``, with an encoder that was pretrained at it. The last
two learn also from scans without labels, to which the pretrained encoder carries them."""


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
    network_spacing_mm : tuple of float, optional
        Spacing (z, y, x) at which Swin UNETR learns.
    unlabelled : sequence of Path
        Scans that are neither labelled nor tests.
    """

    scans: Sequence[LabelledScan]
    encoder: Path
    seed: int
    network_spacing_mm: tuple[float, float, float] | None = None
    unlabelled: Sequence[Path] = ()


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


def painted(case: Case, **settings: Any) -> tuple[list[PaintedScan], FewshotSettings]:
    """Give labels as our engine takes them: 0 is unlabelled where something else may be meant."""
    labels = [scan.labels.array for scan in case.scans]
    if min(int(one.min()) for one in labels) >= 0:
        zero, background = "background", None
    else:
        zero, background = "unlabelled", 1 + max(int(one.max()) for one in labels)
    scans = [
        PaintedScan(scan.image, scan.labels.with_array(_shifted(scan.labels.array, background)))
        for scan in case.scans
    ]
    return scans, FewshotSettings(
        zero=zero, background=background, device="cpu", seed=case.seed, **settings
    )


def _shifted(labels: np.ndarray, background: int | None) -> np.ndarray:
    if background is None:
        return labels
    return np.where(labels == 0, background, labels.clip(min=0))


def quick(case: Case, memo: Memo) -> Segment:
    """Train the light head of Quick on features of the frozen encoder."""
    encoder = encoder_of(case.encoder, memo)
    scans, settings = painted(case, mode="quick")

    def prepared(image: Volume) -> QuickScan:
        return memo(
            ("quick", image.path, case.encoder),
            lambda: finish(prepare_scan(image, encoder, settings.quick, device="cpu")),
        )

    labelled = [(prepared(scan.image), scan.labels.array) for scan in scans]
    model = finish(train_quick(labelled, classes_in(scans, settings), encoder, settings))
    model = finish(learn_from_spread_strokes(labelled, model, settings))
    return lambda image: finish(QuickSegmenter(prepared(image), model).whole()).labels


def fine_tuned(case: Case, memo: Memo, *, pretrained: bool, carried: bool) -> Segment:
    """Train a Swin UNETR, from the encoder's weights or from random ones, for as many steps.

    With ``carried``, labels are carried to the unlabelled scans by the pretrained encoder, even
    where the network begins with random weights.
    """
    encoder = encoder_of(case.encoder, memo)
    scans, settings = painted(
        case,
        mode="finetune",
        preset=encoder.metadata["preprocessing"]["preset"],
        spacing_mm=case.network_spacing_mm,
    )
    network = encoder
    if not pretrained:
        torch.manual_seed(case.seed)
        network = SwinEncoder(encoder.config)
    run, _ = finish(
        prepare_fine_tuning(
            scans,
            network,
            classes_in(scans, settings),
            settings,
            unlabelled=case.unlabelled if carried else (),
            matching=encoder,
        )
    )
    finish(run.train())
    model = run.model()
    return lambda image: finish(segment_volume(image, model, device="cpu")).labels


WAYS: dict[str, Way] = {
    "label transfer": transferred,
    "random forest": random_forest,
    "Quick": quick,
    SCRATCH: partial(fine_tuned, pretrained=False, carried=False),
    PRETRAINED: partial(fine_tuned, pretrained=True, carried=False),
    CARRIED_TO_SCRATCH: partial(fine_tuned, pretrained=False, carried=True),
    CARRIED: partial(fine_tuned, pretrained=True, carried=True),
}
"""By the name of their row."""
