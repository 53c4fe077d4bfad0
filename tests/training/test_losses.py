"""Losses against the golden numbers, and what masks and batching mean."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from s2dc_train.losses import (
    global_contrast,
    match_loss,
    patch_to_patch,
    patch_to_structure,
)

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in np.load(DATA / name).items()}


def relative(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert found is not None
    scale = expected.abs().max().clamp(min=1e-12)
    return float(((found - expected).abs().max() / scale).detach())


@pytest.mark.parametrize("case", ["", "_zerotrue_pairs", "_onetrue_pairs", "_clamped"])
def test_golden_match_loss(case: str) -> None:
    golden = load("match_loss_16.npz")
    true = golden["true_pairs"]
    if case == "_zerotrue_pairs":
        true = torch.zeros_like(true)
    elif case == "_onetrue_pairs":
        true = torch.ones_like(true)
    key = "assignment_clamped" if case == "_clamped" else "assignment"
    plan = golden[key].requires_grad_()
    loss = match_loss(plan, true)
    loss.total.backward()
    assert relative(loss.total, golden["loss" + case]) <= 1e-6
    assert relative(loss.positive, golden["pos" + case]) <= 1e-6
    assert relative(loss.negative, golden["neg" + case]) <= 1e-6
    assert relative(plan.grad, golden["grad_assignment" + case]) <= 1e-6


def test_golden_patch_to_patch() -> None:
    golden = load("patch_to_patch.npz")
    query, key = golden["q"].requires_grad_(), golden["k"].requires_grad_()
    dustbin = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    loss = patch_to_patch(query, key, golden["true_pairs"], temperature=1.0, dustbin=dustbin)
    loss.total.backward()
    assert relative(loss.total, golden["sinkhorn_total"]) <= 1e-6
    assert relative(loss.positive, golden["sinkhorn_pos"]) <= 1e-6
    assert relative(loss.negative, golden["sinkhorn_neg"]) <= 1e-6
    assert relative(query.grad, golden["sinkhorn_grad_q"]) <= 1e-6
    assert relative(key.grad, golden["sinkhorn_grad_k"]) <= 1e-6
    assert relative(dustbin.grad, golden["sinkhorn_grad_binscore"]) <= 1e-6


def test_golden_patch_to_structure() -> None:
    golden = load("patch_to_structure.npz")
    query, key = golden["q"].requires_grad_(), golden["k"].requires_grad_()
    loss = patch_to_structure(query, key, golden["true_pairs"])
    loss.backward()
    assert relative(loss, golden["loss"]) <= 1e-6
    assert relative(query.grad, golden["grad_q"]) <= 1e-6
    assert relative(key.grad, golden["grad_k"]) <= 1e-6


@pytest.mark.parametrize("queue", [False, True])
def test_golden_contrast(queue: bool) -> None:
    golden = load("contrast.npz")
    query = golden["q"].requires_grad_()
    negatives = golden["all_k"][len(query) :]
    if queue:
        negatives = torch.cat([negatives, golden["queue"]])
    loss = global_contrast(
        query,
        golden["all_k"][: len(query)],
        negatives,
        temperature=float(golden["temperature"]),
        normalize=False,
    )
    loss.backward()
    case = "queue" if queue else "noqueue"
    assert relative(loss, golden[f"loss_{case}"]) <= 1e-6
    assert relative(query.grad, golden[f"grad_q_{case}"]) <= 1e-6


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def example(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    true = torch.eye(10, dtype=torch.bool).expand(batch, -1, -1).clone()
    true[:, 7:] = False
    true[0, 2] = False
    return unit(batch, 10, 16), unit(batch, 10, 16, seed=1), true


def test_a_batch_is_the_mean_of_its_problems() -> None:
    query, key, true = example()
    singles = [(query[i : i + 1], key[i : i + 1], true[i : i + 1]) for i in range(3)]
    matched = torch.stack([patch_to_patch(*single).total for single in singles]).mean()
    assert torch.isclose(patch_to_patch(query, key, true).total, matched)
    pulled = torch.stack([patch_to_structure(*single) for single in singles]).mean()
    assert torch.isclose(patch_to_structure(query, key, true), pulled)


def test_masked_tokens_count_as_if_absent() -> None:
    query, key, true = example()
    rows = torch.ones(3, 10, dtype=torch.bool)
    columns = torch.ones(3, 10, dtype=torch.bool)
    rows[:, [0, 4]] = False
    columns[:, [1, 9]] = False
    kept_rows = [1, 2, 3, 5, 6, 7, 8, 9]
    kept_columns = [0, 2, 3, 4, 5, 6, 7, 8]
    small = (query[:, kept_rows], key[:, kept_columns], true[:, kept_rows][:, :, kept_columns])
    masks = {"valid_query": rows, "valid_key": columns}
    found = patch_to_patch(query, key, true, iterations=1000, **masks)
    assert torch.isclose(found.total, patch_to_patch(*small, iterations=1000).total)
    assert torch.isclose(patch_to_structure(query, key, true, **masks), patch_to_structure(*small))


def test_problems_of_padding_alone_are_left_out_and_give_no_gradient() -> None:
    query, key, true = example()
    query.requires_grad_()
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[1] = False
    loss = patch_to_patch(query, key, true, valid_query=valid, valid_key=valid).total
    loss = loss + patch_to_structure(query, key, true, valid_query=valid, valid_key=valid)
    kept = [0, 2]
    expected = patch_to_patch(query[kept], key[kept], true[kept]).total
    expected = expected + patch_to_structure(query[kept], key[kept], true[kept])
    assert torch.isclose(loss, expected)
    loss.backward()
    assert query.grad is not None
    assert query.grad[1].abs().max() == 0
    nothing = torch.zeros(3, 10, dtype=torch.bool)
    masks = {"valid_query": nothing, "valid_key": nothing}
    empty = patch_to_patch(query, key, true, **masks).total
    assert (empty + patch_to_structure(query, key, true, **masks)).item() == 0


def test_right_features_cost_less_than_random_ones_at_low_temperature() -> None:
    query, key, _ = example()
    true = torch.eye(10, dtype=torch.bool).expand(3, -1, -1)
    right = patch_to_patch(query, query, true)
    assert right.total < 0.3 * patch_to_patch(query, key, true).total
    assert right.total < 0.3 * patch_to_patch(query, query, true, temperature=1.0).total


def test_float32_agrees() -> None:
    query, key, true = example()
    single = patch_to_patch(query.float(), key.float(), true)
    assert single.total.dtype == torch.float32
    assert torch.isclose(single.total.double(), patch_to_patch(query, key, true).total, rtol=1e-4)


def test_contrast_takes_one_set_of_negatives_for_each_query_and_masks_empty_slots() -> None:
    query, positive, negatives = unit(2, 8), unit(2, 8, seed=1), unit(5, 8, seed=2)
    shared = global_contrast(query, positive, negatives)
    own = global_contrast(query, positive, negatives.expand(2, -1, -1))
    assert torch.isclose(shared, own)
    padded = torch.cat([negatives, torch.zeros(3, 8, dtype=torch.float64)])
    filled = torch.tensor([True] * 5 + [False] * 3)
    assert torch.isclose(shared, global_contrast(query, positive, padded, valid_negatives=filled))
    assert not torch.isclose(shared, global_contrast(query, positive, padded))


def test_contrast_normalises_unless_told_otherwise() -> None:
    query, positive, negatives = unit(2, 8), unit(2, 8, seed=1), unit(5, 8, seed=2)
    assert torch.isclose(
        global_contrast(query * 5, positive * 3, negatives * 2),
        global_contrast(query, positive, negatives),
    )
    assert not torch.isclose(
        global_contrast(query * 5, positive * 3, negatives * 2, normalize=False),
        global_contrast(query, positive, negatives, normalize=False),
    )
