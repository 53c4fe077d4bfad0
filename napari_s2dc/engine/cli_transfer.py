"""``s2dc transfer``: labels of one or several atlases carried to other scans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_s2dc.engine.cli_embedded import EmbeddedScans, is_embedding_file, require_same_encoder
from napari_s2dc.engine.cli_match import add_matching_arguments, kinds_of, matching_of
from napari_s2dc.engine.cli_outcome import over_scans
from napari_s2dc.engine.cli_scans import (
    MAPS,
    ScanFile,
    add_shared_arguments,
    read_values,
    refuse_to_replace,
    scans_in,
    settings_of,
    targets_of,
)
from napari_s2dc.engine.console import tell
from napari_s2dc.errors import ConfigurationError, S2DCError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.volumes.volume import Volume

__all__ = ["TRANSFER_SUMMARY", "run_transfer", "transfer_parser"]

TRANSFER_SUMMARY = "Carry the labels of one or several scans to others."

_ENDING = ".labels.nii.gz"
_CONFIDENCE_ENDING = ".confidence.nii.gz"
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class _Atlas:
    """A labelled scan, embedded."""

    path: Path
    embedding: Embedding
    mirrored: Embedding
    scan: Volume
    labels: Volume


def transfer_parser() -> ArgumentParser:
    """Build the parser of ``s2dc transfer``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=TRANSFER_SUMMARY)
    parser.add_argument(
        "scans",
        type=str,
        nargs="+",
        help="Scans, DICOM series folders, or folders with scans (label maps are left out).",
    )
    parser.add_argument(
        "--atlas",
        type=str,
        action="append",
        required=True,
        metavar="SCAN:LABELS",
        help="A scan and its label map; may be given several times, then the labels are fused.",
    )
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        help="Label map to write (.nii, .nii.gz, .nrrd) for one scan, on its own grid; a folder "
        f"for several (NAME{_ENDING}). A .nrrd keeps the names of classes of a NRRD atlas.",
    )
    parser.add_argument(
        "--confidence",
        type=str | None,
        default=None,
        help="Map of how sure each voxel is, 0 to 1; a file or folder like --out. Of several "
        "atlases, the mean; those that say another class count as 0.",
    )
    parser.add_argument(
        "--refine",
        type=Literal["scans", "pairs", "none"],
        default="scans",
        help="How labels follow the matched pairs: refined on both scans, bent through the pairs "
        "by a thin-plate spline, or by the pairs' affine map alone.",
    )
    parser.add_argument(
        "--sharpen-borders",
        action="store_true",
        help="Let a random walker decide unsure borders by intensities and features; for "
        "structures with sharp edges.",
    )
    add_matching_arguments(parser)
    add_shared_arguments(parser)
    return parser


def run_transfer(
    scans: list[str],
    atlas: list[str],
    out: str,
    confidence: str | None,
    refine: Literal["scans", "pairs", "none"],
    sharpen_borders: bool,
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
    """Carry labels to every scan and return the exit code: 0, or 2 when none could be used."""
    from napari_s2dc.engine.aligned_match import match_aligned
    from napari_s2dc.engine.label_borders import refine_borders
    from napari_s2dc.engine.match import match_embeddings
    from napari_s2dc.engine.match_checks import assess
    from napari_s2dc.engine.mirror_check import mirror_warning
    from napari_s2dc.engine.progress import finish_with_bar
    from napari_s2dc.engine.registration import RegistrationSettings
    from napari_s2dc.engine.transfer import TransferSettings, fuse, transfer_labels
    from napari_s2dc.volumes.segments import fused_segment_fields
    from napari_s2dc.volumes.writing import write_volume

    matching = matching_of(temperature, unmatched_similarity, neighbours, prior)
    embedded = EmbeddedScans(encoder, settings_of(stage, preset, device), full=full_resolution)
    found = scans_in(scans)
    targets = targets_of(found, out, MAPS, _ENDING)
    maps = None
    if confidence is not None:
        others = targets_of(found, confidence, MAPS, _CONFIDENCE_ENDING, "--confidence")
        maps = {scan.path: target for scan, target in zip(found, others, strict=True)}
    pairs = [_split(text) for text in atlas]
    written = [*targets, *(maps.values() if maps else ())]
    refuse_to_replace(written, [path for pair in pairs for path in pair])
    if len(set(written)) < len(written):
        raise ConfigurationError(f"--out and --confidence both name {out}.", "Name two files.")
    settings = TransferSettings()
    if refine != "scans":
        steps = RegistrationSettings(affine_steps=0, bending_steps=0)
        settings = TransferSettings(bend_by_pairs=refine == "pairs", registration=steps)
    atlases = [_read(scan, labels, embedded) for scan, labels in pairs]
    unlike = _unlike_names([one.labels for one in atlases])
    if unlike:
        tell(unlike)

    def work(scan: ScanFile, target: Path) -> dict[str, Any]:
        started = time.perf_counter()
        if is_embedding_file(scan.path):
            raise ConfigurationError(
                f"{scan.path} holds features only; labels need the scan's own voxels.",
                "Name the scan itself.",
            )
        target_scan = embedded.of(scan.path)
        own, whole = target_scan.embedding, target_scan.scan
        transfers, used, reasons = [], [], []
        warnings: list[str] = []
        for one in atlases:
            require_same_encoder(one.embedding, own, one.path, scan.path)
            kinds = kinds_of((one.path, one.scan), (scan.path, whole))
            images = one.scan, target_scan.grid
            if refine != "scans" or kinds is None or kinds[0] == kinds[1]:
                match = match_embeddings(one.embedding, own, matching)
            else:  # the registration could not mend a map that is far off
                steps = match_aligned(
                    (one.embedding, own),
                    images,
                    embedded.network,
                    embedded.settings,
                    matching,
                )
                match = finish_with_bar(steps)
            warnings += assess(match, kinds=kinds).warnings
            if swapped := finish_with_bar(mirror_warning(match, one.mirrored, images, matching)):
                warnings.append(swapped)
            try:
                transfers.append(
                    finish_with_bar(transfer_labels(match, one.labels, one.scan, whole, settings))
                )
            except S2DCError as error:
                reasons.append(f"{one.path} could not be used: {error}")
            else:
                used.append(one)
                warnings += [doubt] if (doubt := transfers[-1].doubt) else []
        # Before giving up, because they may say why.
        for sentence in [*warnings, *(reasons if transfers else ())]:
            tell(f"{scan.path}: {sentence}")
        if not transfers:
            raise S2DCError(f"No labels could be carried to {scan.path}.", " ".join(reasons))
        result = transfers[0] if len(transfers) == 1 else fuse(transfers)
        if sharpen_borders:
            result = refine_borders(result, whole, own)
        write_volume(
            target,
            result.labels.array,
            whole,
            result="label map",
            segments=fused_segment_fields([one.labels for one in used]),
        )
        if maps is not None:
            write_volume(maps[scan.path], result.confidence, whole, result="confidence map")
        inside = result.labels.array != 0
        classes = [int(label) for label in _labels_of(result.labels)]
        seconds = round(time.perf_counter() - started, 2)
        sure = float(result.confidence[inside].mean()) if inside.any() else 0.0
        if not json:
            print(
                f"{target}: {len(classes)} {'class' if len(classes) == 1 else 'classes'} from "
                f"{len(transfers)} {'atlas' if len(transfers) == 1 else 'atlases'}, confidence "
                f"{sure:.2f}, {seconds:.1f} s"
            )
        return {
            "embedded_zyx": list(target_scan.grid.shape),
            "atlases": len(transfers),
            "classes": classes,
            "confidence": None if maps is None else str(maps[scan.path]),
            "mean_confidence": sure,
            "warnings": [*([unlike] if unlike else []), *warnings, *reasons],
            "seconds": seconds,
        }

    outcome = over_scans(found, targets, work)
    if json:
        outcome.print_json(atlases=[{"scan": str(a), "labels": str(b)} for a, b in pairs])
    return outcome.exit_code


def _labels_of(labels: Volume) -> Any:
    import numpy as np

    present = np.unique(labels.array)
    return present[present != 0]


def _unlike_names(labels: Sequence[Volume]) -> str:
    """Say which class label maps call by unlike names; empty when they agree."""
    from napari_s2dc.volumes.segments import segments_in

    known: dict[int, tuple[str, Volume]] = {}
    for volume in labels:
        for label, (name, _) in segments_in(volume).items():
            before, first = known.setdefault(label, (name, volume))
            if name.casefold() != before.casefold():
                return (
                    f"Label {label} is {before} in {first.path or first.name} and {name} in "
                    f"{volume.path or volume.name}; atlases are fused by number, so give each "
                    "class the same number in all of them."
                )
    return ""


def _split(text: str) -> tuple[Path, Path]:
    """Scan and label map of ``SCAN:LABELS``; a drive letter may hold a colon too.

    Raises
    ------
    ConfigurationError
        There is no colon, or a file is missing.
    """
    places = [index for index, letter in enumerate(text) if letter == ":"]
    if not places:
        raise ConfigurationError(
            f"--atlas {text} names one file.", "Write SCAN:LABELS, with a colon between them."
        )
    ways = [(Path(text[:place]), Path(text[place + 1 :])) for place in places]
    for scan, labels in ways:
        if scan.exists() and labels.exists():
            return scan, labels
    missing = [path for path in ways[-1] if not path.exists()]
    raise ConfigurationError(f"--atlas {text}: {missing[0]} does not exist.")


def _read(path: Path, label_path: Path, embedded: EmbeddedScans) -> _Atlas:
    from napari_s2dc.engine.evaluate import may_be_labels, require_same_grid
    from napari_s2dc.engine.mirror_check import embed_mirrored
    from napari_s2dc.engine.progress import finish_with_bar
    from napari_s2dc.volumes.io import read_volume

    if is_embedding_file(path):
        raise ConfigurationError(
            f"{path} holds features only; an atlas needs the scan's own voxels.",
            "Name the scan itself.",
        )
    labels = read_volume(label_path, labels=True)
    classes = _labels_of(labels)
    if not may_be_labels(labels.array) or len(classes) > _MOST_CLASSES:
        raise ConfigurationError(
            f"--atlas {path}:{label_path}: {label_path} looks like a scan; write SCAN:LABELS in "
            "this order.",
            f"Labels are whole numbers of at least 0, and no more than {_MOST_CLASSES} of them.",
        )
    scan = read_values(path)
    require_same_grid(scan, labels)
    if not len(classes):
        raise S2DCError(f"{label_path} holds no class other than background.")
    own = embedded.of_scan(scan, path)
    mirrored = finish_with_bar(embed_mirrored(own.grid, embedded.network, embedded.settings))
    return _Atlas(path, own.embedding, mirrored, own.grid, labels)
