"""One training step: what is trained, how the teacher follows, what is logged."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from s2dc_train.checks import check_configuration
from s2dc_train.config import RunConfig, run_config
from s2dc_train.module import S2DCModule
from torch.utils.data import DataLoader

from napari_s2dc.errors import ConfigurationError

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{known}")
    for known in (
        ".*does not have many workers",
        ".*treespec, LeafSpec",
        "The number of training batches",
    )
]


def settings(**changes: Any) -> RunConfig:
    """Settings of the smallest network; ``section__field`` names what differs."""
    values: dict[str, Any] = {
        "data": {"path": "scans", "crop_size": 32, "grid": [1, 1, 2]},
        "model": {
            "window_size": 2,
            "head_hidden": 16,
            "head_output": 8,
            "queue_length": 7,
            "teacher_momentum": 0.9,
        },
        "optimizer": {"warmup_steps": 2},
        "trainer": {"max_steps": 3, "log_every": 1},
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        values.setdefault(section, {})[field] = value
    return run_config(values)


class Remember(Logger):
    """Keeps what is logged."""

    name = ""
    version = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def samples(count: int, shape: tuple[int, int, int] = (32, 32, 64)) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.rand(1, *shape, generator=generator),
            "valid": torch.ones(shape, dtype=torch.bool),
            "foreground": torch.ones(shape, dtype=torch.bool),
            "sample": number,
        }
        for number in range(count)
    ]


def fit(module: S2DCModule, data: list[dict[str, Any]], **more: Any) -> Remember:
    log = Remember()
    config = module.config
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=config.trainer.max_steps,
        accumulate_grad_batches=config.trainer.accumulate,
        logger=log,
        **more,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=config.data.batch_size))  # type: ignore[arg-type]
    return log


def copy_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_teacher_follows_after_the_optimizer_step() -> None:
    module = S2DCModule(settings(trainer__max_steps=1))
    student, teacher = copy_of(module.student), copy_of(module.teacher)
    assert all(torch.equal(a, b) for a, b in zip(student, teacher, strict=True))
    fit(module, samples(1))
    moved = 0
    trained = zip(student, module.student.parameters(), module.teacher.parameters(), strict=True)
    for old, new, averaged in trained:
        # Had the teacher moved before the step, it would be where the student began.
        assert torch.allclose(averaged, 0.9 * old + 0.1 * new, atol=1e-7)
        moved += not torch.equal(old, new)
    assert moved > 50
    assert all(parameter.grad is None for parameter in module.teacher.parameters())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


def test_every_trained_parameter_gets_a_gradient() -> None:
    """DDP refuses parameters that a step leaves out."""
    for changes in ({}, {"loss__global_contrast": 0.0}, {"loss__learn_dustbin": False}):
        module = S2DCModule(settings(trainer__max_steps=1, **changes))
        fit(module, samples(1))
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        assert [name for name, parameter in named if parameter.grad is None] == []
        assert module.dustbin.requires_grad == ("loss__learn_dustbin" not in changes)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_at_every_precision(precision: str) -> None:
    module = S2DCModule(settings(trainer__max_steps=1, trainer__precision=precision))
    fit(module, samples(1), precision=precision, gradient_clip_val=0.01)
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_the_optimizer_is_fused_unless_gradients_are_scaled() -> None:
    for precision, fused in (("auto", True), ("bf16-mixed", True), ("16-mixed", False)):
        optimizer = S2DCModule(settings(trainer__precision=precision)).configure_optimizers()[
            "optimizer"
        ]
        assert bool(optimizer.defaults["fused"]) is fused


def test_momentum_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"now": 0}
    monkeypatch.setattr(S2DCModule, "global_step", property(lambda self: steps["now"]))
    module = S2DCModule(settings(trainer__max_steps=100))
    assert module.teacher_momentum() == 0.9
    module.config.model.teacher_momentum_end = 1.0
    values = []
    for step in (0, 25, 50, 75, 100, 150):
        steps["now"] = step
        values.append(module.teacher_momentum())
    expected = [
        1 - 0.1 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1, 1)
    ]
    assert values == pytest.approx(expected)


def test_only_matrices_and_kernels_decay() -> None:
    module = S2DCModule(settings())
    built = module.configure_optimizers()
    decayed, free = built["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    free_names = {names[id(parameter)] for parameter in free["params"]}
    assert not decayed_names & free_names
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert decayed_names | free_names == trained
    assert not any(name.startswith("teacher.") for name in trained)
    assert "dustbin" in free_names
    assert any("relative_position_bias_table" in name for name in free_names)
    assert any("norm" in name for name in free_names)
    assert not any(
        word in name for name in decayed_names for word in ("bias", "norm1", "norm2", "dustbin")
    )
    assert "student.encoder.swin.patch_embed.proj.weight" in decayed_names


def test_learning_rate_warms_up_and_falls() -> None:
    module = S2DCModule(settings(trainer__max_steps=10, optimizer__warmup_steps=4))
    built = module.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([3e-4 * share for share in (0.25, 0.5, 0.75, 1.0)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(3e-6)


def test_logged_figures_belong_to_their_step() -> None:
    module = S2DCModule(settings(trainer__max_steps=4, trainer__log_every=2))
    rows = fit(module, samples(4)).rows
    assert [step for step, _ in rows] == [1, 3]
    for _, row in rows:
        names = {
            "loss",
            "patch_to_patch",
            "patch_to_structure",
            "global_contrast",
            "probability_true_pairs",
            "token_std",
            "head_effective_rank",
            "learning_rate",
            "dustbin",
        }
        assert names <= set(row)
        parts = row["patch_to_patch"] + row["patch_to_structure"] + row["global_contrast"]
        assert row["loss"] == pytest.approx(parts / 2, rel=1e-5)
        assert 0 < row["probability_true_pairs"] < 1
        assert all(math.isfinite(value) for value in row.values())


def test_queue_takes_one_key_of_each_volume() -> None:
    module = S2DCModule(settings(trainer__max_steps=2, data__batch_size=2))
    fit(module, samples(4))
    assert int(module.queue.filled.sum()) == 4
    assert int(module.queue.position) == 4


def test_without_the_global_loss_nothing_is_spent_on_it() -> None:
    module = S2DCModule(
        settings(trainer__max_steps=1, loss__global_contrast=0.0, data__grid=[1, 1, 1])
    )
    before = copy_of(module.student.contrast_head)
    for branch in (module.student, module.teacher):
        for stage in range(module.config.model.token_stage, 4):
            setattr(branch.encoder.swin, f"layers{stage + 1}", None)
    log = fit(module, samples(1, (32, 32, 32)))
    assert "global_contrast" not in log.rows[0][1]
    after = copy_of(module.student.contrast_head)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not module.queue.filled.any()


def test_a_volume_of_padding_only_gives_no_gradient_and_no_nan() -> None:
    module = S2DCModule(settings(trainer__max_steps=1))
    empty = samples(1)
    empty[0] |= {
        name: torch.zeros_like(empty[0][name]) for name in ("image", "valid", "foreground")
    }
    row = fit(module, empty).rows[0][1]
    assert row["patch_to_patch"] == 0
    assert math.isfinite(row["loss"])
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data__crop_size": 24}, "multiple of 16"),
        ({"data__grid": [1, 1, 1]}, "at least two crops"),
        ({"model__token_stage": 5}, "model.token_stage is 5"),
        ({"data__crop_size": 48, "model__token_stage": 4}, "token side 32"),
        ({"views__scale_min": 1.5}, "views.scale_min is larger"),
        (
            {
                "loss__patch_to_patch": 0.0,
                "loss__patch_to_structure": 0.0,
                "loss__global_contrast": 0.0,
            },
            "All three losses",
        ),
        ({"loss__global_temperature": 0.0}, "loss.global_temperature must be above 0"),
        ({"views__intensity_scale": 2.0}, "views.intensity_scale must be between"),
        ({"trainer__accumulate": 0}, "trainer.accumulate must be at least 1"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], part: str) -> None:
    check_configuration(settings())
    with pytest.raises(ConfigurationError, match=part):
        check_configuration(settings(**changes))


def test_the_reference_preset_projects_whole_slices() -> None:
    module = S2DCModule(settings(model__head_normalization="slices"))
    tokens = torch.randn(2, module.student.encoder.stage_channels[2], 4, 4, 4)
    valid = torch.ones(4, 32, dtype=torch.bool)
    projected = module._project(module.student, tokens, valid)
    assert projected.shape == (4, 32, 8)
    assert torch.allclose(projected.norm(dim=-1), torch.ones(4, 32), atol=1e-5)
    # A slice does not depend on the others.
    tokens[:, :, 1:] += 3
    assert torch.allclose(module._project(module.student, tokens, valid)[0], projected[0])
