"""Random walks against the linear system that they solve."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.random_walk import random_walk


def dense(prior: np.ndarray, certainty: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Solve the system with a full matrix."""
    shape = image.shape
    number = {place: n for n, place in enumerate(np.ndindex(shape))}
    pairs = [
        (place, after)
        for place, axis in product(np.ndindex(shape), range(3))
        if (after := tuple(p + (a == axis) for a, p in enumerate(place))) in number
    ]
    mean = np.mean([(image[a] - image[b]) ** 2 for a, b in pairs])
    matrix = np.diag(certainty.ravel().astype(float))
    for a, b in pairs:
        weight = np.exp(-25 * (image[a] - image[b]) ** 2 / mean) + 1e-4
        i, j = number[a], number[b]
        matrix[[i, j], [i, j]] += weight
        matrix[[i, j], [j, i]] -= weight
    right = (certainty * prior).reshape(len(prior), -1)
    return np.linalg.solve(matrix, right.T).T.reshape(prior.shape)


def test_it_solves_the_system() -> None:
    random = np.random.default_rng(0)
    image = random.normal(size=(4, 5, 3)).astype(np.float32)
    prior = random.dirichlet(np.ones(3), size=image.shape).transpose(3, 0, 1, 2)
    certainty = random.uniform(0.01, 1, image.shape)
    found = finish(
        random_walk(
            torch.from_numpy(prior).float(),
            torch.from_numpy(certainty).float(),
            torch.from_numpy(image),
            iterations=80,
        )
    )
    np.testing.assert_allclose(found, dense(prior, certainty, image), atol=1e-4)


def test_a_seed_fills_its_region_and_stops_at_an_edge() -> None:
    image = torch.zeros(1, 12, 20)  # a single plane
    image[:, :, 10:] = 1
    image += 0.01 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    prior = torch.full((2, *image.shape), 0.5)
    certainty = torch.full(image.shape, 1e-4)
    for output, (y, x) in enumerate(((2, 3), (9, 15))):
        prior[:, 0, y, x] = torch.eye(2)[output]
        certainty[0, y, x] = 100
    found = finish(random_walk(prior, certainty, image, iterations=100))
    assert (found[0, :, :, :10] > 0.5).all()
    assert (found[1, :, :, 10:] > 0.5).all()
    torch.testing.assert_close(found.sum(0), torch.ones(image.shape))


def test_equal_intensities_are_no_problem() -> None:
    prior = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    prior /= prior.sum(0)
    found = finish(
        random_walk(prior, torch.full((2, 3, 4), 0.1), torch.zeros(2, 3, 4), iterations=50)
    )
    assert torch.isfinite(found).all()
    assert found.std() < prior.std()
