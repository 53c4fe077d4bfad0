"""What a training run will meet, found from headers before any work is done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import check_values, read_header, read_volume
from s2dc_train.cached_scan import BYTES_PER_VOXEL, CachedScan
from s2dc_train.config import DataConfig
from s2dc_train.data_settings import check_settings, spacing_of, subvolume_size
from s2dc_train.prepare import READ_ERRORS, choose_preset, reason
from s2dc_train.sources import ScanEntry

SAMPLED_SCANS = 3
_SHOWN_SKIPPED = 20
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ScanFacts:
    """What is known of one usable scan.

    Parameters
    ----------
    path : str
        File or DICOM folder.
    shape : tuple of int
        Voxels (z, y, x) after resampling.
    spacing_mm : tuple of float
        Spacing of the file (z, y, x).
    subvolumes : int
        Sub-volumes that fit side by side; 0 when the scan has to be padded.
    preset : str or None
        Intensity preset; None until the voxels were looked at.
    intensity : tuple of float or None
        Least and greatest value; None until the voxels were looked at.
    labelled : bool
        Whether a label map is named for it.
    """

    path: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    subvolumes: int
    preset: str | None = None
    intensity: tuple[float, float] | None = None
    labelled: bool = False


@dataclass
class PreflightReport:
    """Usable scans, skipped scans with reasons, and ranges over them.

    Parameters
    ----------
    entries : list of ScanEntry
        Scans whose header could be read, in order.
    scans : list of ScanFacts
        The same scans, described.
    skipped : list of tuple
        (path, reason) of every scan that is not used.
    subvolume : tuple of int
        Size (z, y, x) of a sub-volume in voxels.
    label_problems : list of tuple
        (path, reason) of label maps that are not used although their scan is.
    """

    entries: list[ScanEntry]
    scans: list[ScanFacts]
    skipped: list[tuple[Path, str]]
    subvolume: tuple[int, int, int]
    label_problems: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def padded(self) -> int:
        """Scans smaller than a sub-volume along some axis."""
        return sum(scan.subvolumes == 0 for scan in self.scans)

    @property
    def cache_bytes(self) -> int:
        """Estimated size of the preprocessed scans on disk."""
        return sum(scan.shape[0] * scan.shape[1] * scan.shape[2] for scan in self.scans) * (
            BYTES_PER_VOXEL
        )

    @property
    def presets(self) -> dict[str, int]:
        """Number of scans per intensity preset, among those whose voxels were looked at."""
        return dict(Counter(scan.preset for scan in self.scans if scan.preset).most_common())

    def with_cached(
        self, cached: Sequence[CachedScan], failed: Sequence[tuple[Path, str]]
    ) -> PreflightReport:
        """Return the report once every voxel was read: true ranges, and what failed then."""
        known = {str(scan.entry.image): scan for scan in cached}
        scans = [
            replace(
                facts,
                shape=known[facts.path].shape,
                subvolumes=_fit(known[facts.path].shape, self.subvolume),
                preset=known[facts.path].preset,
                intensity=known[facts.path].intensity,
                labelled=known[facts.path].has_labels,
            )
            for facts in self.scans
            if facts.path in known
        ]
        problems = [
            (scan.entry.label, scan.label_problem)
            for scan in cached
            if scan.entry.label is not None and scan.label_problem
        ]
        return PreflightReport(
            entries=[scan.entry for scan in cached],
            scans=scans,
            skipped=[*self.skipped, *failed],
            subvolume=self.subvolume,
            label_problems=problems,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "usable": len(self.scans),
            "subvolume": list(self.subvolume),
            "subvolumes": sum(scan.subvolumes for scan in self.scans),
            "padded": self.padded,
            "presets": self.presets,
            "cache_bytes": self.cache_bytes,
            "scans": [asdict(scan) for scan in self.scans],
            "skipped": [{"path": str(path), "reason": why} for path, why in self.skipped],
            "label_problems": [
                {"path": str(path), "reason": why} for path, why in self.label_problems
            ],
        }

    def __str__(self) -> str:
        seen = [scan for scan in self.scans if scan.intensity]
        low = min((scan.intensity[0] for scan in seen if scan.intensity), default=0.0)
        high = max((scan.intensity[1] for scan in seen if scan.intensity), default=0.0)
        sampled = "" if len(seen) == len(self.scans) else f" (of {len(seen)} scans looked at)"
        presets = ", ".join(f"{name} ({count})" for name, count in self.presets.items())
        labelled = sum(scan.labelled for scan in self.scans)
        fit = sum(scan.subvolumes for scan in self.scans)
        rows = [
            (
                "Scans",
                f"{len(self.scans)} usable, {len(self.skipped)} skipped, {labelled} labelled",
            ),
            ("Preset", f"{presets}{sampled}"),
            ("Intensity", f"{low:g} to {high:g}{sampled}" if seen else "not looked at"),
            ("Spacing (mm)", _ranges([scan.spacing_mm for scan in self.scans])),
            ("Size (voxels)", _ranges([scan.shape for scan in self.scans])),
            (
                "Sub-volumes",
                f"{' x '.join(map(str, self.subvolume))} voxels: {fit} fit side by side, "
                f"{self.padded} {'scan is' if self.padded == 1 else 'scans are'} padded",
            ),
            ("Cache", f"about {self.cache_bytes / 1e9:.2g} GB"),
        ]
        lines = [f"{name:<14}{text}" for name, text in rows]
        for title, items in (
            ("Skipped scans", self.skipped),
            ("Label maps not used", self.label_problems),
        ):
            if items:
                lines.append(f"{title}:")
                lines += [f"  {path}: {why}" for path, why in items[:_SHOWN_SKIPPED]]
            if len(items) > _SHOWN_SKIPPED:
                lines.append(f"  ... and {len(items) - _SHOWN_SKIPPED} more")
        return "\n".join(lines)


def preflight(entries: Sequence[ScanEntry], config: DataConfig) -> PreflightReport:
    """Read every header, and the voxels of a few scans.

    Parameters
    ----------
    entries : sequence of ScanEntry
        As listed by :func:`s2dc_train.sources.find_scans`.
    config : DataConfig
        Settings; checked first.

    Returns
    -------
    PreflightReport
        Scans that cannot be read are in ``skipped`` with the reason; none is replaced.

    Raises
    ------
    ConfigurationError
        A setting is out of range.
    VolumeError
        No scan can be read.
    """
    check_settings(config)
    size = subvolume_size(config)
    facts = in_threads(lambda entry: _facts(entry, config, size), entries)
    usable = [
        (entry, found)
        for entry, found in zip(entries, facts, strict=True)
        if isinstance(found, ScanFacts)
    ]
    skipped = [
        (entry.image, found)
        for entry, found in zip(entries, facts, strict=True)
        if isinstance(found, str)
    ]
    if not usable:
        raise nothing_left(skipped)
    scans = [found for _, found in usable]
    for index in sorted({len(scans) * i // SAMPLED_SCANS for i in range(SAMPLED_SCANS)}):
        scans[index] = _with_voxels(scans[index], config)
    return PreflightReport([entry for entry, _ in usable], scans, skipped, size)


def nothing_left(skipped: Sequence[tuple[Path, str]]) -> VolumeError:
    """Make the error for a run without a usable scan."""
    if not skipped:
        return VolumeError("No scan is left to train on.")
    path, why = skipped[0]
    return VolumeError(
        f"None of the {len(skipped)} scans can be used; the first, {path}: {why.rstrip('.')}."
        if len(skipped) > 1
        else f"The only scan, {path}, cannot be used: {why.rstrip('.')}."
    )


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply ``work`` to all items at once (reading headers waits for disks), keeping the order."""
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(work, items))


def _facts(entry: ScanEntry, config: DataConfig, size: tuple[int, int, int]) -> ScanFacts | str:
    try:
        if not entry.image.exists():
            return "the file does not exist"
        header = read_header(entry.image)
    except READ_ERRORS as error:
        return reason(error, entry.image)
    z, y, x = (
        max(1, round(voxels * old / new))
        for voxels, old, new in zip(
            header.shape_zyx,
            header.spacing_mm,
            spacing_of(config) or header.spacing_mm,
            strict=True,
        )
    )
    spacing = header.spacing_mm[0], header.spacing_mm[1], header.spacing_mm[2]
    return ScanFacts(
        path=str(entry.image),
        shape=(z, y, x),
        spacing_mm=spacing,
        subvolumes=_fit((z, y, x), size),
        labelled=entry.label is not None and entry.label.exists(),
    )


def _with_voxels(facts: ScanFacts, config: DataConfig) -> ScanFacts:
    try:
        volume = read_volume(Path(facts.path))
        check_values(volume)
    except READ_ERRORS:
        return facts  # listed with its reason when the scan is preprocessed
    return replace(
        facts,
        preset=choose_preset(volume, config.preset),
        intensity=(float(volume.array.min()), float(volume.array.max())),
    )


def _fit(shape: Sequence[int], size: Sequence[int]) -> int:
    z, y, x = (voxels // side for voxels, side in zip(shape, size, strict=True))
    return z * y * x


def _ranges(rows: Sequence[Sequence[float]]) -> str:
    """``z 80 to 112, y 96, x 96`` over all scans."""
    texts = []
    for axis, values in zip("zyx", zip(*rows, strict=True), strict=True):
        low, high = f"{min(values):.4g}", f"{max(values):.4g}"
        texts.append(f"{axis} {low}" if low == high else f"{axis} {low} to {high}")
    return ", ".join(texts)
