"""Planes of probabilities become labels on the grid that is wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_s2dc.engine.finetune_planes import ProbabilityPlanes


def feed(planes: ProbabilityPlanes, probabilities: torch.Tensor, sizes: list[int]) -> None:
    for part in probabilities.split(sizes, dim=1):
        planes.add(part)
    planes.close()


def some_probabilities(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (3 * torch.randn(*shape)).softmax(0)


@pytest.mark.parametrize("sizes", [[6], [1, 4, 1]])
def test_on_the_same_grid_the_most_probable_wins(sizes: list[int]) -> None:
    probabilities = some_probabilities(4, 6, 5, 7)
    whole = tuple(slice(0, side) for side in (6, 5, 7))
    planes = ProbabilityPlanes(4, [np.arange(n) for n in (6, 5, 7)], whole)
    feed(planes, probabilities, sizes)
    assert np.array_equal(planes.found, probabilities.argmax(0))
    entropy = torch.special.entr(probabilities).sum(0) / np.log(4)
    assert np.allclose(planes.uncertainty, entropy, atol=1e-3)
    assert planes.found.dtype == np.uint8
    assert planes.uncertainty.dtype == np.float16


@pytest.mark.parametrize("sizes", [[6], [2, 3, 1]])
def test_on_a_finer_grid_probabilities_are_interpolated(sizes: list[int]) -> None:
    probabilities = some_probabilities(3, 6, 5, 7)
    fine = (12, 10, 14)
    places = [(np.arange(n) + 0.5) / 2 - 0.5 for n in fine]
    planes = ProbabilityPlanes(3, places, tuple(slice(0, n // 2) for n in fine))
    feed(planes, probabilities, sizes)
    expected = F.interpolate(probabilities[None], fine, mode="trilinear", align_corners=False)[0]
    assert np.array_equal(planes.found, expected.argmax(0))
    assert planes.uncertainty == pytest.approx(
        (torch.special.entr(expected).sum(0) / np.log(3)).numpy(), abs=2e-3
    )


def test_outside_the_box_is_background() -> None:
    probabilities = torch.zeros(2, 2, 3, 2)
    probabilities[1] = 1
    planes = ProbabilityPlanes(
        2, [np.arange(n) for n in (6, 5, 7)], (slice(1, 3), slice(2, 5), slice(4, 6))
    )
    feed(planes, probabilities, [2])
    expected = np.zeros((6, 5, 7))
    expected[1:3, 2:5, 4:6] = 1
    assert np.array_equal(planes.found, expected)
    assert not planes.uncertainty.any()


def test_without_a_box_there_is_nothing() -> None:
    planes = ProbabilityPlanes(300, [np.arange(2)] * 3, None)
    planes.close()
    assert planes.found.dtype == np.uint16
    assert not planes.found.any()
