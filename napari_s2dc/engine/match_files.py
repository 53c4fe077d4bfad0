"""What a match leaves on disk: pairs as CSV, the plan as safetensors, the affine map as JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc import __version__
from napari_s2dc.engine.alignment import Alignment
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import Match, Pairs
from napari_s2dc.files import replace_atomically, write_tensors
from napari_s2dc.volumes.volume import RAS_TO_ZYX_LPS

__all__ = ["PAIR_COLUMNS", "affine_facts", "save_affine", "save_pairs", "save_plan"]

PLAN_KEY = "napari_s2dc_plan"
"""Key of the JSON in the header of a plan's file."""

PAIR_COLUMNS = (
    *(f"{scan}_{unit}_{axis}" for scan in "ab" for unit in ("vox", "mm") for axis in "zyx"),
    "confidence",
    "mutual",
)
"""Columns of the CSV: places in A and B, mm to superior, posterior and left."""


def save_pairs(pairs: Pairs, path: str | Path) -> Path:
    """Write pairs as CSV, one a line, the most confident first; whole or not at all.

    Parameters
    ----------
    pairs : Pairs
        What to write; see :data:`PAIR_COLUMNS`. ``mutual`` is 1 or 0.
    path : str or Path
        File; its folder is created.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    path = Path(path)
    places = np.concatenate([pairs.voxel_a, pairs.mm_a, pairs.voxel_b, pairs.mm_b], axis=1)
    with (
        replace_atomically(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(PAIR_COLUMNS)
        for place, confidence, mutual in zip(places, pairs.confidence, pairs.mutual, strict=True):
            numbers = [f"{value:.4f}".rstrip("0").rstrip(".") for value in place]
            table.writerow([*numbers, f"{confidence:.4f}", int(mutual)])
    return path


def save_plan(match: Match, path: str | Path) -> Path:
    """Write a transport plan; whole or not at all.

    Parameters
    ----------
    match : Match
        What to write.
    path : str or Path
        File, usually ``*.safetensors``. The safetensors library reads it: ``index_a`` (n,) and
        ``index_b`` (m,) are flat places on the token grids (first axis slowest), ``mass`` (n, m)
        the plan; after a coarse-to-fine match ``mass`` is (n, k) and ``candidates`` (n, k) says
        which columns it speaks of (one without mass may be there only to fill the row). The header
        holds both grids as JSON, and the map from mm of A to mm of B near which partners were
        looked for, or null.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    path = Path(path)
    tensors = {"index_a": match.index_a, "index_b": match.index_b, "mass": match.mass}
    if match.candidates is not None:
        tensors["candidates"] = match.candidates
    facts = {
        "format": 1,
        "version": __version__,
        "a": _grid_facts(match.a),
        "b": _grid_facts(match.b),
        "matrix_zyx_lps": None if match.matrix is None else match.matrix.tolist(),
    }
    write_tensors(path, tensors, {PLAN_KEY: json.dumps(facts)})
    return path


def _grid_facts(embedding: Embedding) -> dict[str, Any]:
    return {
        "name": embedding.name,
        "grid": list(embedding.grid),
        "token_side_vox": embedding.stride,
        "offset_vox": list(embedding.offset_vox),
        "spacing_mm": list(embedding.spacing_mm),
        "affine": embedding.affine.tolist(),
        "weights": embedding.metadata.get("weights"),
    }


def affine_facts(alignment: Alignment) -> dict[str, Any]:
    """Give an affine map as JSON-able facts.

    Parameters
    ----------
    alignment : Alignment
        From mm of scan A to mm of scan B.

    Returns
    -------
    dict
        ``matrix_zyx_lps``: (z, y, x, 1) to superior, posterior and left, as the volumes of this
        project; ``matrix_xyz_ras``: (x, y, z, 1) to right, anterior and superior, as NIfTI has it;
        pairs used and in agreement, and their median distance in mm.
    """
    return {
        "matrix_zyx_lps": alignment.matrix.tolist(),
        "matrix_xyz_ras": (
            np.linalg.inv(RAS_TO_ZYX_LPS) @ alignment.matrix @ RAS_TO_ZYX_LPS
        ).tolist(),
        "pairs": len(alignment.inliers),
        "inliers": int(alignment.inliers.sum()),
        "residual_mm": alignment.residual_mm,
        "mirrored": alignment.mirrored,
    }


def save_affine(alignment: Alignment, path: str | Path, **more: Any) -> Path:
    """Write an affine map as JSON, see :func:`affine_facts`; whole or not at all.

    Parameters
    ----------
    alignment : Alignment
        From mm of scan A to mm of scan B.
    path : str or Path
        File; its folder is created.
    **more
        Further JSON-able facts, such as the names of the scans.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    path = Path(path)
    with replace_atomically(path) as temporary:
        facts = {**more, **affine_facts(alignment)}
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return path
