"""``s2dc probe`` and ``s2dc consistency``: maps on the grid of the scans they were made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.engine.cli_embedded import EmbeddedScans, require_same_encoder
from napari_s2dc.engine.cli_outcome import over_scans
from napari_s2dc.engine.cli_scans import (
    MAPS,
    ScanFile,
    add_shared_arguments,
    encoder_of,
    read_scan,
    scans_in,
    settings_of,
    targets_of,
)
from napari_s2dc.engine.console import tell
from napari_s2dc.engine.random_order import require_seed
from napari_s2dc.errors import ConfigurationError, S2DCError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.embedding import Embedding, Token

__all__ = [
    "CONSISTENCY_SUMMARY",
    "PROBE_SUMMARY",
    "consistency_parser",
    "points_as_values",
    "probe_parser",
    "run_consistency",
    "run_probe",
]

PROBE_SUMMARY = "Write a heat-map of everything that looks like a given place in a scan."
CONSISTENCY_SUMMARY = "Write a map of how alike each place looks when the scan is turned."

_NUMBER = r"\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*"
_POINT = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER}(mm|vox)?\s*")
_MAP_OUT = (
    "Map to write (.nii, .nii.gz, .nrrd) for one scan, on its own grid; a folder for several."
)


def probe_parser() -> ArgumentParser:
    """Build the parser of ``s2dc probe``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=PROBE_SUMMARY)
    parser.add_argument(
        "scans",
        type=str,
        nargs="+",
        help="Scan or file of s2dc embed in which the point lies, and more to compare with it.",
    )
    parser.add_argument(
        "--point",
        type=str,
        nargs="+",
        required=True,
        help="Place z,y,x in the first scan: 40,60,52vox (the default unit) or -12.5,80,3mm, "
        "mm to superior, posterior and left; several are averaged.",
    )
    parser.add_argument(
        "--negative",
        type=str,
        nargs="*",
        default=[],
        help="Places z,y,x that look like something else.",
    )
    parser.add_argument("--out", type=str, required=True, help=_MAP_OUT)
    add_shared_arguments(parser)
    return parser


def consistency_parser() -> ArgumentParser:
    """Build the parser of ``s2dc consistency``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=CONSISTENCY_SUMMARY)
    parser.add_argument(
        "scans",
        type=str,
        nargs="+",
        help="Scans, DICOM series folders, or folders with scans (label maps are left out).",
    )
    parser.add_argument(
        "--views", type=int, default=8, help="How many random views are compared with the scan."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random views.")
    parser.add_argument("--out", type=str, required=True, help=_MAP_OUT)
    add_shared_arguments(parser)
    return parser


def points_as_values(arguments: Sequence[str]) -> list[str]:
    """Keep points that begin with a minus from being taken for options."""
    return [
        f" {part}" if part.startswith("-") and _POINT.fullmatch(part) else part
        for part in arguments
    ]


def run_probe(
    scans: list[str],
    point: list[str],
    negative: list[str],
    out: str,
    encoder: str | None,
    stage: int | None,
    preset: str,
    device: str,
    json: bool,
) -> int:
    """Write heat-maps and return the exit code."""
    from napari_s2dc.engine.embedding import to_voxels
    from napari_s2dc.engine.probe import query_of, read_patch, similarity_to
    from napari_s2dc.volumes.writing import write_volume

    settings = settings_of(stage, preset, device)
    found = scans_in(scans)
    targets = targets_of(found, out, MAPS, ".similarity.nii.gz")
    embedded = EmbeddedScans(encoder, settings)
    # What cannot be done in the first scan cannot be done at all.
    first_scan = embedded.of(found[0].path)
    first = first_scan.embedding
    positives = [_token(first, text) for text in point]
    negatives = [_token(first, text) for text in negative]
    query = query_of(first, positives, negatives)
    alone = int(first.foreground.sum()) < 2
    if alone:
        tell(
            f"{found[0].path}: there is only one patch of tissue, so it has none to be compared "
            "with. Use an earlier --stage, whose patches are smaller."
        )
    reading = None if alone else read_patch(first, positives, negatives)

    def work(scan: ScanFile, target: Path) -> dict[str, Any]:
        own = first_scan if scan is found[0] else embedded.of(scan.path)
        embedding = own.embedding
        require_same_encoder(first, embedding, found[0].path, scan.path)
        similarity = similarity_to(embedding, query)
        heat = to_voxels(similarity, embedding.shape, embedding.stride)
        write_volume(target, heat, own.scan, result="similarity map")
        if not json:
            print(f"{target}: similarity to {', '.join(text.strip() for text in point)}")
        return {"highest": float(similarity[embedding.foreground].max())}

    outcome = over_scans(found, targets, work)
    facts: dict[str, Any] = {
        "points": [_place(first, token) for token in positives],
        "sharpe_ratio": None if reading is None else reading.sharpe_ratio,
        "percentile": None if reading is None else reading.percentile,
        "nearest": [
            {**_place(first, token), "similarity": value}
            for token, value in (reading.nearest if reading else ())
        ],
    }
    if json:
        outcome.print_json(**facts)
    elif reading is not None:
        print(
            f"Sharpe ratio {reading.sharpe_ratio:.2f}, above that of {reading.percentile:.0f} % "
            "of the tissue.\nNearest patches (z, y, x):"
        )
        for near in facts["nearest"]:
            voxel, mm = (", ".join(f"{n:.1f}" for n in near[unit]) for unit in ("vox", "mm"))
            print(f"  {near['similarity']:.3f}  voxel {voxel}  mm {mm}")
    return outcome.exit_code


def run_consistency(
    scans: list[str],
    views: int,
    seed: int,
    out: str,
    encoder: str | None,
    stage: int | None,
    preset: str,
    device: str,
    json: bool,
) -> int:
    """Write consistency maps and return the exit code."""
    from napari_s2dc.engine.consistency import consistency_map
    from napari_s2dc.engine.embed import plan
    from napari_s2dc.engine.embedding import to_voxels
    from napari_s2dc.engine.progress import finish_with_bar
    from napari_s2dc.volumes.writing import write_volume

    if views < 1:
        raise ConfigurationError(f"--views must be at least 1, not {views}.")
    require_seed(seed)
    settings = settings_of(stage, preset, device)
    found = scans_in(scans)
    targets = targets_of(found, out, MAPS, ".consistency.nii.gz")
    network = encoder_of(encoder)

    def work(scan: ScanFile, target: Path) -> dict[str, Any]:
        volume = read_scan(scan.path, network)
        stride = plan(volume.shape, network, settings).stride
        steps = consistency_map(volume, network, settings, views=views, seed=seed)
        result = finish_with_bar(steps)
        known = result.count > 0
        if not bool(known.any()):
            raise S2DCError(
                f"{scan.path} is too small: no patch has neighbours in the views.",
                "Use an earlier --stage, whose tokens are smaller.",
            )
        agreement = to_voxels(result.mean, volume.shape, stride)
        write_volume(target, agreement, volume, result="consistency map")
        facts = {
            "views": views,
            "mean": float(result.mean[known].mean()),
            "spread": float(result.spread[known].mean()),
            "tokens_known": int(known.sum()),
        }
        if not json:
            print(
                f"{target}: consistency {facts['mean']:.3f} on average, spread "
                f"{facts['spread']:.3f} over {views} views"
            )
        return facts

    outcome = over_scans(found, targets, work)
    if json:
        outcome.print_json()
    return outcome.exit_code


def _token(embedding: Embedding, text: str) -> Token:
    """Token at a point as it is written on the command line."""
    match = _POINT.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"'{text.strip()}' is no point.", "Write z,y,x and the unit, such as 40,60,52vox."
        )
    z, y, x = (float(match[number]) for number in (1, 2, 3))
    in_mm = match[4] == "mm"
    token = embedding.token_of_mm((z, y, x)) if in_mm else embedding.token_of_voxel((z, y, x))
    if token is None:
        last = ", ".join(str(size - 1) for size in embedding.shape)
        raise ConfigurationError(
            f"The point {text.strip()} lies outside {embedding.name}.",
            f"Its voxels reach to {last}; mm are to superior, posterior and left.",
        )
    if not bool(embedding.features[:, token[0], token[1], token[2]].any()):
        raise ConfigurationError(
            f"The point {text.strip()} lies in the air of {embedding.name}, which is not embedded.",
            "Name a point in tissue.",
        )
    return token


def _place(embedding: Embedding, token: Token) -> dict[str, list[float]]:
    return {
        "token": list(token),
        "vox": list(embedding.voxel_of_token(token)),
        "mm": [round(value, 3) for value in embedding.mm_of_token(token)],
    }
