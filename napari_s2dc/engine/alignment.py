"""Rigid, affine and smooth maps between scans, fitted to matched patches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from napari_s2dc.errors import S2DCError

__all__ = [
    "FEWEST_PAIRS",
    "LEAST_CONFIDENCE",
    "Alignment",
    "distances_mm",
    "fit_alignment",
    "nearest_rigid",
    "smooth_displacement",
]

LEAST_CONFIDENCE = 0.2
"""Pairs below this count neither for nor against a map."""

FEWEST_PAIRS = 8
"""Below, no map is fitted."""
_MOST_PAIRS = 1000
"""Pairs at most that a map is looked for with; scikit-image's affine fit takes memory with the
square of them, 15 GB for 10,000. All that agree then make the map exact."""
_FLAT = 1e-3


@dataclass(frozen=True)
class Alignment:
    """A linear map between two scans in mm.

    Parameters
    ----------
    matrix : np.ndarray (4, 4)
        Takes (z, y, x, 1) in mm of the first scan to mm of the second.
    inliers : np.ndarray (pairs,)
        Boolean; the pairs the map agrees with.
    residual_mm : float
        Median distance of the inliers from where the map puts them.
    """

    matrix: np.ndarray
    inliers: np.ndarray
    residual_mm: float

    @property
    def mirrored(self) -> bool:
        """Whether the map swaps left and right (or any odd number of axes)."""
        return bool(np.linalg.det(self.matrix[:3, :3]) < 0)

    def apply(self, points_mm: np.ndarray) -> np.ndarray:
        """Map points (n, 3) in mm."""
        mapped: np.ndarray = points_mm @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return mapped


def _thickness(points: np.ndarray) -> float:
    """Smallest over largest extent of points (n, 3) along their own axes."""
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(spread[-1] / max(spread[0], 1e-12))


def fit_alignment(
    source_mm: np.ndarray,
    target_mm: np.ndarray,
    *,
    tolerance_mm: float,
    kind: Literal["rigid", "affine"] = "affine",
    seed: int = 0,
    trials: int = 2000,
) -> Alignment:
    """Fit a map to pairs of points, many of which may be wrong.

    Parameters
    ----------
    source_mm, target_mm : np.ndarray (pairs, 3)
        Points that correspond, in mm.
    tolerance_mm : float
        Pairs nearer than this to where the map puts them are inliers.
    kind : {"rigid", "affine"}
        Rotation and translation, or any linear map.
    seed : int
        Of the random choices.
    trials : int
        Random choices at most.

    Returns
    -------
    Alignment

    Raises
    ------
    S2DCError
        Too few pairs, or none agree on a map.

    Notes
    -----
    RANSAC: ``skimage.measure.ransac`` with scikit-image's three-dimensional transforms, among
    random pairs where there are very many; then least squares over all that agree.
    """
    from skimage.measure import ransac
    from skimage.transform import AffineTransform, EuclideanTransform

    if len(source_mm) < FEWEST_PAIRS:
        raise S2DCError(
            f"Only {len(source_mm)} confident pairs were found, too few to fit a map.",
            "Lower the temperature, or choose scans that show the same region.",
        )
    if kind == "affine" and min(_thickness(source_mm), _thickness(target_mm)) < _FLAT:
        raise S2DCError(
            "The confident pairs lie in one plane, so no affine map can be fitted to them.",
            "Embed at an earlier stage, whose patches are smaller, or fit a rigid map.",
        )
    model_class = EuclideanTransform if kind == "rigid" else AffineTransform
    some = np.arange(len(source_mm))
    if len(some) > _MOST_PAIRS:
        some = np.random.default_rng(seed).choice(some, _MOST_PAIRS, replace=False)
    source, target = source_mm[some], target_mm[some]
    centre = source.mean(0), target.mean(0)

    class Centred(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, matrix: np.ndarray | None = None) -> None:
            super().__init__(matrix=matrix, dimensionality=3)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No inliers found", UserWarning)
        model, inliers = ransac(
            (source - centre[0], target - centre[1]),
            Centred,
            min_samples=4,
            residual_threshold=tolerance_mm,
            max_trials=trials,
            stop_probability=0.9999,
            rng=seed,
        )
    if not model or inliers is None or inliers.sum() < FEWEST_PAIRS:
        raise S2DCError(
            f"No map agrees with enough of the {len(source_mm)} confident pairs.",
            "Choose scans that show the same region.",
        )
    matrix = np.asarray(model.params, dtype=np.float64)
    shift = np.eye(4)
    shift[:3, 3] = -centre[0]
    back = np.eye(4)
    back[:3, 3] = centre[1]
    matrix = back @ matrix @ shift
    if len(some) < len(source_mm):
        inliers = distances_mm(matrix, source_mm, target_mm) <= tolerance_mm
        agreeing = source_mm[inliers], target_mm[inliers]
        if kind == "affine" and min(map(_thickness, agreeing)) < _FLAT:
            raise S2DCError(
                "The pairs that agree lie in one plane, so no affine map can be fitted to them.",
                "Embed at an earlier stage, whose patches are smaller, or fit a rigid map.",
            )
        matrix = _rigid(*agreeing) if kind == "rigid" else _affine(*agreeing)
        inliers = distances_mm(matrix, source_mm, target_mm) <= tolerance_mm
    distance = distances_mm(matrix, source_mm[inliers], target_mm[inliers])
    return Alignment(matrix, inliers, float(np.median(distance)))


def distances_mm(matrix: np.ndarray, source_mm: np.ndarray, target_mm: np.ndarray) -> np.ndarray:
    """How far a linear map (4, 4) puts points (n, 3) from where they should lie (n, 3), in mm."""
    mapped = source_mm @ matrix[:3, :3].T + matrix[:3, 3]
    distance: np.ndarray = np.linalg.norm(mapped - target_mm, axis=1)
    return distance


def _affine(source_mm: np.ndarray, target_mm: np.ndarray) -> np.ndarray:
    """Fit a linear map by least squares."""
    centre = source_mm.mean(0)
    places = np.column_stack([source_mm - centre, np.ones(len(source_mm))])
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(places, target_mm, rcond=None)[0].T
    matrix[:3, 3] -= matrix[:3, :3] @ centre
    return matrix


def _rigid(source_mm: np.ndarray, target_mm: np.ndarray) -> np.ndarray:
    """Fit a rotation and a shift by least squares, S2DCError where the points do not decide one."""
    from scipy.spatial.transform import Rotation

    centre = source_mm.mean(0), target_mm.mean(0)
    source = source_mm - centre[0]
    spread = np.linalg.svd(source, compute_uv=False)
    if len(spread) < 2 or spread[1] <= _FLAT * spread[0]:
        raise S2DCError(
            "The confident pairs lie on one line, so they decide no rotation.",
            "Choose scans that show the same region, or fit an affine map.",
        )
    rotation, _ = Rotation.align_vectors(target_mm - centre[1], source)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[:3, 3] = centre[1] - matrix[:3, :3] @ centre[0]
    return matrix


def nearest_rigid(matrix: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Rotate and shift points as nearly as possible to where a linear map puts them.

    Parameters
    ----------
    matrix : np.ndarray (4, 4)
        Takes (z, y, x, 1) in mm to mm.
    points_mm : np.ndarray (n, 3)
        Not all on one line.

    Returns
    -------
    np.ndarray (4, 4)
        Least squares over the points.

    Raises
    ------
    S2DCError
        The points lie on one line.
    """
    if not len(points_mm):
        raise S2DCError("There are no confident pairs.", "Choose scans that show the same region.")
    return _rigid(points_mm, points_mm @ matrix[:3, :3].T + matrix[:3, 3])


def smooth_displacement(
    points: np.ndarray,
    displacement: np.ndarray,
    places: np.ndarray,
    *,
    smoothing: float = 1.0,
    neighbours: int = 64,
) -> np.ndarray:
    """Interpolate displacements of scattered points smoothly over other places.

    Parameters
    ----------
    points : np.ndarray (n, 3)
        Where displacements are known, in units in which they lie about equally dense along all
        axes.
    displacement : np.ndarray (n, 3)
        Displacements, in any unit; outliers must have been removed.
    places : np.ndarray (m, 3)
        Where they are wanted, in the units of `points`.
    smoothing : float
        0 goes through every point; grows with the square of the unit of `points`.
    neighbours : int
        Nearest points used at each place.

    Returns
    -------
    np.ndarray (m, 3)

    Raises
    ------
    S2DCError
        The points nearest to a place lie in one plane.

    Notes
    -----
    Thin-plate splines: ``scipy.interpolate.RBFInterpolator``.
    """
    from scipy.interpolate import RBFInterpolator

    spline = RBFInterpolator(
        points,
        displacement,
        neighbors=min(neighbours, len(points)),
        smoothing=smoothing,
        kernel="thin_plate_spline",
    )
    try:
        result: np.ndarray = spline(places)
    except np.linalg.LinAlgError as error:
        raise S2DCError(
            "Neighbouring pairs lie in one plane, so no bending can be fitted to them.",
            "Do not bend by pairs, or embed at an earlier stage, whose patches are smaller.",
        ) from error
    return result
