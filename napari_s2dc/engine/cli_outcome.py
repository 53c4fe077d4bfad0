"""What became of scans that a command works through: those that cannot be used are skipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from napari_s2dc.engine.cli_scans import ScanFile
from napari_s2dc.engine.console import tell
from napari_s2dc.errors import SCAN_ERRORS, S2DCError, reason_of

__all__ = ["Outcome", "Work", "over_scans", "try_scan"]

Work: TypeAlias = Callable[[ScanFile, Path], dict[str, Any]]
"""Makes the result of one scan and gives JSON-able facts about it."""


@dataclass
class Outcome:
    """What became of the scans.

    Parameters
    ----------
    done : list of dict
        JSON-able facts of every scan that worked.
    skipped : list of dict
        ``scan`` and ``reason`` of every other.
    """

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when a scan worked, otherwise that of an error."""
        return 0 if self.done else S2DCError.exit_code

    def add(self, facts: dict[str, Any]) -> None:
        """Add what `try_scan` gave."""
        (self.skipped if "reason" in facts else self.done).append(facts)

    def print_json(self, **more: Any) -> None:
        """Print everything, and more facts, on standard output."""
        facts = {**more, "scans": self.done, "skipped": self.skipped}
        print(json.dumps(facts, indent=2, default=str))


def over_scans(scans: Sequence[ScanFile], targets: Sequence[Path], work: Work) -> Outcome:
    """Work through scans; one that cannot be used is skipped with a reason on standard error.

    Parameters
    ----------
    scans : sequence of ScanFile
        Scans.
    targets : sequence of Path
        Result of each.
    work : callable
        Makes the result of one scan and gives JSON-able facts about it.

    Raises
    ------
    S2DCError
        The only scan cannot be used.
    """
    outcome = Outcome()
    for scan, target in zip(scans, targets, strict=True):
        outcome.add(try_scan(scan, target, work, alone=len(scans) == 1))
    return outcome


def try_scan(scan: ScanFile, target: Path, work: Work, *, alone: bool = False) -> dict[str, Any]:
    """Work on one scan.

    Parameters
    ----------
    scan, target, work
        As of :func:`over_scans`.
    alone : bool
        Whether it is the only one: then a scan that cannot be used is an error.

    Returns
    -------
    dict
        ``scan``, and ``out`` and the facts or, where it was skipped, ``reason``.
    """
    try:
        facts = work(scan, target)
    except SCAN_ERRORS as error:
        if alone:
            raise
        reason = reason_of(error)
        # Most reasons begin with the file.
        tell(f"skipped {scan.path}: {reason.removeprefix(f'{scan.path} ')}")
        return {"scan": str(scan.path), "reason": reason}
    return {"scan": str(scan.path), "out": str(target), **facts}
