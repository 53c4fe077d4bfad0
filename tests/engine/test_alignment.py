"""Maps and bendings fitted to pairs."""

from __future__ import annotations

import tracemalloc
from typing import Literal

import numpy as np
import pytest

from napari_s2dc.engine.alignment import fit_alignment, nearest_rigid, smooth_displacement
from napari_s2dc.errors import S2DCError


def turned(points: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(20)
    matrix = np.array(
        [[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]]
    )
    result: np.ndarray = points @ matrix.T * 1.1 + [5, -3, 2]
    return result


def test_affine_is_fitted_through_wrong_pairs() -> None:
    random = np.random.default_rng(0)
    source = random.uniform(0, 100, (300, 3))
    target = turned(source) + random.normal(0, 0.3, source.shape)
    target[:100] = random.uniform(0, 100, (100, 3))
    found = fit_alignment(source, target, tolerance_mm=2.0)
    np.testing.assert_allclose(found.apply(source), turned(source), atol=0.7)
    assert found.inliers[100:].mean() > 0.98
    assert found.inliers[:100].mean() < 0.05
    assert 0.2 < found.residual_mm < 0.8
    assert not found.mirrored
    rigid = fit_alignment(source, np.add(source, (3, 2, 1)), tolerance_mm=1.0, kind="rigid")
    np.testing.assert_allclose(rigid.matrix[:3, :3], np.eye(3), atol=1e-6)


def test_a_mirrored_scan_is_reported() -> None:
    source = np.random.default_rng(0).uniform(0, 100, (50, 3))
    assert fit_alignment(source, source * [1, 1, -1], tolerance_mm=1.0).mirrored


def test_too_few_or_contradicting_pairs_are_one_sentence() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(S2DCError, match="Only 3 confident pairs"):
        fit_alignment(np.zeros((3, 3)), np.zeros((3, 3)), tolerance_mm=1.0)
    noise = random.uniform(0, 100, (40, 3)), random.uniform(0, 100, (40, 3))
    with pytest.raises(S2DCError, match="No map agrees"):
        fit_alignment(*noise, tolerance_mm=0.1)


def test_smooth_displacement_follows_its_points() -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 10, (200, 3))
    bend = np.sin(points / 3)
    wanted = random.uniform(2, 8, (50, 3))
    found = smooth_displacement(points, bend, wanted, smoothing=0.0)
    np.testing.assert_allclose(found, np.sin(wanted / 3), atol=0.1)


def test_neighbours_in_one_plane_are_refused_in_words() -> None:
    flat = np.random.default_rng(0).uniform(0, 10, (100, 3)) * [0, 1, 1]
    with pytest.raises(S2DCError, match="one plane"):
        smooth_displacement(flat, flat, flat + 1.0)


def test_pairs_in_one_plane_are_refused_in_words_unless_the_map_is_rigid() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (60, 3))
    points[:, 0] = 8.0
    with pytest.raises(S2DCError, match="one plane"):
        fit_alignment(points, points + 3.0, tolerance_mm=2.0)
    rigid = fit_alignment(points, points + 3.0, tolerance_mm=2.0, kind="rigid")
    np.testing.assert_allclose(rigid.matrix[:3, 3], 3.0, atol=1e-6)


def test_the_nearest_rigid_map_of_a_rigid_one_is_itself() -> None:
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    turn[:3, 3] = 5, -2, 40
    points = np.random.default_rng(0).normal(0, 50, (30, 3))
    assert nearest_rigid(turn, points) == pytest.approx(turn, abs=1e-9)
    stretched = turn @ np.diag([1.2, 1.2, 1.2, 1.0])
    assert nearest_rigid(stretched, points)[:3, :3] == pytest.approx(turn[:3, :3], abs=1e-9)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_points_of_one_line_decide_no_rotation(number: int) -> None:
    line = np.arange(number)[:, None] * [1.0, 2.0, 3.0]
    with pytest.raises(S2DCError, match="decide no rotation"):
        nearest_rigid(np.eye(4), line)
    with pytest.raises(S2DCError, match="no confident pairs"):
        nearest_rigid(np.eye(4), line[:0])


@pytest.mark.parametrize("kind", ["affine", "rigid"])
def test_very_many_pairs_take_little_memory_and_all_that_agree_count(
    kind: Literal["affine", "rigid"],
) -> None:
    random = np.random.default_rng(0)
    source = random.uniform(0, 300, (40_000, 3))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    turn[:3, 3] = 5, -2, 40
    target = source @ turn[:3, :3].T + turn[:3, 3] + random.normal(0, 1, source.shape)
    target[::2] = random.uniform(0, 300, (20_000, 3))
    tracemalloc.start()
    found = fit_alignment(source, target, tolerance_mm=8.0, kind=kind)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300e6  # 15 GB, were all pairs fitted at once
    assert found.inliers[1::2].all()
    assert found.inliers[::2].mean() < 0.01
    assert found.apply(source) == pytest.approx(source @ turn[:3, :3].T + turn[:3, 3], abs=0.1)
