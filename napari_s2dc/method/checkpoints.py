"""Loading encoder weights from our files and those of others, with a report key by key.

Nothing is ever loaded in silence: fewer than 95 % of the encoder's tensors matching in name and
shape is an error that names the first that do not.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from napari_s2dc.errors import CheckpointError
from napari_s2dc.method.checkpoint_layouts import Checkpoint, read_checkpoint
from napari_s2dc.method.encoder import DERIVED_SUFFIX, EncoderConfig

if TYPE_CHECKING:
    from napari_s2dc.method.encoder import SwinEncoder

logger = logging.getLogger(__name__)

LEAST_FRACTION = 0.95
"""Share of the encoder's tensors that must match in name and shape."""
_NAMED = 3  # problems in one sentence

EncoderType = TypeVar("EncoderType", bound="SwinEncoder")


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is there but does not fit."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    reason: str = "shape"

    def __str__(self) -> str:
        if self.reason != "shape":
            return f"{self.name} ({self.reason})"
        return f"{self.name} (needs {list(self.expected)}, has {list(self.found)})"


@dataclass(frozen=True)
class LoadReport:
    """What of a checkpoint fits an encoder, key by key.

    Window index buffers follow from the window size; they are listed only when they contradict it.

    Parameters
    ----------
    path : The file.
    layout : Kind of file, in words.
    matched : Tensors equal in name and shape; these are loaded.
    missing : Tensors the encoder has and the file lacks.
    unexpected : Encoder tensors of the file that the encoder lacks.
    mismatched : Tensors of another shape or kind of number.
    outside : The file's tensors that are no part of an encoder; not used.
    """

    path: Path
    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    outside: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Matched share of the encoder's tensors."""
        wrong = {entry.name for entry in self.mismatched}
        total = len(self.matched) + len(self.missing) + len(wrong)
        return len(self.matched) / total if total else 0.0

    @property
    def fits(self) -> bool:
        """Whether enough matches to load."""
        return self.fraction >= LEAST_FRACTION

    def as_dict(self) -> dict[str, Any]:
        """Give the report as JSON-able values."""
        return {
            "fraction": self.fraction,
            "fits": self.fits,
            "matched": list(self.matched),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": [str(entry) for entry in self.mismatched],
            "outside": list(self.outside),
        }

    def first_problems(self) -> str:
        """Name the first tensors that do not fit, and why."""
        problems = [str(entry) for entry in self.mismatched]
        problems += [f"{name} (missing)" for name in self.missing]
        problems += [f"{name} (unexpected)" for name in self.unexpected]
        more = len(problems) - _NAMED
        return ", ".join(problems[:_NAMED]) + (f" and {more} more" if more > 0 else "")

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [
            f"{self.path}: {self.layout}",
            f"  matched     {len(self.matched)} of {total} encoder tensors "
            f"({100 * self.fraction:.1f} %)",
        ]
        groups: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("mismatched", self.mismatched),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        )
        for title, entries in groups:
            if entries:
                lines.append(f"  {title:<11} {len(entries)}")
                lines += [f"    {entry}" for entry in entries]
        if self.outside:
            lines.append(f"  not used    {len(self.outside)} tensors outside the encoder")
        return "\n".join(lines)


def compare(checkpoint: Checkpoint, encoder: SwinEncoder) -> LoadReport:
    """Report which tensors of a checkpoint fit an encoder; nothing is loaded."""
    matched: list[str] = []
    missing: list[str] = []
    mismatched: list[Mismatch] = []
    wanted = encoder.swin.state_dict()
    for name, tensor in wanted.items():
        found = checkpoint.tensors.get(name)
        expected = tuple(tensor.shape)
        if name.endswith(DERIVED_SUFFIX):
            if found is not None and tuple(found.shape) != expected:
                mismatched.append(Mismatch(name, expected, tuple(found.shape)))
            elif found is not None and not torch.equal(found.to(tensor.dtype), tensor):
                mismatched.append(
                    Mismatch(name, expected, expected, "another order of window positions")
                )
        elif found is None:
            missing.append(name)
        elif tuple(found.shape) != expected:
            mismatched.append(Mismatch(name, expected, tuple(found.shape)))
        elif not found.is_floating_point():
            kind = str(found.dtype).removeprefix("torch.")
            mismatched.append(Mismatch(name, expected, expected, f"{kind} is no weight"))
        else:
            matched.append(name)
    return LoadReport(
        path=checkpoint.path,
        layout=checkpoint.layout,
        matched=tuple(matched),
        missing=tuple(missing),
        unexpected=tuple(name for name in checkpoint.tensors if name not in wanted),
        mismatched=tuple(mismatched),
        outside=checkpoint.outside,
    )


def load_encoder(
    path: str | os.PathLike[str],
    encoder_type: type[EncoderType],
    *,
    expected: EncoderConfig | None = None,
) -> EncoderType:
    """Build the encoder that a checkpoint holds and fill it.

    The report is logged (as a warning when anything does not fit) and kept as the encoder's
    ``report``.

    Parameters
    ----------
    path : path-like
        Any file `read_checkpoint` takes.
    encoder_type : type
        `SwinEncoder` or a subclass.
    expected : EncoderConfig, optional
        Refuse another architecture.

    Raises
    ------
    CheckpointError
        The file cannot be read, has another architecture than expected, holds values that are not
        finite, or fewer than 95 % of the encoder's tensors match.
    """
    checkpoint = read_checkpoint(path)
    if expected is not None:
        require_architecture(checkpoint, expected)
    encoder = encoder_type(checkpoint.config)
    report = compare(checkpoint, encoder)
    require_fit(report)
    weights = encoder.swin.state_dict()
    for name in report.matched:
        if not bool(torch.isfinite(checkpoint.tensors[name]).all()):
            raise CheckpointError(f"{name} in {checkpoint.path} holds NaN or infinite weights.")
        weights[name] = checkpoint.tensors[name]
    encoder.swin.load_state_dict(weights)
    encoder.metadata = checkpoint.metadata
    encoder.report = report
    complete = not (report.missing or report.mismatched or report.unexpected)
    logger.log(logging.INFO if complete else logging.WARNING, "%s", report)
    return encoder


def require_fit(report: LoadReport) -> None:
    """Refuse weights of which too few fit.

    Raises
    ------
    CheckpointError
        Fewer than 95 % of the encoder's tensors match in name and shape.
    """
    if not report.fits:
        raise CheckpointError(
            f"Only {100 * report.fraction:.1f} % of the encoder's tensors match in {report.path} "
            f"({report.layout}), at least {100 * LEAST_FRACTION:.0f} % must: "
            f"{report.first_problems()}."
        )


def require_architecture(checkpoint: Checkpoint, expected: EncoderConfig) -> None:
    """Refuse a checkpoint of another architecture than the one demanded.

    Raises
    ------
    CheckpointError
        Names every setting that differs.
    """
    found, wanted = asdict(checkpoint.config), asdict(expected)
    differences = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} holds an encoder of another architecture: "
            f"{', '.join(differences)}.",
            "Change the encoder settings or choose another checkpoint.",
        )
