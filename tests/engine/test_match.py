"""Matching: identical scans match identically, a known move is found, coarse agrees with fine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.registration import RegistrationSettings
from napari_s2dc.engine.transfer import TransferSettings, transfer_labels
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.transport import assignment
from napari_s2dc.volumes.volume import Volume
from tests.engine.random_features import SPACING, embedding, moved


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
    # Nearly nothing flows but into the dustbin, which iterations settle slowly.
    assert off_by(plans[0]) < (1e-4 if other == "moved" else 1e-3)


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
    settings = MatchSettings(temperature=temperature, prior=None, neighbours=0.0)
    match = match_embeddings(one, two, settings)
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
        ("neighbours", (-0.1, 1.1, np.nan)),
        ("unmatched_similarity", (np.nan, np.inf, -np.inf)),
        ("prior", (0.0, np.nan, np.inf)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=name.split("_")[-1]):
            MatchSettings(**{name: value})


def test_partners_without_mass_stay_where_they_are() -> None:
    one, two = embedding(), embedding(seed=1)
    pairs = match_embeddings(one, two, MatchSettings(temperature=0.003)).pairs()
    centre = (pairs.token_b + 0.5) * 4 - 0.5
    assert np.linalg.norm(pairs.voxel_b - centre, axis=1).max() <= 1.5 * 4


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
