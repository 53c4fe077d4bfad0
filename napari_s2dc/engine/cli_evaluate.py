"""``s2dc evaluate``: label maps against references, file by file or folder by folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.engine.cli_labels import LABEL_ENDINGS, label_maps_in
from napari_s2dc.engine.cli_outcome import over_scans
from napari_s2dc.engine.cli_scans import ScanFile, add_json_argument, bare_name
from napari_s2dc.engine.console import tell
from napari_s2dc.errors import S2DCError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.evaluate import Evaluation

__all__ = ["EVALUATE_SUMMARY", "evaluate_parser", "run_evaluate"]

_NAMED = 3
"""References without a label map that are named."""

EVALUATE_SUMMARY = (
    "Compare label maps with references: Dice, 95 % Hausdorff distance in mm, surface Dice."
)


def evaluate_parser() -> ArgumentParser:
    """Build the parser of ``s2dc evaluate``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=EVALUATE_SUMMARY)
    parser.add_argument("found", type=str, help="Label map to judge, or a folder with label maps.")
    parser.add_argument(
        "reference",
        type=str,
        help="The true label map, or a folder whose files have the same names.",
    )
    parser.add_argument(
        "--tolerance",
        type=float | None,
        default=None,
        metavar="MM",
        help="How far surfaces may be apart, in mm, and still count as equal in the surface Dice; "
        "without it the longest side of a voxel of the reference.",
    )
    add_json_argument(parser)
    return parser


def run_evaluate(found: str, reference: str, tolerance: float | None, json: bool) -> int:
    """Compare label maps and return the exit code: 0, or 2 when none could be used."""
    from napari_s2dc.engine.evaluate import evaluate_labels, mean_of, require_tolerance
    from napari_s2dc.volumes.io import read_volume

    if tolerance is not None:
        require_tolerance(tolerance)
    cases, references, skipped, missing = _cases(Path(found), Path(reference))
    results: list[Evaluation] = []

    def work(case: ScanFile, truth: Path) -> dict[str, Any]:
        found, reference = (read_volume(path, labels=True) for path in (case.path, truth))
        result = evaluate_labels(found, reference, tolerance)
        results.append(result)
        if not json:
            _print(case, truth, result)
        return {
            "reference": str(truth),
            "mean_dice": result.mean_dice,
            "mean_hd95_mm": _or_none(result.mean_hd95_mm),
            "mean_surface_dice": result.mean_surface_dice,
            "tolerance_mm": result.tolerance_mm,
            "classes": [score.as_dict() for score in result.classes],
        }

    outcome = over_scans(cases, references, work)
    outcome.skipped += skipped
    for facts in outcome.done:
        del facts["out"]  # nothing is written
    dice = mean_of([result.mean_dice for result in results])
    distance = mean_of([result.mean_hd95_mm for result in results])
    surface = mean_of([result.mean_surface_dice for result in results])
    if json:
        outcome.print_json(
            mean_dice=_or_none(dice),
            mean_hd95_mm=_or_none(distance),
            mean_surface_dice=_or_none(surface),
            missing=missing,
        )
    elif len(results) > 1:
        print(
            f"Mean of {len(results)} label maps: Dice {dice:.3f}, HD95 {_two_decimals(distance)} "
            f"mm, surface Dice {surface:.3f}"
        )
    return outcome.exit_code


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _two_decimals(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _print(case: ScanFile, truth: Path, result: Evaluation) -> None:
    print(f"{case.path} against {truth}")
    print("  class    Dice   HD95 mm  surface   voxels  reference")
    for score in result.classes:
        print(
            f"  {score.label:>5}  {score.dice:6.3f}  {_two_decimals(score.hd95_mm):>8}  "
            f"{score.surface_dice:7.3f}  {score.voxels:>7}  {score.reference_voxels:>9}"
        )
    print(
        f"   mean  {result.mean_dice:6.3f}  {_two_decimals(result.mean_hd95_mm):>8}  "
        f"{result.mean_surface_dice:7.3f}"
    )
    print(f"  surface: surface Dice at a tolerance of {result.tolerance_mm:.4g} mm")
    if result.missed:
        print(f"  only in one of the two: {', '.join(map(str, result.missed))}")


def _cases(
    found: Path, reference: Path
) -> tuple[list[ScanFile], list[Path], list[dict[str, Any]], list[str]]:
    """Label maps, the reference of each, maps without a reference, and references without a map.

    Raises
    ------
    S2DCError
        A file is compared with a folder, or no name of the one folder is in the other.
    """
    if found.is_dir() != reference.is_dir():
        raise S2DCError(
            f"{found} and {reference}: one is a folder and the other is not.",
            "Name two files or two folders.",
        )
    if not found.is_dir():
        return [ScanFile(found, Path(bare_name(found.name)))], [reference], [], []
    truths, judged = label_maps_in(reference), label_maps_in(found)
    cases, references, skipped = [], [], []
    for name, path in judged.items():
        if name in truths:
            cases.append(ScanFile(path, name))
            references.append(truths[name])
        else:
            reason = f"{reference} has no file of that name"
            tell(f"skipped {path}: {reason}")
            skipped.append({"scan": str(path), "reason": reason})
    if not cases:
        raise S2DCError(
            f"No file of {found} has the name of one in {reference}.",
            f"Names are compared without ending and without {' or '.join(LABEL_ENDINGS)}.",
        )
    missing = [str(path) for name, path in truths.items() if name not in judged]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (" and others" if len(missing) > _NAMED else "")
        tell(
            f"the means leave out {len(missing)} of {len(truths)} references, since {found} has no "
            f"file of {'that name' if len(missing) == 1 else 'their names'}: {named}"
        )
    return cases, references, skipped, missing
