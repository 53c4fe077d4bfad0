"""What features of patches are good for: the tasks of ``benchmarks.evidence``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.matching_subjects import Subject, judged, through_plan
from benchmarks.matching_truth import by_map, described, nearest
from napari_s2dc.engine.aligned_match import match_aligned
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings
from napari_s2dc.engine.match_checks import kind_of
from napari_s2dc.engine.measures import label_tokens, structure_accuracy
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, judge, known_view
from napari_s2dc.engine.transfer import transfer_labels
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.volumes.phantom import Contrast, phantom
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume

Descriptor = Callable[[np.ndarray, int], torch.Tensor]
"""From an image in [0, 1] and the side of a patch to features (C, tz, ty, tx)."""

Matcher = Callable[[KnownView, Volume], Sequence[Match]]
"""Finds the partners of the patches of a scan in a view of it, in one or several ways."""

Labelled = tuple[torch.Tensor, torch.Tensor]
"""Features (C, tz, ty, tx) and labels (tz, ty, tx)."""

STAGE = 2
SETTINGS = EmbedSettings(stage=STAGE)
"""Patches of 8 voxels a side, whatever stage an encoder was trained at."""

PHANTOM_SEEDS = (201, 202, 203, 204)
"""Torsos that no training has seen."""


@dataclass(frozen=True)
class Candidate:
    """Something that gives features to patches.

    Parameters
    ----------
    encoder : SwinEncoder
        Features of its stage; for a descriptor, only its preprocessing and grid are used.
    descriptor : callable, optional
        Takes the place of the encoder's features.
    matching : MatchSettings, optional
        How transport plans are made of them; the defaults when left out.
    """

    encoder: SwinEncoder
    descriptor: Descriptor | None = None
    matching: MatchSettings | None = None

    def embed(self, volume: Volume, settings: EmbedSettings = SETTINGS) -> Embedding:
        """Features of a whole scan."""
        embedding = finish(embed_volume(volume, self.encoder, settings))
        if self.descriptor is None:
            return embedding
        image = normalize(volume.array, embedding.metadata["preset"])
        return replace(embedding, features=self.descriptor(image, embedding.stride))

    def views(
        self, volume: Volume, seeds: range, settings: EmbedSettings = SETTINGS
    ) -> Iterator[KnownView]:
        """Give random views with known truth, features of both included; even seeds in-plane."""
        embedding = finish(embed_volume(volume, self.encoder, settings))
        for seed in seeds:
            known = finish(
                known_view(
                    volume,
                    self.encoder,
                    settings,
                    in_plane=seed % 2 == 0,
                    seed=seed,
                    embedding=embedding,
                )
            )
            yield known if self.descriptor is None else described(known, volume, self.descriptor)


def matching_accuracy(candidate: Candidate, volumes: Sequence[Volume], seeds: range) -> float:
    """Share of patches whose most similar patch in a view is the true one, mean over the views."""
    found = []
    for volume in volumes:
        for known in candidate.views(volume, seeds):
            found.append(judge(known, nearest(known)).accuracy)
    return float(np.mean(found))


def by_features(known: KnownView, _: Volume) -> list[Match]:
    """Match each patch to its most similar one."""
    return [nearest(known)]


def by_plan(candidate: Candidate) -> Matcher:
    """Give the ways of transport with a dustbin and a prior.

    As the scans lie; and for encoders, as ``s2dc match`` does, in one pose, and by the map alone
    that it finds for that.
    """

    def match(known: KnownView, scan: Volume) -> list[Match]:
        once = match_embeddings(known.scan, known.view, candidate.matching)
        if candidate.descriptor is not None:
            return [once]
        again = aligned(candidate, known.scan, known.view, scan, known.volume)
        return [once, again, by_map(again)]

    return match


def aligned(
    candidate: Candidate, a: Embedding, b: Embedding, image_a: Volume, image_b: Volume
) -> Match:
    """Match two scans in one pose, by the features of an encoder."""
    settings = EmbedSettings(**a.metadata["settings"])
    return finish(
        match_aligned((a, b), (image_a, image_b), candidate.encoder, settings, candidate.matching)
    )


def contrast_accuracy(
    candidate: Candidate, seeds: range, match: Matcher = by_features
) -> list[tuple[float, float]]:
    """Measure matching accuracy within a contrast, and from one to the other.

    Phantoms shown as CT and as T2-weighted MR; the same views of both.

    Parameters
    ----------
    candidate : Candidate
        Gives the features.
    seeds : range
        Of the views.
    match : callable
        Finds partners; by default, each patch's most similar one.

    Returns
    -------
    list of (same, cross)
        Mean over both contrasts, and over both directions, for each way of `match`.
    """
    same, cross = [], []
    own = replace(SETTINGS, preset="auto")  # a window for CT would saturate T2
    for number in PHANTOM_SEEDS:
        pair = [phantom(seed=number, contrast=contrast)[0] for contrast in ("ct", "t2")]
        for ct, t2 in zip(*(candidate.views(one, seeds, own) for one in pair), strict=True):
            for one, other, scan in ((ct, t2, pair[0]), (t2, ct, pair[1])):
                view = replace(other.view, foreground=one.view.foreground)
                mixed = replace(one, view=view, image=other.image)
                same.append([judge(one, found).accuracy for found in match(one, scan)])
                cross.append([judge(mixed, found).accuracy for found in match(mixed, scan)])
    return [
        (float(within), float(across))
        for within, across in zip(np.mean(same, 0), np.mean(cross, 0), strict=True)
    ]


def pet_accuracy(candidate: Candidate, seeds: range) -> float:
    """Measure matching accuracy within phantoms shown as PET with FDG, over their views."""
    own = replace(SETTINGS, preset="pet")
    found = []
    for number in PHANTOM_SEEDS:
        image, _ = phantom(seed=number, contrast="pet")
        found += [
            judge(known, nearest(known)).accuracy for known in candidate.views(image, seeds, own)
        ]
    return float(np.mean(found))


def structures_across(candidate: Candidate) -> list[float]:
    """5-NN accuracy of structures of phantoms named from phantoms in the same or another contrast.

    Returns
    -------
    list of float
        CT from CT, T2 from T2, T2 from CT, CT from T2; of the last two phantoms from the others.
    """
    own = replace(SETTINGS, preset="auto")

    def shown(contrast: Contrast) -> list[Labelled]:
        made = [phantom(seed=number, contrast=contrast) for number in PHANTOM_SEEDS]
        return [labelled_tokens(candidate, image, labels, own) for image, labels in made]

    ct, t2 = shown("ct"), shown("t2")
    pairs = ((ct, ct), (t2, t2), (ct, t2), (t2, ct))
    return [structure_accuracy(known[:2], asked[2:]) for known, asked in pairs]


def structures_by_place() -> float:
    """5-NN accuracy of the same structures by nothing but where in its scan a patch lies."""
    waves = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 4

    def placed(number: int) -> Labelled:
        _, labels = phantom(seed=number)
        tokens = label_tokens(labels.array.astype(np.int64), STRIDES[STAGE])
        axes = [(torch.arange(count) + 0.5) / count for count in tokens.shape]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        # The cosine of such features falls with the distance, whatever the direction
        phases = torch.einsum("wd,dzyx->wzyx", waves, place)
        return torch.cat([phases.cos(), phases.sin()]), tokens

    scans = [placed(number) for number in PHANTOM_SEEDS]
    return structure_accuracy(scans[:2], scans[2:])


def labelled_tokens(
    candidate: Candidate, image: Volume, labels: Volume, settings: EmbedSettings = SETTINGS
) -> Labelled:
    """Features of a scan and the label that most voxels of every patch have."""
    embedding = candidate.embed(image, settings)
    return embedding.features.float(), label_tokens(labels.array.astype(np.int64), embedding.stride)


def alternate_slabs(scan: Labelled) -> tuple[Labelled, Labelled]:
    """Part one scan into slabs of two patches along z, in turn known and asked, with gaps of one.

    For a set with one labelled scan.
    """
    features, labels = scan
    place = torch.arange(labels.shape[0]) % 6
    known, asked = place < 2, (place == 3) | (place == 4)
    return (features[:, known], labels[known]), (features[:, asked], labels[asked])


def linear_probe(known: Sequence[Labelled], asked: Sequence[Labelled]) -> float:
    """Accuracy of a logistic regression on the patches of other subjects."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (points, names), (questions, truth) = (
        (
            torch.cat([features[:, labels > 0].T for features, labels in subjects]).numpy(),
            torch.cat([labels[labels > 0] for _, labels in subjects]).numpy(),
        )
        for subjects in (known, asked)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return float(model.fit(points, names).score(questions, truth))


def structure_figures(
    candidate: Candidate, folder_scans: Sequence[tuple[Volume, Volume]], known: int, seed: int
) -> tuple[float, float]:
    """5-NN and linear-probe accuracy of structures at patches.

    Parameters
    ----------
    candidate : Candidate
        Gives the features.
    folder_scans : sequence of (image, labels)
        One scan, which is parted into slabs; or the pool first and the tests last.
    known : int
        How many of the pool are drawn; the rest after the pool of ``2 * known`` are the tests.
    seed : int
        Of the draw.
    """
    tokens = [labelled_tokens(candidate, image, labels) for image, labels in folder_scans]
    if len(tokens) == 1:
        one, other = alternate_slabs(tokens[0])
        voting, asked = [one], [other]
    else:
        pool = 2 * known
        drawn = np.random.default_rng(seed).permutation(pool)[:known]
        voting, asked = [tokens[place] for place in drawn], tokens[pool:]
    return structure_accuracy(voting, asked), linear_probe(voting, asked)


def transfer_dice(
    candidate: Candidate, scans: Sequence[tuple[Volume, Volume]], pairs: int
) -> tuple[float, float]:
    """Mean Dice of labels carried between subjects: through the plan alone, and registered."""
    subjects = [Subject(image, labels, candidate.embed(image)) for image, labels in scans]
    count = len(subjects)
    ordered = [(a, b) for a in range(count) for b in range(count) if a != b]
    chosen = [ordered[k] for k in np.random.default_rng(0).permutation(len(ordered))[:pairs]]
    return _carried(candidate, [(subjects[a], subjects[b]) for a, b in chosen])


def transfer_across(candidate: Candidate) -> tuple[float, float]:
    """Mean Dice of labels carried from phantoms to the one before in the other contrast."""
    own = replace(SETTINGS, preset="auto")

    def shown(contrast: Contrast) -> list[Subject]:
        made = [phantom(seed=number, contrast=contrast) for number in PHANTOM_SEEDS]
        return [Subject(*one, candidate.embed(one[0], own)) for one in made]

    ct, t2 = shown("ct"), shown("t2")
    pairs = [(one[k], other[k - 1]) for one, other in ((ct, t2), (t2, ct)) for k in range(len(ct))]
    return _carried(candidate, pairs)


def _carried(candidate: Candidate, pairs: Sequence[tuple[Subject, Subject]]) -> tuple[float, float]:
    """Mean Dice through the plan alone, and registered, both as ``s2dc transfer`` makes them.

    A pair for which `transfer_labels` finds no map counts as 0. Descriptors are matched as the
    scans lie.
    """
    plan, whole = [], []
    for source, target in pairs:
        match = match_embeddings(source.embedding, target.embedding, candidate.matching)
        if candidate.descriptor is None and kind_of(source.image) != kind_of(target.image):
            match = aligned(
                candidate, source.embedding, target.embedding, source.image, target.image
            )
        plan.append(judged(through_plan(source, target, match), target).mean_dice)
        try:
            found = finish(transfer_labels(match, source.labels, source.image, target.image))
        except S2DCError:  # the pairs agree on no map
            whole.append(0.0)
        else:
            whole.append(judged(found.labels.array, target).mean_dice)
    return float(np.mean(plan)), float(np.mean(whole))
