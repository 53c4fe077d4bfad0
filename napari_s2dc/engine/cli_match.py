"""``s2dc match``: which patches of two scans correspond, as files for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.engine.cli_embedded import EmbeddedScans, is_embedding_file, require_same_encoder
from napari_s2dc.engine.cli_outcome import over_scans
from napari_s2dc.engine.cli_scans import (
    ScanFile,
    add_shared_arguments,
    refuse_to_replace,
    scans_in,
    settings_of,
    targets_of,
)
from napari_s2dc.engine.console import tell
from napari_s2dc.engine.random_order import require_seed
from napari_s2dc.errors import ConfigurationError, S2DCError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.match import MatchSettings
    from napari_s2dc.volumes.volume import Volume

__all__ = [
    "MATCH_SUMMARY",
    "add_matching_arguments",
    "kinds_of",
    "match_parser",
    "matching_of",
    "run_match",
]

MATCH_SUMMARY = "Find which patches of two scans correspond, by optimal transport."

_ANYWHERE = "anywhere"


def match_parser() -> ArgumentParser:
    """Build the parser of ``s2dc match``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=MATCH_SUMMARY)
    parser.add_argument(
        "moving", type=str, help="Scan A, DICOM series folder, or file of s2dc embed."
    )
    parser.add_argument(
        "reference",
        type=str,
        nargs="*",
        default=[],
        help="Scan B, several, or folders with scans (label maps are left out); none for "
        "--self-check.",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Table of pairs (.csv), most confident first; a folder for several B.",
    )
    parser.add_argument(
        "--plan",
        type=str | None,
        default=None,
        help="File (.safetensors), or folder for several B, for the whole transport plan.",
    )
    parser.add_argument(
        "--affine",
        type=str | None,
        default=None,
        help="File (.json), or folder for several B, for the map from mm of A to mm of B.",
    )
    parser.add_argument(
        "--rigid", action="store_true", help="A map that turns and shifts only, not any affine one."
    )
    parser.add_argument(
        "--self-check",
        type=int,
        default=0,
        metavar="VIEWS",
        help="Match A with so many random views of itself, whose truth is known, instead of a B.",
    )
    parser.add_argument(
        "--in-plane",
        action="store_true",
        help="Views of --self-check are turned and shifted in axial planes only, not in 3D.",
    )
    parser.add_argument(
        "--seed", type=int | None, default=None, help="Seed of the views of --self-check."
    )
    parser.add_argument(
        "--no-align",
        action="store_true",
        help="Match once, as the scans lie. Without it, A is turned into the pose of B where the "
        "pairs agree on one, embedded again and matched again. Files of features cannot be turned.",
    )
    add_matching_arguments(parser)
    add_shared_arguments(parser)
    return parser


def add_matching_arguments(parser: ArgumentParser) -> None:
    """Add the options of the transport; each left out keeps its default."""
    parser.add_argument(
        "--full-resolution",
        action="store_true",
        help="Embed every voxel. Without it, a scan of more than 256 x 256 x 256 voxels is brought "
        "to a coarser grid first, where an encoder sees farther: a match is surer and quicker, its "
        "pairs less exact. Other scans of four million voxels and more come to the grid whose "
        "voxels are most like those of the first, or of a file of features.",
    )
    parser.add_argument(
        "--temperature",
        type=float | None,
        default=None,
        help="Divides similarities; lower is more decided.",
    )
    parser.add_argument(
        "--unmatched-similarity",
        type=float | None,
        default=None,
        help="Similarity below which a patch would rather stay without a partner.",
    )
    parser.add_argument(
        "--neighbours",
        type=float | None,
        default=None,
        help="How much the similarity of the patches beside two patches counts, from 0 to 1; "
        "0: only their own.",
    )
    parser.add_argument(
        "--prior",
        type=str | None,
        default=None,
        help="How far from its own place, after centring, a partner is expected: a share of the "
        f"scan's radius, or '{_ANYWHERE}'.",
    )


def matching_of(
    temperature: float | None,
    unmatched_similarity: float | None,
    neighbours: float | None,
    prior: str | None,
) -> MatchSettings:
    """Make settings of the options; ConfigurationError when one is out of range."""
    from napari_s2dc.engine.match import MatchSettings

    given: dict[str, Any] = {}
    if temperature is not None:
        given["temperature"] = temperature
    if unmatched_similarity is not None:
        given["unmatched_similarity"] = unmatched_similarity
    if neighbours is not None:
        given["neighbours"] = neighbours
    if prior is not None:
        try:
            given["prior"] = None if prior == _ANYWHERE else float(prior)
        except ValueError:
            raise ConfigurationError(
                f"--prior must be a number or '{_ANYWHERE}', not '{prior}'."
            ) from None
    return MatchSettings(**given)


def run_match(
    moving: str,
    reference: list[str],
    out: str | None,
    plan: str | None,
    affine: str | None,
    rigid: bool,
    self_check: int,
    in_plane: bool,
    seed: int | None,
    no_align: bool,
    full_resolution: bool,
    temperature: float | None,
    unmatched_similarity: float | None,
    neighbours: float | None,
    prior: str | None,
    encoder: str | None,
    stage: int | None,
    preset: str,
    device: str,
    json: bool,
) -> int:
    """Match A with every B and return the exit code: 0, or 2 when none could be used."""
    settings = settings_of(stage, preset, device)
    matching = matching_of(temperature, unmatched_similarity, neighbours, prior)
    embedded = EmbeddedScans(encoder, settings, full=full_resolution)
    files = [Path(name) for name in (moving, *reference) if is_embedding_file(Path(name))]
    if files:
        embedded.like(files[0])
    if self_check < 0:
        raise ConfigurationError(f"--self-check must be at least 1, not {self_check}.")
    if seed is not None:
        require_seed(seed)
    if self_check == 0 and not reference:
        raise ConfigurationError(
            "There is no scan B to match with.", "Name one, or use --self-check 1."
        )
    if self_check:
        if reference or out or plan or affine:
            raise ConfigurationError(
                "--self-check matches A with itself.", "Leave B, --out, --plan and --affine out."
            )
        return _check_itself(
            Path(moving), embedded, matching, not no_align, self_check, in_plane, seed or 0, json
        )
    if in_plane or seed is not None:
        raise ConfigurationError(
            "--in-plane and --seed are for views of --self-check.", "Leave them out."
        )
    if out is None:
        raise ConfigurationError("--out is missing.", "Name a .csv file for the pairs.")
    outputs = (out, plan, affine)
    return _match_all(
        Path(moving), reference, outputs, embedded, matching, not no_align, rigid, json
    )


def _match_all(
    moving: Path,
    reference: list[str],
    outputs: tuple[str, str | None, str | None],
    embedded: EmbeddedScans,
    matching: MatchSettings,
    align: bool,
    rigid: bool,
    json: bool,
) -> int:
    from napari_s2dc.engine.aligned_match import match_aligned
    from napari_s2dc.engine.match import match_embeddings
    from napari_s2dc.engine.match_checks import assess
    from napari_s2dc.engine.match_files import affine_facts, save_affine, save_pairs, save_plan
    from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_warning
    from napari_s2dc.engine.progress import finish_with_bar

    out, plan, affine = outputs
    found = scans_in(reference)
    targets = targets_of(found, out, (".csv",), ".pairs.csv")
    plans, maps = (
        None
        if name is None
        else dict(
            zip(
                [scan.path for scan in found],
                targets_of(found, name, (suffix,), ending, option),
                strict=True,
            )
        )
        for name, suffix, ending, option in (
            (plan, ".safetensors", ".plan.safetensors", "--plan"),
            (affine, ".json", ".affine.json", "--affine"),
        )
    )
    for written in (targets, *(list(others.values()) for others in (plans, maps) if others)):
        refuse_to_replace(written, [moving])
    first = embedded.of(moving)
    a, grid_a, own_a = first.embedding, first.grid, first.own_affine
    del first  # the voxels of a large scan
    # Only a scan can be mirrored, a file of its features cannot.
    mirrored = None
    if not is_embedding_file(moving):
        mirrored = finish_with_bar(embed_mirrored(grid_a, embedded.network, embedded.settings))

    def work(scan: ScanFile, target: Path) -> dict[str, Any]:
        started = time.perf_counter()
        second = embedded.of(scan.path)
        b, grid_b = second.embedding, second.grid
        require_same_encoder(a, b, moving, scan.path)
        # Of files of features there are none.
        images = (
            None if is_embedding_file(moving) or is_embedding_file(scan.path) else (grid_a, grid_b)
        )
        if align and images is not None:
            steps = match_aligned((a, b), images, embedded.network, embedded.settings, matching)
            match = finish_with_bar(steps)
        else:
            match = match_embeddings(a, b, matching)
        kinds = kinds_of((moving, grid_a), (scan.path, grid_b))
        result = assess(match, kinds=kinds, kind="rigid" if rigid else "affine")
        warnings = list(result.warnings)
        if mirrored is not None:
            swapped = finish_with_bar(mirror_warning(match, mirrored, images, matching))
            warnings += [swapped] if swapped else []
        for sentence in warnings:
            tell(f"{scan.path}: {sentence}")
        if plans is not None:
            save_plan(match, plans[scan.path])
        save_pairs(result.pairs.in_voxels_of(own_a, second.own_affine), target)
        if maps is not None:
            if result.alignment is None:
                raise S2DCError(
                    f"The confident pairs agree on no map, so --affine wrote none; the pairs are "
                    f"in {target}."
                )
            names = {"a": str(moving), "b": str(scan.path), "kind": "rigid" if rigid else "affine"}
            save_affine(result.alignment, maps[scan.path], **names)
        seconds = round(time.perf_counter() - started, 2)
        if not json:
            looks = ", in one pose" if match.matrix is not None else ""
            if own_a is not None or second.own_affine is not None:
                sizes = [" x ".join(map(str, one.shape)) for one in (grid_a, grid_b)]
                looks += f", on {sizes[0]} and {sizes[1]} voxels"
            print(f"{target}: {_summary(a, b, result)}{looks}, {seconds:.1f} s")
        return {
            "embedded_a_zyx": list(grid_a.shape),
            "embedded_b_zyx": list(grid_b.shape),
            "pairs": len(result.pairs),
            "confident": result.confident,
            "aligned": match.matrix is not None,
            "affine": None if result.alignment is None else affine_facts(result.alignment),
            "plan": None if plans is None else str(plans[scan.path]),
            "left_right_checked": mirrored is not None,
            "warnings": warnings,
            "seconds": seconds,
        }

    outcome = over_scans(found, targets, work)
    if json:
        outcome.print_json(moving=str(moving))
    return outcome.exit_code


def kinds_of(one: tuple[Path, Volume], other: tuple[Path, Volume]) -> tuple[str, str] | None:
    """Kinds of two scans; None where one is only there as a file of features."""
    from napari_s2dc.engine.match_checks import kind_of

    if is_embedding_file(one[0]) or is_embedding_file(other[0]):
        return None
    return kind_of(one[1]), kind_of(other[1])


def _summary(a: Embedding, b: Embedding, result: Any) -> str:
    words = f"{a.name} with {b.name}, {len(result.pairs)} pairs, {result.confident} confident"
    alignment = result.alignment
    if alignment is None:
        return f"{words}, no common map"
    return (
        f"{words}, {int(alignment.inliers.sum())} agree on a map within "
        f"{alignment.residual_mm:.2f} mm"
    )


def _check_itself(
    path: Path,
    embedded: EmbeddedScans,
    matching: MatchSettings,
    align: bool,
    views: int,
    in_plane: bool,
    seed: int,
    as_json: bool,
) -> int:
    import json

    from napari_s2dc.engine.evaluate import mean_of
    from napari_s2dc.engine.progress import finish_with_bar
    from napari_s2dc.engine.self_check import self_check

    if is_embedding_file(path):
        raise ConfigurationError(
            f"{path} holds features only; --self-check needs the scan.", "Name the scan itself."
        )
    own = embedded.of(path)
    volume, embedding = own.grid, own.embedding
    rows = []
    for number in range(views):
        steps = self_check(
            volume,
            embedded.network,
            embedded.settings,
            matching=matching,
            align=align,
            in_plane=in_plane,
            seed=seed + number,
            embedding=embedding,
        )
        result = finish_with_bar(steps)
        rows.append({"seed": seed + number, **result.as_dict()})
        if not as_json:
            print(f"{path}, view {number + 1}: {result.sentence}")
    accuracy = mean_of([float(row["accuracy"] or 0) for row in rows])
    median_mm = mean_of([float(row["median_mm"] or 0) for row in rows])
    if as_json:
        facts = {
            "scan": str(path),
            "embedded_zyx": list(volume.shape),
            "accuracy": accuracy,
            "median_mm": median_mm,
            "views": rows,
        }
        print(json.dumps(facts, indent=2))
    elif views > 1:
        print(f"Mean of {views} views: {100 * accuracy:.1f} % right, {median_mm:.2f} mm median.")
    return 0
