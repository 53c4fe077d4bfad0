"""A trained segmentation model in one file: encoder, head or decoder, and how to use them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from napari_s2dc import __version__
from napari_s2dc.engine.encoders import weights_hash
from napari_s2dc.engine.fewshot_settings import SegmentationClass, SegmentSettings
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.files import holds_tensors, reading_tensors, write_tensors
from napari_s2dc.method.encoder import DERIVED_SUFFIX, EncoderConfig, SwinEncoder
from napari_s2dc.volumes.preprocess import PRESETS

__all__ = ["ModelFileError", "SegmentationModel", "holds_model"]

_KEY = "napari_s2dc_segmentation"
_FORMAT = 1
_NEEDED = {"quick": ("stages", "smoothing_vox"), "finetune": ("window_vox",)}


class ModelFileError(S2DCError):
    """A file that cannot be read as a segmentation model."""


@dataclass(frozen=True, eq=False)
class SegmentationModel:
    """What was learned from labels, with the encoder it was learned on.

    Parameters
    ----------
    kind : {"quick", "finetune"}
        What `tensors` are: a light head over frozen features, or the decoder of a Swin UNETR.
    encoder : SwinEncoder
        Frozen or fine-tuned.
    tensors : dict of Tensor
        Head or decoder, by name; on the CPU.
    classes : tuple of SegmentationClass
        Output ``1 + i`` is class ``i``; output 0 is the background.
    preset : str
        Intensity preset, a key of ``PRESETS``.
    spacing_mm : tuple of float, optional
        Spacing (z, y, x) that scans are resampled to; None where they are taken as they are.
    segment : SegmentSettings
        How scans are segmented unless something else is asked for.
    metadata : dict
        JSON-able facts. What segmenting needs: ``stages`` and ``smoothing_vox`` of a quick model,
        ``window_vox`` of a fine-tuned one. Provenance: ``encoder`` (name) and ``encoder_weights``
        (hash before training), ``scans`` (name, spacing and hash of each that was learned from),
        ``settings``, ``steps``, ``loss``, ``metrics``, ``version``; ``failure`` where training
        ended early by an error.
    """

    kind: Literal["quick", "finetune"]
    encoder: SwinEncoder
    tensors: dict[str, Tensor]
    classes: tuple[SegmentationClass, ...]
    preset: str
    spacing_mm: tuple[float, float, float] | None = None
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Classes and the background."""
        return len(self.classes) + 1

    def fingerprint(self, segment: SegmentSettings) -> str:
        """Hash of all that decides what files of results hold: equal hashes, equal files."""
        facts = [
            __version__,
            self.kind,
            weights_hash(self.encoder),
            [asdict(one) for one in self.classes],
            self.preset,
            self.spacing_mm,
            [self.metadata.get(name) for name in ("stages", "smoothing_vox", "window_vox")],
            asdict(segment),
        ]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    def save(self, path: str | Path) -> Path:
        """Write everything as one safetensors file, which appears whole or not at all.

        Raises
        ------
        S2DCError
            The file cannot be written.
        """
        path = Path(path)
        facts = {
            "format": _FORMAT,
            "kind": self.kind,
            "classes": [asdict(one) for one in self.classes],
            "preset": self.preset,
            "spacing_mm": self.spacing_mm,
            "segment": asdict(self.segment),
            "architecture": self.encoder.config.as_dict(),
            "encoder_metadata": self.encoder.metadata,
            "metadata": {"version": __version__, **self.metadata},
        }
        tensors = {
            f"encoder.{name}": tensor.detach().cpu()
            for name, tensor in self.encoder.swin.state_dict().items()
            if not name.endswith(DERIVED_SUFFIX)
        }
        tensors |= {f"head.{name}": part.detach().cpu() for name, part in self.tensors.items()}
        write_tensors(path, tensors, {_KEY: json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> SegmentationModel:
        """Read a model that :meth:`save` wrote; no code in a file is ever run.

        Raises
        ------
        ModelFileError
            The file is missing, damaged, of a later format, or holds something else, such as a head
            that does not fit its encoder or its classes.
        """
        path = Path(path)
        with reading_tensors(
            path,
            _KEY,
            _FORMAT,
            "segmentation model",
            "'s2dc finetune' or the Segment tab",
            ModelFileError,
        ) as (facts, tensors):
            try:
                model = _assemble(facts, tensors)
            except ConfigurationError as error:
                raise ModelFileError(f"{path}: {error.sentence}", error.hint) from error
            _require_usable(model)
            return model


def holds_model(path: Path) -> bool:
    """Whether the header of a file says that :meth:`SegmentationModel.save` wrote it."""
    return holds_tensors(path, _KEY)


def _assemble(facts: dict[str, Any], tensors: dict[str, Tensor]) -> SegmentationModel:
    if facts["kind"] not in _NEEDED or facts["preset"] not in PRESETS:
        raise ValueError("unknown kind or preset")
    if any(name not in facts["metadata"] for name in _NEEDED[facts["kind"]]):
        raise ValueError("what segmenting needs is missing")
    encoder = SwinEncoder(EncoderConfig.from_dict(facts["architecture"]))
    encoder.metadata = dict(facts["encoder_metadata"])
    own = _below("encoder.", tensors)
    own |= {n: t for n, t in encoder.swin.state_dict().items() if n.endswith(DERIVED_SUFFIX)}
    encoder.swin.load_state_dict(own)
    spacing = facts["spacing_mm"]
    return SegmentationModel(
        kind=facts["kind"],
        encoder=encoder.eval(),
        tensors=_below("head.", tensors),
        classes=tuple(
            SegmentationClass(int(one["label"]), str(one["name"]), _three(one["colour"]))
            for one in facts["classes"]
        ),
        preset=str(facts["preset"]),
        spacing_mm=None if spacing is None else _three(spacing),
        segment=SegmentSettings(
            # One that came after the file was written has its default.
            **{
                one.name: facts["segment"][one.name]
                for one in fields(SegmentSettings)
                if one.name in facts["segment"]
            }
        ),
        metadata=dict(facts["metadata"]),
    )


def _require_usable(model: SegmentationModel) -> None:
    """Refuse by ValueError, or as torch does, what could not segment a scan."""
    labels = [one.label for one in model.classes]
    if not labels or min(labels) < 1 or len(set(labels)) < len(labels):
        raise ValueError("labels of classes are whole numbers of at least 1, each once")
    if model.spacing_mm is not None and not all(0 < side < math.inf for side in model.spacing_mm):
        raise ValueError("a spacing is more than 0 mm")
    # Both import this module.
    if model.kind == "quick":
        from napari_s2dc.engine.quick_head import head_of

        head_of(model)
    else:
        from napari_s2dc.engine.finetune_network import network_of

        window = model.metadata["window_vox"]
        if len(window) != 3 or any(side < 32 or side % 32 for side in window):
            raise ValueError("sides of a window are multiples of 32")
        network_of(model)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _three(numbers: Any) -> tuple[float, float, float]:
    one, two, three = (float(number) for number in numbers)
    return one, two, three
