"""Matching: identical scans match identically, a known move is found, coarse agrees with fine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine.alignment import Alignment, fit_alignment, smooth_displacement
from napari_s2dc.engine.coarse_match import sparse_plan
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings, plan_of
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.registration import RegistrationSettings
from napari_s2dc.engine.transfer import Transfer, TransferSettings, fuse, transfer_labels
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.transport import assignment
from napari_s2dc.volumes.volume import Volume

SPACING = (2.0, 1.5, 1.0)


def embedding(
    shape: tuple[int, int, int] = (6, 8, 7), *, seed: int = 0, channels: int = 24
) -> Embedding:
    """Random features: no two tokens are alike."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(channels, *shape, generator=generator)
    return Embedding(
        features=features.half(),
        foreground=torch.ones(shape, dtype=torch.bool),
        stride=4,
        shape=tuple(side * 4 for side in shape),  # type: ignore[arg-type]
        offset_vox=(0, 0, 0),
        spacing_mm=SPACING,
        affine=np.diag([*SPACING, 1.0]),
        name="scan",
        metadata={},
    )


def moved(one: Embedding, steps: tuple[int, int, int]) -> Embedding:
    """The same anatomy some tokens further on; what comes in at the edge is new."""
    fresh = embedding(tuple(one.features.shape[1:]), seed=9)  # type: ignore[arg-type]
    features = torch.roll(one.features, steps, (1, 2, 3))
    for axis, step in enumerate(steps, start=1):
        index = torch.arange(features.shape[axis])
        edge = index < step if step >= 0 else index >= features.shape[axis] + step
        features.index_copy_(axis, index[edge], fresh.features.index_select(axis, index[edge]))
    return replace(one, features=features)


def test_identical_scans_match_identically() -> None:
    one = embedding()
    pairs = match_embeddings(one, one).pairs()
    assert (pairs.token_a == pairs.token_b).all()
    assert pairs.mutual.all()
    assert pairs.confidence.min() > 0.9
    np.testing.assert_allclose(pairs.mm_a, pairs.mm_b, atol=0.2)
    np.testing.assert_allclose(pairs.mm_a, pairs.voxel_a * SPACING)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Plans with their dustbins, as they are solved."""
    solved: list[torch.Tensor] = []

    def solve(*arguments: Any, **more: Any) -> torch.Tensor:
        solved.append(assignment(*arguments, **more)[0])
        return solved[-1][None]

    monkeypatch.setattr("napari_s2dc.engine.match.assignment", solve)
    return solved


def off_by(plan: torch.Tensor) -> float:
    """How far rows and columns of tokens, dustbin included, are from 1 at most."""
    return max(float((plan.sum(axis)[:-1] - 1).abs().max()) for axis in (0, 1))


@pytest.mark.parametrize("other", ["moved", "new"])
def test_marginals_hold_and_no_gradient_is_kept(other: str, plans: list[torch.Tensor]) -> None:
    one = embedding()
    two = moved(one, (0, 2, -1)) if other == "moved" else embedding(seed=1)
    two.features.requires_grad_()
    match = match_embeddings(one, two)
    assert not match.mass.requires_grad
    assert off_by(plans[0]) < 1e-4


@pytest.mark.parametrize("temperature", [0.02, 0.005, 0.002])
def test_unrelated_patches_have_no_partner_however_low_the_temperature(
    temperature: float,
) -> None:
    # One pair is the same; all others are at right angles.
    unit = torch.eye(40)
    one, two = (
        replace(
            embedding((2, 2, 5)),
            features=torch.cat([unit[:1], rest]).mT.reshape(40, 2, 2, 5).half(),
        )
        for rest in (unit[1:20], unit[20:39])
    )
    match = match_embeddings(one, two, MatchSettings(temperature=temperature, prior=None))
    assert match.mass[0, 0] > 0.9
    assert match.mass[1:].sum(1).max() < 1e-3
    assert match.unmatched()[0].flatten()[1:].min() > 1 - 1e-3


def test_double_precision_counts_in_the_memory() -> None:
    one = embedding()
    memory = 336 * 336 * 50
    assert match_embeddings(one, one, MatchSettings(memory_bytes=memory)).candidates is None
    low = MatchSettings(memory_bytes=memory, temperature=0.005)
    assert match_embeddings(one, one, low).candidates is not None


@pytest.mark.parametrize("prior", [None, 0.5])
def test_a_known_move_is_found_and_what_left_is_unmatched(prior: float | None) -> None:
    one = embedding()
    two = moved(one, (0, 2, -1))
    match = match_embeddings(one, two, MatchSettings(prior=prior))
    pairs = match.pairs()
    stays = (pairs.token_a[:, 1] < 6) & (pairs.token_a[:, 2] > 0)
    right = (pairs.token_b == np.add(pairs.token_a, (0, 2, -1))).all(1)
    assert right[stays].mean() > 0.98
    assert not right[~stays].any()
    lost, new = match.unmatched()
    assert lost[:, 6:].mean() > lost[:, :6, 1:].mean() + 0.3
    assert new[:, :2].mean() > new[:, 2:, :-1].mean() + 0.3
    row = match.row((1, 1, 3))
    assert np.unravel_index(int(row.argmax()), row.shape) == (1, 3, 2)


def test_coarse_to_fine_finds_what_the_whole_plan_finds() -> None:
    # Features that vary slowly, as an encoder's do, so that cells of tokens have a meaning.
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(1, 24, 5, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=(10, 12, 10), mode="trilinear")[0]
    one = replace(embedding((10, 12, 10)), features=smooth.half())
    two = replace(
        one, features=(smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).half()
    )
    whole = match_embeddings(one, two)
    parts = match_embeddings(one, two, MatchSettings(memory_bytes=4_000_000))
    assert whole.candidates is None
    assert parts.candidates is not None
    # The memory says how many partners are looked at.
    assert parts.candidates.shape[1] < 8 * 48
    assert parts.candidates.nbytes * 10 <= 4_000_000
    fewer = match_embeddings(one, two, MatchSettings(memory_bytes=2_000_000))
    assert fewer.candidates is not None
    assert fewer.candidates.shape[1] < parts.candidates.shape[1]

    def accuracy(match: object) -> float:
        pairs = match.pairs()  # type: ignore[attr-defined]
        return float((pairs.token_a == pairs.token_b).all(1).mean())

    assert accuracy(parts) > accuracy(whole) - 0.02
    assert accuracy(whole) > 0.8
    row = parts.row((4, 5, 6))
    assert np.unravel_index(int(row.argmax()), row.shape) == (4, 5, 6)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_a_sparse_plan_one_row_is_the_best_of_each_column(threads: int) -> None:
    # All rows go to one column, with masses that differ in the last digits or not at all.
    one = embedding((20, 20, 20))
    index = torch.arange(8000)
    mass = 1e-4 * (1 + torch.arange(8000.0) % 1000)[:, None]
    match = Match(one, one, index, index, torch.full((8000, 1), 7, dtype=torch.int32), mass)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairs = match.pairs()
    finally:
        torch.set_num_threads(before)
    assert pairs.mutual.sum() == 1
    (best,) = pairs.token_a[pairs.mutual]
    assert best.tolist() == [2, 9, 19]  # 999, the first of the largest
    assert match.pairs() is pairs


def test_mutual_pairs_of_coarse_and_whole_plans_are_the_same() -> None:
    one, two = embedding(), embedding(seed=1)
    whole = match_embeddings(one, two)
    order = torch.argsort(torch.rand(whole.mass.shape), dim=1)
    sparse = replace(whole, candidates=order.int(), mass=whole.mass.gather(1, order))
    pairs, same = whole.pairs(), sparse.pairs()
    assert 0 < pairs.mutual.sum() < len(pairs)
    np.testing.assert_array_equal(pairs.mutual, same.mutual)
    np.testing.assert_array_equal(pairs.token_b, same.token_b)


def test_background_takes_no_part() -> None:
    one = embedding()
    one.foreground[:3] = False
    match = match_embeddings(one, embedding())
    assert match.pairs().token_a[:, 0].min() == 3
    assert match.row((0, 0, 0)).sum() == 0
    assert match.unmatched()[0][:3].isnan().all()


def test_scans_that_cannot_be_matched() -> None:
    one = embedding()
    empty = replace(one, foreground=torch.zeros_like(one.foreground))
    with pytest.raises(S2DCError, match="no foreground"):
        match_embeddings(one, empty)
    with pytest.raises(S2DCError, match="different encoders"):
        match_embeddings(one, embedding(channels=12))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (0.0, -1.0, np.nan, np.inf)),
        ("unmatched_similarity", (np.nan, np.inf, -np.inf)),
        ("prior", (0.0, np.nan, np.inf)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=name.split("_")[-1]):
            MatchSettings(**{name: value})


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


def test_pairs_bend_the_map_of_scans_with_thick_slices() -> None:
    # Slices of 20 voxels' width: in mm, the nearest 64 patches lie in one slice.
    affine = np.diag([20.0, 1.0, 1.0, 1.0])
    one = replace(embedding((6, 12, 12)), spacing_mm=(20.0, 1.0, 1.0), affine=affine)
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan = Volume(texture, affine)
    labels = Volume((np.indices(one.shape)[1] // 12).astype(np.uint8), affine)
    pairs_alone = TransferSettings(bend_by_pairs=True, registration=RegistrationSettings(0, 0))
    found = finish(
        transfer_labels(match_embeddings(one, one), labels, scan, scan, pairs_alone)
    ).labels.array
    assert (found == labels.array).mean() > 0.98


@pytest.mark.parametrize("spacings", [(0.15, 1.5), (5.0, 1.0)])
def test_the_start_fits_scans_of_other_spacings_and_leaves_wrong_pairs_out(
    spacings: tuple[float, float],
) -> None:
    one, target = (
        replace(embedding((8, 8, 8)), spacing_mm=(side,) * 3, affine=np.diag([side] * 3 + [1.0]))
        for side in spacings
    )
    two = replace(target, features=moved(embedding((8, 8, 8)), (0, 1, 0)).features)
    match = match_embeddings(one, two)
    # A quarter of the patches is sure of a place that is wrong, but no partner is of theirs.
    wrong = torch.arange(0, len(match.mass), 4)
    mass = match.mass.clone()
    mass[wrong] = 0.0
    mass[wrong, torch.randint(512, (len(wrong),))] = 0.9
    match = replace(match, mass=mass)
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan, reference = (Volume(texture, each.affine) for each in (one, two))
    labels = Volume(np.ones(one.shape, np.uint8), one.affine)
    pairs_alone = TransferSettings(registration=RegistrationSettings(0, 0))
    found = finish(transfer_labels(match, labels, scan, reference, pairs_alone)).alignment
    scale = spacings[1] / spacings[0]
    points = np.random.default_rng(0).uniform(0, 31, (50, 3))
    expected = np.add(points, (0, 4, 0)) * spacings[1]
    off_vox = np.abs(found.apply(points * spacings[0]) - expected) / spacings[1]
    assert off_vox.max() < 0.5
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(scale**3, rel=0.05)
    assert found.matrix.tolist() == assess(match).alignment.matrix.tolist()  # type: ignore[union-attr]
    assert found.inliers.sum() > 0.9 * 384 * 7 / 8


def test_labels_are_carried_and_fused() -> None:
    one = embedding()
    two = moved(one, (0, 1, 0))
    labels = np.zeros(one.shape, np.uint8)
    labels[4:16, 4:20, 8:20] = 3
    affine = np.diag([*SPACING, 1.0])
    texture = np.random.default_rng(0).normal(100, 20, one.shape).astype(np.float32)
    scan = Volume(texture, affine)
    target = Volume(np.roll(texture, 4, axis=1), affine)
    match = match_embeddings(one, two)
    pairs_alone = TransferSettings(registration=RegistrationSettings(0, 0))
    carried = finish(transfer_labels(match, Volume(labels, affine), scan, target, pairs_alone))
    expected = np.zeros_like(labels)
    expected[4:16, 8:24, 8:20] = 3
    overlap = (carried.labels.array == expected).mean()
    assert overlap > 0.97
    assert set(np.unique(carried.labels.array)) == {0, 3}
    assert carried.confidence.shape == one.shape
    assert 0.5 < carried.confidence.mean() <= 1
    wrong = replace(
        carried,
        labels=Volume(np.zeros_like(labels), affine),
        confidence=np.full(one.shape, 0.1, np.float32),
    )
    fused = fuse([wrong, carried, carried])
    assert (fused.labels.array == carried.labels.array).all()
    expected_mean = (
        2 * carried.confidence + np.where(carried.labels.array == 0, wrong.confidence, 0)
    ) / 3
    np.testing.assert_allclose(fused.confidence, expected_mean, atol=1e-6)


def test_fused_labels_keep_large_numbers() -> None:
    affine = np.eye(4)
    sure = np.ones((2, 2, 2), np.float32)

    def carried(label: int, kind: type, confidence: float) -> Transfer:
        labels = Volume(np.full((2, 2, 2), label, kind), affine)
        return Transfer(labels, confidence * sure, Alignment(affine, np.ones(1, bool), 0.0))

    fused = fuse([carried(7, np.uint8, 0.4), carried(70_000, np.int32, 0.9)])
    assert (fused.labels.array == 70_000).all()
    # Two that are hardly sure do not become sure by agreeing.
    np.testing.assert_allclose(
        fuse([carried(7, np.uint8, 0.01), carried(7, np.uint8, 0.01)]).confidence, 0.01
    )


def test_pairs_in_one_plane_are_refused_in_words_unless_the_map_is_rigid() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (60, 3))
    points[:, 0] = 8.0
    with pytest.raises(S2DCError, match="one plane"):
        fit_alignment(points, points + 3.0, tolerance_mm=2.0)
    rigid = fit_alignment(points, points + 3.0, tolerance_mm=2.0, kind="rigid")
    np.testing.assert_allclose(rigid.matrix[:3, 3], 3.0, atol=1e-6)


def test_partners_without_mass_stay_where_they_are() -> None:
    one, two = embedding(), embedding(seed=1)
    pairs = match_embeddings(one, two, MatchSettings(temperature=0.003)).pairs()
    centre = (pairs.token_b + 0.5) * 4 - 0.5
    assert np.linalg.norm(pairs.voxel_b - centre, axis=1).max() <= 1.5 * 4


def test_a_row_of_a_coarse_match_has_the_mass_of_its_pair() -> None:
    one = embedding()
    match = match_embeddings(one, one, MatchSettings(memory_bytes=20_000))
    assert match.candidates is not None
    for token in ((0, 0, 0), (3, 4, 5)):
        row = match.row(token)
        assert float(row[token]) > 0.9
        assert float(row.sum()) <= 1 + 1e-4


def test_positions_and_confidence_of_a_region_are_those_of_the_whole_scan() -> None:
    whole = embedding()
    region = replace(
        whole,
        features=whole.features[:, 2:5, 1:6, 3:6],
        foreground=whole.foreground[2:5, 1:6, 3:6],
        shape=(12, 20, 12),
        offset_vox=(8, 4, 12),
    )
    match = match_embeddings(whole, region, MatchSettings(prior=None))
    pairs = match.pairs().best(least=0.9)
    assert len(pairs) >= 40
    np.testing.assert_array_equal(pairs.token_a, pairs.token_b + np.array([2, 1, 3]))
    np.testing.assert_allclose(pairs.mm_a, pairs.mm_b, atol=0.3)

    affine = np.diag([*SPACING, 1.0])
    texture = np.random.default_rng(0).normal(100, 20, whole.shape).astype(np.float32)
    scan = Volume(texture, affine)
    labels = Volume((texture > 100).astype(np.uint8), affine)
    for settings in (RegistrationSettings(0, 0), RegistrationSettings(20, 0, feature_weight=5.0)):
        carried = finish(
            transfer_labels(match, labels, scan, scan, TransferSettings(registration=settings))
        )
        sure = carried.confidence > 0
        assert sure[8:20, 4:24, 12:24].mean() > 0.9
        sure[8:20, 4:24, 12:24] = False
        assert not sure.any()
        inner = (slice(9, 19), slice(5, 23), slice(13, 23))
        assert (carried.labels.array[inner] == labels.array[inner]).mean() > 0.9


def test_a_sparse_plan_with_all_candidates_is_the_whole_plan() -> None:
    settings = MatchSettings(tolerance=1e-6, iterations=2000)
    scores = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)) * 10 + settings.dustbin
    whole = plan_of(scores.clone(), settings)
    candidates = torch.arange(20).expand(30, 20)
    torch.testing.assert_close(
        sparse_plan(scores, candidates, 20, settings), whole, rtol=0, atol=1e-4
    )
    # Without its best candidate, a row goes elsewhere, and everybody still keeps to one share.
    best = scores.argmax(1, keepdim=True)
    found = sparse_plan(scores.scatter(1, best, -torch.inf), candidates, 20, settings)
    assert not found.gather(1, best).any()
    assert found.sum(0).max() <= 1 + 1e-4
    assert found.sum(1).max() <= 1 + 1e-4
