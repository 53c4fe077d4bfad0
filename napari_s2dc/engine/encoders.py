"""Which encoders are at hand, what one was trained for, and whether a scan is far from that.

Nothing here imports torch: the header of the workbench lists encoders before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from napari_s2dc.errors import CheckpointError, S2DCError
from napari_s2dc.files import replace_atomically
from napari_s2dc.volumes.preprocess import PRESETS, preset_of_scan
from napari_s2dc.volumes.volume import Volume

if TYPE_CHECKING:
    from napari_s2dc.method.encoder import SwinEncoder

__all__ = [
    "ANY_CONTRAST",
    "EncoderChoice",
    "available_encoders",
    "bundled_encoder",
    "default_encoder",
    "difference",
    "encoder_named",
    "latest_local_run",
    "mismatch",
    "name_of",
    "preset_of",
    "remember_local_run",
    "weights_hash",
]

ANY_CONTRAST = "S2DC tiny any contrast"
"""Name of the bundled encoder for scans of different kinds."""

METADATA_KEY = "napari_s2dc"
"""As in `napari_s2dc.method.checkpoint_files`, which would bring in torch."""

_DEFAULT = "s2dc_tiny.safetensors"
_MISSING = (
    "The bundled encoder is missing from this installation.",
    "Install napari-s2dc again, or name a checkpoint file.",
)
_LONGEST_HEADER = 10_000_000
# Of encoders, which see scans of many spacings in their training.
_SPACING_FACTOR = 2.0
# Sides of voxels; beyond them a file is more likely to be wrong than right.
_PLAUSIBLE_MM = (0.01, 50.0)
_KINDS = {"ct": "CT", "mr": "MR", "pet": "PET"}


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder that can be opened without looking for a file.

    Parameters
    ----------
    name : str
        Name to show.
    path : Path
        Checkpoint file.
    description : str
        What it is and what it was trained on, in a few words.
    """

    name: str
    path: Path
    description: str


def _bundled() -> list[Path]:
    """List the encoders that come with the package, the default first."""
    found = (Path(str(files("napari_s2dc"))) / "weights").glob("*.safetensors")
    return sorted(found, key=lambda path: (path.name != _DEFAULT, path.name))


def bundled_encoder() -> Path:
    """Path of the first encoder that comes with the package.

    Raises
    ------
    CheckpointError
        The installation lacks it.
    """
    paths = _bundled()
    if not paths:
        raise CheckpointError(*_MISSING)
    return paths[0]


def available_encoders() -> list[EncoderChoice]:
    """List the bundled encoders by name, then the latest that was trained on this computer."""
    choices = []
    for path in _bundled():
        facts = _facts_of(path)
        choices.append(EncoderChoice(str(facts.get("name") or path.stem), path, _describe(facts)))
    local = latest_local_run()
    if local is not None:
        facts = _facts_of(local)
        choices.append(EncoderChoice("latest local run", local, _describe(facts)))
    return choices


def default_encoder() -> Path:
    """Path of the first of `available_encoders`.

    Raises
    ------
    CheckpointError
        There is none; says how to get one.
    """
    choices = available_encoders()
    if not choices:
        raise CheckpointError(*_MISSING)
    return choices[0].path


def encoder_named(name: str) -> Path | None:
    """Find one of `available_encoders` by its name, in small or capital letters."""
    for choice in available_encoders():
        if choice.name.casefold() == name.casefold():
            return choice.path
    return None


def _note() -> Path:
    return platformdirs.user_data_path("napari-s2dc", appauthor=False) / "latest_run.json"


def remember_local_run(path: Path) -> None:
    """Note the encoder that was trained last on this computer, for `available_encoders`.

    Parameters
    ----------
    path : Path
        Checkpoint file. Where the user's data folder cannot be written nothing is noted: that
        must not spoil the end of a training.
    """
    note = _note()
    try:
        with replace_atomically(note) as temporary:
            text = json.dumps({"encoder": str(path.resolve())}) + "\n"
            temporary.write_text(text, encoding="utf-8")
    except S2DCError:
        return


def latest_local_run() -> Path | None:
    """Find the encoder that was trained last on this computer; None when it is gone."""
    try:
        path = Path(json.loads(_note().read_text(encoding="utf-8"))["encoder"])
        return path if path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts_of(path: Path) -> dict[str, Any]:
    """Metadata in the header of our safetensors file; empty when there is none to be read."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if length <= _LONGEST_HEADER else b""
        facts = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _describe(facts: Mapping[str, Any]) -> str:
    architecture, training = _mapping(facts, "architecture"), _mapping(facts, "training")
    sizes = {12: "tiny", 24: "small", 48: "base"}
    feature_size = architecture.get("feature_size")
    words = [sizes.get(feature_size, f"feature size {feature_size}")] if feature_size else []
    if architecture.get("borders"):
        words.append("by borders")
    kind = _KINDS.get(_kind(_preset(facts)))
    if kind:
        words.append(kind)
    for count, what in ((training.get("volumes"), "scan"), (training.get("steps"), "step")):
        if isinstance(count, int):
            words.append(f"{count} {what}{'' if count == 1 else 's'}")
    return ", ".join(words)


def _mapping(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Give a part of the metadata; foreign files may hold anything under the name."""
    part = facts.get(name)
    return part if isinstance(part, Mapping) else {}


def _preset(facts: Mapping[str, Any]) -> str:
    """Intensity preset of the training, ``"auto"`` when it is not stated."""
    preset = _mapping(facts, "preprocessing").get("preset")
    return preset if isinstance(preset, str) and preset in PRESETS else "auto"


def _kind(preset: str) -> str:
    return preset.partition("_")[0]


def name_of(encoder: SwinEncoder) -> str:
    """Name of an encoder to show: its own, else its file's, else its size."""
    name = encoder.metadata.get("name")
    if isinstance(name, str) and name:
        return name
    return encoder.report.path.stem if encoder.report else f"untrained {encoder.config.size_name}"


def weights_hash(encoder: SwinEncoder) -> str:
    """Hash of an encoder's architecture and weights: equal encoders have equal hashes."""
    digest = hashlib.sha256(json.dumps(encoder.config.as_dict(), sort_keys=True).encode())
    for name, tensor in sorted(encoder.swin.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def preset_of(volume: Volume, encoder: SwinEncoder, preset: str) -> str:
    """Name the intensity preset that a setting stands for.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder : SwinEncoder
        Its metadata resolves ``"checkpoint"``.
    preset : str
        ``"checkpoint"``, ``"auto"``, or a key of ``PRESETS``, which is returned as it is.

    Returns
    -------
    str
        For ``"auto"``, the scan's own word for its kind decides, then its values.
    """
    if preset == "checkpoint":
        preset = _preset(encoder.metadata)
    return preset_of_scan(volume) if preset == "auto" else preset


def mismatch(volume: Volume, encoder: SwinEncoder) -> str:
    """Say when a scan is far from what an encoder was trained on.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder : SwinEncoder
        Its metadata says what it was trained on.

    Returns
    -------
    str
        One sentence about kind and spacing, or "" where nothing is far or nothing is known.
        A spacing that cannot be is said whatever is known.
    """
    metadata = encoder.metadata
    return difference(volume, _preset(metadata), metadata.get("spacing_mm"), "the encoder")


def difference(
    volume: Volume,
    preset: str,
    spacing_mm: Any,
    learner: str,
    factor: float = _SPACING_FACTOR,
) -> str:
    """Say when a scan is far from those that something was trained on.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    preset : str
        Intensity preset of the training; ``"auto"`` where it is not known.
    spacing_mm : sequence of float
        Spacing (z, y, x) of its scans; anything else where it is not known.
    learner : str
        What was trained, such as ``"the encoder"``.
    factor : float
        Spacing counts as far beyond this factor on any axis.

    Returns
    -------
    str
        As of :func:`mismatch`.
    """
    trained = _kind(preset)
    scan = _kind(preset_of_scan(volume))
    parts = []
    if trained in _KINDS and scan != trained and not (trained == "pet" and not volume.modality):
        parts.append(f"is {_KINDS[scan]} and {learner} was trained on {_KINDS[trained]}")
    if not all(_PLAUSIBLE_MM[0] <= side <= _PLAUSIBLE_MM[1] for side in volume.spacing_mm):
        parts.append(
            f"states voxels of {_sides(volume.spacing_mm)} mm, hardly those of a scan; look "
            "whether its file means another unit"
        )
    elif isinstance(spacing_mm, (list, tuple)) and len(spacing_mm) == 3:
        try:
            ratios = [
                own / float(wanted)
                for own, wanted in zip(volume.spacing_mm, spacing_mm, strict=True)
            ]
        except (TypeError, ValueError, ZeroDivisionError):
            ratios = []
        if any(not 1 / factor <= ratio <= factor for ratio in ratios):
            parts.append(
                f"has voxels of {_sides(volume.spacing_mm)} mm and {learner} was trained at "
                f"{_sides(spacing_mm)} mm"
            )
    return f"This scan {', and it '.join(parts)}." if parts else ""


def _sides(spacing_mm: Any) -> str:
    return " × ".join(f"{float(side):.3g}" for side in spacing_mm)
