"""The queue of past keys, the averaged teacher and the heads."""

from __future__ import annotations

import math

import pytest
import torch
from s2dc_train.losses import global_contrast
from s2dc_train.passes import Passes
from s2dc_train.student_teacher import (
    Branch,
    KeyQueue,
    ProjectionHead,
    SliceNorm,
    make_teacher,
    update_teacher,
)

from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder


def keys_numbered(first: int, count: int) -> torch.Tensor:
    """Keys that can be told apart: each holds its own number."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(-1, 3)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 8, 20])
@pytest.mark.parametrize("length", [1, 5, 7])
def test_queue_holds_the_newest_keys_at_any_batch_size(length: int, batch: int) -> None:
    queue = KeyQueue(length, 3)
    pushed = 0
    for _ in range(6):
        queue.push(keys_numbered(pushed, batch))
        pushed += batch
        expected = set(range(max(0, pushed - length), pushed))
        assert set(queue.keys[queue.filled, 0].int().tolist()) == expected
        assert int(queue.filled.sum()) == min(pushed, length)
        assert int(queue.position) == pushed % length
    # The slot overwritten next is the oldest one.
    oldest = float(queue.keys[:, 0].min())
    assert float(queue.keys[int(queue.position), 0]) == oldest


def test_queue_may_be_empty_or_absent() -> None:
    queue = KeyQueue(0, 3)
    queue.push(keys_numbered(0, 4))
    assert queue.keys.shape == (0, 3)
    queue = KeyQueue(4, 3)
    queue.push(keys_numbered(0, 0))
    assert not queue.filled.any()


def test_queue_is_part_of_the_checkpoint() -> None:
    queue = KeyQueue(5, 3)
    queue.push(keys_numbered(0, 3))
    copy = KeyQueue(5, 3)
    copy.load_state_dict(queue.state_dict())
    queue.push(keys_numbered(3, 4))
    copy.push(keys_numbered(3, 4))
    assert torch.equal(copy.keys, queue.keys)
    assert torch.equal(copy.filled, queue.filled)


def test_queue_keeps_no_gradient() -> None:
    queue = KeyQueue(5, 3)
    queue.push(keys_numbered(0, 2).clone().requires_grad_())
    assert not queue.keys.requires_grad


@pytest.mark.parametrize("normalize", [True, False])
def test_empty_slots_never_count(normalize: bool) -> None:
    query, positive = torch.randn(2, 3), torch.randn(2, 3)
    queue = KeyQueue(6, 3)

    def loss() -> float:
        return float(
            global_contrast(
                query,
                positive,
                queue.keys,
                normalize=normalize,
                valid_negatives=queue.filled,
            )
        )

    assert loss() == 0  # without negatives the positive is certain
    queue.push(torch.randn(2, 3))
    expected = float(global_contrast(query, positive, queue.keys[:2], normalize=normalize))
    assert loss() == pytest.approx(expected)
    assert loss() > 0


def test_teacher_moves_by_the_momentum_and_has_no_gradient() -> None:
    student = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    teacher = make_teacher(student)  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student[1].running_mean.fill_(4.0)  # type: ignore[union-attr]
    update_teacher(teacher, student, 0.9)
    for old, new, target in zip(before, teacher.parameters(), student.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * target, atol=1e-6)
    assert float(teacher[1].running_mean[0]) == 4.0  # type: ignore[index]
    update_teacher(teacher, student, 1.0)
    update_teacher(teacher, student, 0.0)
    for new, target in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(new, target)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_head_normalises_over_rows_in_training_and_afterwards(layers: int) -> None:
    head = ProjectionHead(5, 16, 4, layers)
    assert sum(isinstance(module, torch.nn.Linear) for module in head) == layers
    rows = torch.randn(64, 5) * 3 + 7
    for mode in (True, False):
        head.train(mode)
        projected = head(rows)
        assert torch.allclose(projected.mean(0), torch.zeros(4), atol=1e-4)
        assert torch.allclose(projected.var(0, unbiased=False), torch.ones(4), atol=0.05)
    assert list(head.buffers()) == []


def test_crops_are_encoded_one_by_one_however_they_are_batched() -> None:
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=2))
    branch = Branch(encoder, token_stage=2, hidden=8, outputs=4, layers=2)
    crops = torch.rand(3, 1, 32, 32, 32)
    with torch.no_grad():
        tokens, pooled = branch.encode(crops)
        again = branch.encode(crops, Passes(together=2, kept=1))
    assert tokens.shape == (3, 48, 4, 4, 4)
    assert pooled.shape == (3, 192)
    assert torch.allclose(tokens, again[0], atol=1e-5)
    assert torch.allclose(pooled, again[1], atol=1e-5)
    assert math.isfinite(float(tokens.sum()))


def test_reference_head_normalises_slices_as_the_released_code() -> None:
    head = ProjectionHead(5, 16, 4, 2, per_slice=True)
    rows = torch.randn(3, 12, 5) * 3 + 7
    expected = rows
    for layer in head:
        if isinstance(layer, SliceNorm):
            # Batch normalisation of (tokens, slices, features), slices taken for channels.
            norm = torch.nn.BatchNorm1d(3, affine=False)
            expected = norm(expected.transpose(0, 1)).transpose(0, 1)
        else:
            expected = layer(expected)
    assert torch.allclose(head(rows), expected, atol=1e-5)
