"""Which scans are labelled and which are tests: nested, fixed, never seen by any pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import S2DCError

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class LabelledSet:
    """A data set of which a few scans are labelled.

    Parameters
    ----------
    name : str
        Its folder, in decathlon form.
    tests : int
        The last scans, by name, which are for tests: the ones that
        ``s2dc-train --data.validation_volumes`` of the same number leaves out.
    shots : tuple of int
        Numbers of labelled scans, ascending.
    network_spacing_mm : tuple of float, optional
        Spacing (z, y, x) at which Swin UNETR learns, so that a crop of 64 voxels a side holds
        most of a scan; that of the scans when left out.
    """

    name: str
    tests: int
    shots: tuple[int, ...]
    network_spacing_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Split:
    """What one seed draws of a data set.

    Parameters
    ----------
    labelled : tuple of str
        File names in the order in which they are labelled: the first n are the split of n shots.
    tests : tuple of str
        File names, the same for every seed.
    """

    labelled: tuple[str, ...]
    tests: tuple[str, ...]


MOUSE = LabelledSet("mouse_brain", 5, (1, 3, 5), network_spacing_mm=(0.3, 0.3, 0.3))
HIPPOCAMPUS = LabelledSet("hippocampus", tests=60, shots=(1, 5, 10))


def names_in(folder: Path) -> list[str]:
    """File names of the scans of a decathlon folder, in the order of ``s2dc-train``."""
    return sorted(file.name for file in (folder / "imagesTr").iterdir())


def split_of(names: Sequence[str], data: LabelledSet, seed: int) -> Split:
    """Draw the scans that are labelled, from those that are no tests.

    Parameters
    ----------
    names : sequence of str
        All scans, sorted.
    data : LabelledSet
        How many are for tests, and how many are labelled at most.
    seed : int
        Of the draw; the tests do not depend on it.

    Raises
    ------
    S2DCError
        There are too few scans.
    """
    pool, tests = names[: -data.tests], names[-data.tests :]
    if len(pool) < data.shots[-1]:
        raise S2DCError(
            f"{data.name} has {len(names)} scans; {data.tests} tests and {data.shots[-1]} "
            "labelled ones are needed."
        )
    drawn = np.random.default_rng(seed).permutation(len(pool))[: data.shots[-1]]
    return Split(tuple(pool[place] for place in drawn), tuple(tests))


def require_unseen(metadata: Mapping[str, Any], names: Sequence[str], data: LabelledSet) -> None:
    """Refuse an encoder that was trained on more scans than those that are no tests.

    Parameters
    ----------
    metadata : mapping
        Of the encoder.
    names : sequence of str
        All scans.
    data : LabelledSet
        How many are for tests.

    Raises
    ------
    S2DCError
        It says that it was trained on another number of scans, or nothing about it.
    """
    pool = len(names) - data.tests
    trained_on = metadata.get("training", {}).get("volumes")
    if trained_on != pool:
        raise S2DCError(
            f"The encoder for {data.name} was trained on {trained_on} scans instead of the {pool} "
            "that are no tests.",
            f"Train it with --data.validation_volumes {data.tests}.",
        )
