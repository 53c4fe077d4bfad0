"""What commands over scans share: options, finding scans, naming results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_s2dc.engine.console import tell
from napari_s2dc.engine.embed_settings import DEVICES, EmbedSettings
from napari_s2dc.errors import CheckpointError, ConfigurationError, S2DCError
from napari_s2dc.files import why_not_writable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.volumes.volume import Volume

__all__ = [
    "ScanFile",
    "add_device_argument",
    "add_encoder_argument",
    "add_json_argument",
    "add_shared_arguments",
    "bare_name",
    "encoder_of",
    "refuse_to_replace",
    "require_preset",
    "read_scan",
    "scans_in",
    "settings_of",
    "targets_of",
]

MAPS = (".nii", ".nii.gz", ".nrrd")
"""Endings of a map that is written on the grid of its scan."""


@dataclass(frozen=True)
class ScanFile:
    """A scan that was named or found in a folder.

    Parameters
    ----------
    path : Path
        File, or folder of a DICOM series.
    name : Path
        Name of its results, without ending: where it lay below the folder that was named.
    """

    path: Path
    name: Path


def add_encoder_argument(parser: ArgumentParser) -> None:
    """Add ``--encoder``, which :func:`encoder_of` reads."""
    parser.add_argument(
        "--encoder",
        type=str | None,
        default=None,
        help="Checkpoint, run folder or name of an encoder at hand; S2DC tiny when left out.",
    )


def add_json_argument(parser: ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="Print JSON instead of text, for other programs."
    )


def add_device_argument(parser: ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="Processor that does the work."
    )


def add_shared_arguments(parser: ArgumentParser) -> None:
    """Add the options that say how scans are embedded, and ``--json``."""
    add_encoder_argument(parser)
    parser.add_argument(
        "--stage",
        type=int | None,
        default=None,
        help="Encoder stage, 0 to 4 (tokens of 2 to 32 voxels); without it the encoder's own.",
    )
    parser.add_argument(
        "--preset",
        type=str,
        default="checkpoint",
        help="Intensities: checkpoint (as the encoder was trained), auto, ct, ct_soft_tissue, "
        "ct_lung, ct_bone, ct_wide, mr or pet.",
    )
    add_device_argument(parser)
    add_json_argument(parser)


def settings_of(stage: int | None, preset: str, device: str) -> EmbedSettings:
    """Make settings of the options; ConfigurationError when one is unknown."""
    require_preset(preset)
    return EmbedSettings(stage=stage, preset=preset, device=device)


def require_preset(preset: str) -> None:
    """Refuse an intensity preset that there is not, by a ConfigurationError."""
    from napari_s2dc.volumes.preprocess import PRESETS

    if preset not in ("checkpoint", "auto", *PRESETS):
        raise ConfigurationError(
            f"There is no intensity preset '{preset}'.",
            f"Use checkpoint, auto, {', '.join(PRESETS)}.",
        )


def encoder_of(option: str | None) -> SwinEncoder:
    """Load the encoder of ``--encoder``, or the first one at hand."""
    from napari_s2dc.engine.encoders import available_encoders, default_encoder, encoder_named
    from napari_s2dc.engine.export import checkpoint_in
    from napari_s2dc.method.encoder import SwinEncoder

    if option is None:
        return SwinEncoder.from_checkpoint(default_encoder())
    if Path(option).exists():
        return SwinEncoder.from_checkpoint(checkpoint_in(option))
    named = encoder_named(option)
    if named is None:
        raise CheckpointError(
            f"There is no run folder or checkpoint file {option}.",
            f"By name there are: {', '.join(choice.name for choice in available_encoders())}.",
        )
    return SwinEncoder.from_checkpoint(named)


def read_scan(path: Path, encoder: SwinEncoder) -> Volume:
    """Read a scan and say on standard error when the encoder was trained on something else."""
    volume = read_values(path)
    tell_mismatch(volume, path, encoder)
    return volume


def read_values(path: Path) -> Volume:
    """Read a scan whose values can be used; VolumeError otherwise."""
    from napari_s2dc.volumes.io import check_values, read_volume

    volume = read_volume(path)
    check_values(volume)
    return volume


def tell_mismatch(volume: Volume, path: Path, encoder: SwinEncoder) -> None:
    """Say on standard error when the encoder was trained on something else."""
    from napari_s2dc.engine.encoders import mismatch

    warning = mismatch(volume, encoder)
    if warning:
        tell(f"{path}: {warning}")


def scans_in(inputs: Sequence[str]) -> list[ScanFile]:
    """List the scans that files and folders name.

    Parameters
    ----------
    inputs : sequence of str
        Files, taken as they are; folders, searched with their subfolders, without label maps
        and without what these commands wrote there, which standard error says.

    Raises
    ------
    S2DCError
        A folder holds no scan.
    """
    from napari_s2dc.volumes.io import find_volumes, is_label_path

    scans: list[ScanFile] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            scans.append(ScanFile(path, Path(bare_name(path.name))))
            continue
        found = [scan for scan in find_volumes(path) if not is_label_path(scan) and _is_scan(scan)]
        if not found:
            raise S2DCError(f"{path} holds no scan.")
        for scan in found:
            # The folder itself when it is one DICOM series.
            below = Path(path.resolve().name) if scan == path else scan.relative_to(path)
            scans.append(ScanFile(scan, below.with_name(bare_name(below.name))))
    return _with_own_names(scans)


def _is_scan(path: Path) -> bool:
    from napari_s2dc.volumes.results import result_in

    result = result_in(path)
    if result:
        tell(f"left out {path}: it is a {result} that s2dc wrote")
    return not result


def bare_name(name: str) -> str:
    """Give a file name without the ending of its format."""
    from napari_s2dc.volumes.formats import SUFFIXES

    for suffix in sorted((*SUFFIXES, ".embedding.safetensors", ".safetensors"), key=len)[::-1]:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _with_own_names(scans: Sequence[ScanFile]) -> list[ScanFile]:
    """Tell equal names apart by a number, so that no result replaces another.

    Names that differ in capitals only are equal, too: on Windows and macOS they are one file.
    """
    taken: set[str] = set()
    result = []
    for scan in scans:
        name, number = scan.name, 1
        while str(name).casefold() in taken:
            number += 1
            name = scan.name.with_name(f"{scan.name.name}-{number}")
        taken.add(str(name).casefold())
        result.append(ScanFile(scan.path, name))
    return result


def targets_of(
    scans: Sequence[ScanFile],
    out: str | None,
    endings: tuple[str, ...],
    ending: str,
    option: str = "--out",
) -> list[Path]:
    """Name the result of every scan.

    Parameters
    ----------
    scans : sequence of ScanFile
        Scans.
    out : str, optional
        A file for a single scan when it has one of the endings, otherwise a folder; beside the
        scans when left out.
    endings : tuple of str
        Endings that mean a file.
    ending : str
        What results in a folder end with.
    option : str
        Where `out` was given.

    Raises
    ------
    ConfigurationError
        A file is named for the results of several scans, it has another ending, a result would
        take the place of a scan, or none can be written: known now, not once all is computed.
    """
    targets = _named_targets(scans, out, endings, ending, option)
    problems = [why_not_writable(target) for target in targets]
    if targets and all(problems):
        raise ConfigurationError(
            f"Cannot write {targets[0]}: {problems[0]}.", f"Name another place for {option}."
        )
    return targets


def _named_targets(
    scans: Sequence[ScanFile],
    out: str | None,
    endings: tuple[str, ...],
    ending: str,
    option: str,
) -> list[Path]:
    if out is None:
        return [scan.path.parent / f"{scan.name.name}{ending}" for scan in scans]
    if out.lower().endswith(endings):
        if len(scans) > 1:
            raise ConfigurationError(
                f"{out} is one file, but there are {len(scans)} scans.",
                f"Name a folder for {option}.",
            )
        targets = [Path(out)]
    else:
        if Path(out).suffix[1:].isalpha() and not Path(out).is_dir():
            raise ConfigurationError(
                f"{option} {out} has an ending that is not written here.",
                f"Use {' or '.join(endings)}, or name a folder.",
            )
        targets = [Path(out) / scan.name.with_name(scan.name.name + ending) for scan in scans]
    refuse_to_replace(targets, [scan.path for scan in scans])
    return targets


def refuse_to_replace(targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse results that would take the place of a file that is read.

    Raises
    ------
    ConfigurationError
        One would.
    """
    read = {_identity(path) for path in inputs}
    for target in targets:
        if _identity(target) in read:
            raise ConfigurationError(
                f"{target} is read here and would be replaced by the result.", "Name another file."
            )


def _identity(path: Path) -> object:
    """Tell a file from others, however its name is written: capitals may not count."""
    try:
        facts = path.stat()
    except OSError:  # not there yet
        return path.resolve()
    return facts.st_dev, facts.st_ino
