"""Passes over the crops of a step: the same loss and gradient in less memory."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from s2dc_train.config import run_config
from s2dc_train.module import S2DCModule
from s2dc_train.passes import (
    Passes,
    memory_budget,
    plan_passes,
    saved_bytes,
    state_bytes,
)

CPU = torch.device("cpu")


def step(memory_gb: float, crops_per_pass: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step of a fresh module on four crops."""
    torch.manual_seed(0)
    module = S2DCModule(
        run_config(
            {
                "data": {"path": "scans", "crop_size": 32, "grid": [1, 2, 2]},
                "model": {
                    "window_size": 2,
                    "head_hidden": 16,
                    "head_output": 8,
                    "crops_per_pass": crops_per_pass,
                },
                "trainer": {"memory_gb": memory_gb, "log_every": 1000},
            }
        )
    )
    module.trainer = SimpleNamespace(world_size=1, global_step=0)  # type: ignore[assignment]
    shape = (32, 64, 64)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.rand(1, 1, *shape, generator=generator),
        "valid": torch.ones(1, *shape, dtype=torch.bool),
        "foreground": torch.ones(1, *shape, dtype=torch.bool),
        "sample": torch.tensor([3]),
    }
    loss = module.training_step(batch, 0)
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


@pytest.mark.parametrize("crops_per_pass", [0, 1, 3])
def test_a_step_without_room_for_activations_has_the_same_loss_and_gradient(
    crops_per_pass: int,
) -> None:
    expected_loss, expected = step(100.0)
    loss, gradients = step(1e-6, crops_per_pass)
    assert loss == pytest.approx(expected_loss, rel=1e-5)  # of one rounding to another
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).abs().max()
        # Some biases before a normalisation have no gradient but rounding.
        assert difference <= 1e-3 * gradient.abs().max() + 1e-7, name


def test_what_is_kept_changes_not_one_bit() -> None:
    kept, dropped = step(100.0, 1), step(1e-6, 1)
    assert kept[0] == dropped[0]
    assert all(torch.equal(kept[1][name], dropped[1][name]) for name in kept[1])


def test_dropped_passes_save_nothing_but_their_crops() -> None:
    module = S2DCModule(run_config({"data": {"crop_size": 32}, "model": {"window_size": 2}}))
    crops = torch.rand(3, 1, 32, 32, 32)

    def saved(kept: int) -> int:
        return saved_bytes(
            lambda: module.student.encode(crops, Passes(together=1, kept=kept)), module
        )

    all_kept, one_kept, none_kept = saved(3), saved(1), saved(0)
    assert none_kept < 0.1 * all_kept
    assert one_kept == pytest.approx(all_kept / 3, rel=0.1)


def test_saved_bytes_leaves_weights_out() -> None:
    layer = torch.nn.Linear(100, 100)
    rows = torch.rand(8, 100)
    # The input, for the gradient of the weights, and the output of the exponential.
    assert saved_bytes(lambda: layer(rows).exp(), layer) == 2 * 8 * 100 * 4


def test_saved_bytes_lets_go_of_what_it_counted() -> None:
    outputs = []

    def forward() -> None:
        # Of which the graph holds the result, as it does of most of an encoder.
        result = torch.rand(8, requires_grad=True).exp()
        outputs.append(weakref.ref(result))

    saved_bytes(forward, torch.nn.Identity())
    assert outputs[0]() is None


@pytest.mark.parametrize(
    ("free_crops", "on_gpu", "expected"),
    [
        (100.0, False, Passes(1, 16)),  # everything fits
        (9.5, False, Passes(1, 7)),  # and room for what a pass takes for a moment
        (0.5, False, Passes(1, 0)),
        (-3.0, False, Passes(1, 0)),
        (48.0, True, Passes(16, 1)),
        (16.0, True, Passes(2, 6)),
        (3.0, True, Passes(1, 1)),
    ],
)
def test_passes_follow_the_room(free_crops: float, on_gpu: bool, expected: Passes) -> None:
    found = plan_passes(16, 96, 1e9, free_crops * 1e9, on_gpu=on_gpu)
    assert found == expected


def test_small_crops_share_a_pass_on_a_cpu() -> None:
    assert plan_passes(4, 48, 1e6, 1e9, on_gpu=False) == Passes(4, 1)
    assert plan_passes(16, 48, 1e6, 1e9, on_gpu=False) == Passes(8, 2)
    assert plan_passes(16, 48, 1e6, 1e9, on_gpu=False, together=5) == Passes(5, 4)


def test_the_last_passes_are_kept() -> None:
    parts = Passes(together=2, kept=1).split(torch.arange(5))
    assert [(part.tolist(), kept) for part, kept in parts] == [
        ([0, 1], False),
        ([2, 3], False),
        ([4], True),
    ]


def test_the_budget_is_what_was_asked_or_a_share_of_the_machine() -> None:
    assert memory_budget(8.0, CPU) == 8e9
    assert 0.1e9 < memory_budget(0.0, CPU) < 1e13


def test_state_counts_optimizer_and_gradients_of_trained_weights_only() -> None:
    layer = torch.nn.Linear(1000, 1000, bias=False)
    trained = state_bytes(layer, CPU)
    layer.requires_grad_(False)
    assert trained - state_bytes(layer, CPU) == 3 * 4e6
