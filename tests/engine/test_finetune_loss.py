"""The loss of fine-tuning looks at labelled voxels and at nothing else."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.engine.finetune_loss import labelled_voxels, voxel_loss


def test_only_labelled_voxels_are_chosen() -> None:
    targets = torch.tensor([[-1, 0], [2, -1]])
    chosen = labelled_voxels(targets, 10, torch.Generator())
    assert chosen.tolist() == [1, 2]


def test_no_more_voxels_are_chosen_than_asked_for() -> None:
    targets = torch.zeros(1000, dtype=torch.long)
    targets[::2] = -1
    chosen = labelled_voxels(targets, 100, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == 100
    assert (chosen % 2 == 1).all()
    again = labelled_voxels(targets, 100, torch.Generator().manual_seed(0))
    assert torch.equal(chosen, again)


def test_loss_is_cross_entropy_and_dice() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]))
    targets = torch.tensor([0, 1, 1])
    entropy = -(2 * torch.tensor(0.5).log() + torch.tensor(0.75).log()) / 3
    dice = 2 * 1.25 / (1.75 + 2)
    assert voxel_loss(logits, targets).item() == pytest.approx(entropy.item() + 1 - dice, abs=1e-4)


def test_a_class_that_is_not_there_is_no_part_of_the_dice() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 3), torch.tensor([0, 1] * 25)
    with_more = torch.cat([logits, torch.full((50, 1), -50.0)], dim=1)
    assert voxel_loss(with_more, targets).item() == pytest.approx(
        voxel_loss(logits, targets).item(), abs=1e-5
    )


def test_background_alone_can_be_learned_from() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    voxel_loss(logits, torch.zeros(4, dtype=torch.long)).backward()
    assert (logits.grad[:, 0] < 0).all()
