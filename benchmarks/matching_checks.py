"""What warnings about a match stand on: what is measured where a match is right and where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np

from benchmarks.report import table
from napari_s2dc.engine.aligned_match import match_aligned
from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import match_embeddings
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_ratios, registered_correlation
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.volume import Volume

BRAINS, HIPPOCAMPI, PHANTOMS = 5, 5, 4
CUT_OUTS = (
    ((40, 90), (11, 91), (0, 90)),
    ((40, 90), (10, 90), (22, 112)),
    ((30, 80), (20, 80), (30, 90)),
)
"""Boxes of the torso, first and end voxel along z, y and x; each is cut through on most sides."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it is and as its mirror image."""

    image: Volume
    embedding: Embedding
    mirrored: Embedding

    @classmethod
    def of(cls, image: Volume, encoder: SwinEncoder) -> Scan:
        """Embed a scan."""
        settings = EmbedSettings()
        return cls(
            image,
            finish(embed_volume(image, encoder, settings)),
            finish(embed_mirrored(image, encoder, settings)),
        )

    def swapped(self) -> Scan:
        """Its mirror image, whose mirror image it is."""
        array = np.ascontiguousarray(self.image.array[..., ::-1])
        return Scan(self.image.with_array(array), self.mirrored, self.embedding)


Group = tuple[str, list[tuple[Scan, Scan]]]


def read_scans(data: Path, encoder: SwinEncoder) -> dict[str, list[Scan]]:
    """Read and embed brains, hippocampi, thoraces and a torso, and make phantoms, by these names.

    Parameters
    ----------
    data : Path
        Folder of the data sets.
    encoder : SwinEncoder
        Of intensities.
    """

    def files(folder: str, last: int = 0) -> list[Path]:
        return sorted((data / folder).iterdir())[-last:]

    thoraces = files("thorax_ct/imagesTr") + files("thorax_ct/unlabelled")
    volumes = {
        "mouse brains": map(read_volume, files("mouse_brain/imagesTr", BRAINS)),
        "hippocampi": map(read_volume, files("hippocampus/imagesTr", HIPPOCAMPI)),
        "thoraces": map(read_volume, thoraces),
        "torso": map(read_volume, files("totalseg_ct/imagesTr")),
        "phantoms": (phantom(seed=201 + number)[0] for number in range(PHANTOMS)),
    }
    return {name: [Scan.of(volume, encoder) for volume in group] for name, group in volumes.items()}


def _span(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Least and largest of some values."""
    if not values:
        return "-"
    least, most = show(min(values)), show(max(values))
    return least if least == most else f"{least} to {most}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return f"{value:.2f}"


def _region_row(name: str, pairs: list[tuple[Scan, Scan]]) -> list[str]:
    confident, agree, correlations, warned = [], [], [], 0
    for a, b in pairs:
        match = match_embeddings(a.embedding, b.embedding)
        found = assess(match)
        patches = min(int(one.embedding.foreground.sum()) for one in (a, b))
        inliers = 0 if found.alignment is None else int(found.alignment.inliers.sum())
        confident.append(found.confident / patches)
        agree.append(inliers / max(found.confident, 1))
        warned += not found.agreed
        if found.alignment is not None:
            correlations.append(finish(registered_correlation(match, (a.image, b.image))))
    return [
        name,
        f"{warned} of {len(pairs)}",
        _span(confident, _percent),
        _span(agree, _percent),
        _span(correlations, _number),
    ]


def regions_table(scans: dict[str, list[Scan]]) -> str:
    """Pairs of scans that show one region, and that do not.

    Parameters
    ----------
    scans : dict
        From :func:`read_scans`.
    """
    brains, hippocampi = scans["mouse brains"], scans["hippocampi"]
    body = [*scans["torso"], *scans["thoraces"][:1]]
    groups: list[Group] = [
        ("mouse brains", list(permutations(brains, 2))),
        ("hippocampi", list(pairwise(hippocampi))),
        ("thoraces", list(permutations(scans["thoraces"], 2))),
        ("phantoms", list(permutations(scans["phantoms"], 2))),
        (
            "a torso with thoraces, which it hardly has",
            list(product(scans["torso"], scans["thoraces"])),
        ),
        ("torso and thorax with phantoms", list(product(body, scans["phantoms"][:2]))),
        (
            "torso, thorax and phantom with a mouse brain",
            [(one, brains[0]) for one in (*body, scans["phantoms"][0])],
        ),
        ("mouse brains with hippocampi", list(zip(brains, hippocampi, strict=False))[:3]),
    ]
    header = ["scans", "told to differ", "confident patches", "of these on one map", "correlation"]
    return table(header, [_region_row(name, pairs) for name, pairs in groups])


def _mirror_row(name: str, pairs: list[tuple[Scan, Scan]]) -> list[str]:
    found = []
    for a, b in pairs:
        match = match_embeddings(a.embedding, b.embedding)
        found.append(finish(mirror_ratios(match, a.mirrored, (a.image, b.image))))
    looked = [one.correlation for one in found if one.correlation is not None]
    return [
        name,
        f"{sum(one.mirrored for one in found)} of {len(pairs)}",
        _span([one.confidence for one in found], _number),
        f"{len(looked)}",
        _span(looked, _number),
    ]


def mirror_table(scans: dict[str, list[Scan]]) -> str:
    """Pairs whose left and right are swapped, and pairs as they should be.

    Parameters
    ----------
    scans : dict
        From :func:`read_scans`.
    """
    several = {name: group for name, group in scans.items() if len(group) > 1}
    right = {name: list(permutations(group, 2)) for name, group in several.items()}
    groups: list[Group] = [(f"{name}, as they are", pairs) for name, pairs in right.items()]
    groups += [
        (f"{name}, beside their own mirror images", [(one.swapped(), one) for one in group])
        for name, group in scans.items()
    ]
    groups += [
        (f"{name}, beside those of others", [(a.swapped(), b) for a, b in pairs])
        for name, pairs in right.items()
    ]
    header = ["scans", "told to be mirrored", "surer, times", "looked again", "correlation, times"]
    return table(header, [_mirror_row(name, pairs) for name, pairs in groups])


def cut_outs_table(torso: Scan, encoder: SwinEncoder) -> str:
    """Boxes cut out of a scan, matched with the whole of it.

    Parameters
    ----------
    torso : Scan
        The whole.
    encoder : SwinEncoder
        Embeds the boxes.
    """
    rows = []
    for box in CUT_OUTS:
        part = _cut_out(torso.image, box)
        embedding = finish(embed_volume(part, encoder, EmbedSettings()))
        images = (part, torso.image)
        match = finish(
            match_aligned((embedding, torso.embedding), images, encoder, EmbedSettings())
        )
        found = assess(match)
        off = "no map"
        if found.alignment is not None:
            corners = np.array(list(product(*((0, side - 1) for side in part.shape), [1])))
            places = corners @ part.affine.T
            wrong = places @ found.alignment.matrix.T - places
            off = f"{np.linalg.norm(wrong[:, :3], axis=1).max():.1f}"
        sides = " × ".join(map(str, part.shape))
        rows.append([sides, off, "no" if found.agreed else "yes"])
    return table(["voxels", "farthest corner off, mm", "told to differ"], rows)


def _cut_out(volume: Volume, box: Sequence[tuple[int, int]]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [first for first, _ in box]
    array = np.ascontiguousarray(volume.array[tuple(slice(*side) for side in box)])
    return Volume(array, affine, name="box", modality=volume.modality)


def checks(data: Path, encoder: SwinEncoder) -> str:
    """Measure all of it and describe in markdown.

    Parameters
    ----------
    data : Path
        Folder of the data sets.
    encoder : SwinEncoder
        Of intensities, such as the bundled one.
    """
    scans = read_scans(data, encoder)
    return "\n\n".join(
        [
            "Least and largest value over the pairs of each row, as the scans lie. The limits that "
            "were chosen by such figures stand in `docs/explanation/matching.md`. First: share of "
            "the patches (of the scan with fewer) that have a confident partner, share of these "
            "pairs that agree on one affine map, and squared local correlation of the intensities "
            "once both are registered, where there is a map.",
            regions_table(scans),
            "Left and right: how much more surely scan A is matched when mirrored, and, where that "
            "is much, how many times as well its intensities agree then, registered (inf: as it "
            "is, it finds no map).",
            mirror_table(scans),
            "Boxes cut out of the torso, matched with the whole of it in its pose.",
            cut_outs_table(scans["torso"][0], encoder),
        ]
    )
