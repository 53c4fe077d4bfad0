"""The light head of Quick, and how it is fitted to features of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_s2dc.engine.progress import Steps, TrainingProgress
from napari_s2dc.engine.quick_features import Projection, features_of_voxel
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import S2DCError

__all__ = ["Examples", "QuickHead", "fit_head", "head_of", "tensors_of"]

_BATCH = 4096
_LEARNING_RATE = 4e-2
_WEIGHT_DECAY = 1e-3
_DROPOUT = 0.2
_MEASURE_EVERY = 10


class QuickHead(nn.Module):
    """Two layers that tell classes apart by the features of a voxel.

    Parameters
    ----------
    inputs, hidden, outputs : int
        Features; hidden units; classes and background.

    Attributes
    ----------
    centre, scale : Tensor (inputs,)
        Subtracted from features, then multiplied with them.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Logits (..., outputs) of features (..., inputs); units are off at random in training."""
        hidden = F.relu(self.first((features - self.centre) * self.scale))
        if dropout is not None:
            kept = torch.rand(hidden.shape, generator=dropout) >= _DROPOUT
            hidden = hidden * kept / (1 - _DROPOUT)
        logits: Tensor = self.second(hidden)
        return logits


def head_of(model: SegmentationModel) -> tuple[QuickHead, list[Projection]]:
    """Build the head of a model, and the projections of tokens that it was trained with.

    Raises
    ------
    KeyError, ValueError or RuntimeError
        The tensors of the model are no such head, or one for other features or classes.
    """
    tensors = dict(model.tensors)
    projections: list[Projection] = []
    while (mean := tensors.pop(f"mean.{len(projections)}", None)) is not None:
        projections.append(Projection(mean, tensors.pop(f"basis.{len(projections)}")))
    channels = dict(enumerate(model.encoder.stage_channels))
    wanted = [(channels[stage],) for stage in model.metadata["stages"]]
    if (
        not [one.mean.shape for one in projections]
        == wanted
        == [one.basis.shape[:-1] for one in projections]
    ):
        raise ValueError("the projections are not those of the stages of the encoder")
    hidden = len(tensors["first.weight"])
    inputs = features_of_voxel(model.metadata["smoothing_vox"], projections)
    head = QuickHead(inputs, hidden, model.outputs)
    head.load_state_dict(tensors)
    return head.eval(), projections


def tensors_of(head: QuickHead, projections: Sequence[Projection]) -> dict[str, Tensor]:
    """Name what :func:`head_of` reads."""
    tensors = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    for place, projection in enumerate(projections):
        tensors |= {f"mean.{place}": projection.mean, f"basis.{place}": projection.basis}
    return tensors


@dataclass(frozen=True, eq=False)
class Examples:
    """Voxels to learn from.

    Parameters
    ----------
    features : Tensor (N, F)
        At least one.
    targets : Tensor (N,)
        int64.
    weight : float
        Of their mean loss.
    class_weights : Tensor (outputs,), optional
        Of voxels, by their class.
    """

    features: Tensor
    targets: Tensor
    weight: float = 1.0
    class_weights: Tensor | None = None


def fit_head(
    head: QuickHead, examples: Sequence[Examples], steps: int, random: torch.Generator
) -> Steps[float]:
    """Train a head on random examples of every kind in each step.

    Parameters
    ----------
    head : QuickHead
        Changed.
    examples : sequence of Examples
        Their losses are added.
    steps : int
        Of the optimiser.
    random : torch.Generator
        Draws examples and what is dropped.

    Yields
    ------
    TrainingProgress
        After every step; Dice, every few, is that of the first kind in the step.

    Returns
    -------
    float
        The last loss.

    Raises
    ------
    S2DCError
        The loss is no number.
    """
    optimiser = torch.optim.AdamW(head.parameters(), weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _LEARNING_RATE, total_steps=max(2, steps)
    )
    loss = math.nan
    for step in range(1, steps + 1):
        errors, judged = [], None
        for kind in examples:
            chosen = _some(len(kind.targets), random)
            truth, logits = kind.targets[chosen], head(kind.features[chosen], random)
            error = F.cross_entropy(logits, truth, weight=kind.class_weights)
            errors.append(kind.weight * error)
            judged = judged or (logits.detach(), truth)
        error = torch.stack(errors).sum()
        loss = float(error.detach())
        if not math.isfinite(loss):
            raise S2DCError(
                f"The loss was no number at step {step}.",
                "Check the scan for values that are no numbers, or train on other labels.",
            )
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
        measured = step % _MEASURE_EVERY == 0 or step == steps
        dice = _dice(*judged) if measured and judged else None
        yield TrainingProgress(step, steps, "steps", loss, dice)
    return loss


def _some(number: int, random: torch.Generator) -> Tensor:
    """Draw a batch, without any twice unless there are so many that it does not matter."""
    if number > 16 * _BATCH:
        return torch.randint(number, (_BATCH,), generator=random)
    return torch.randperm(number, generator=random)[:_BATCH]


def _dice(logits: Tensor, truth: Tensor) -> float:
    """Mean Dice of the classes that there are, background left out."""
    outputs, found = logits.shape[1], logits.argmax(1)
    both = torch.bincount(truth[found == truth], minlength=outputs)
    sizes = torch.bincount(found, minlength=outputs) + torch.bincount(truth, minlength=outputs)
    there = torch.bincount(truth, minlength=outputs) > 0
    there[0] = False
    if not bool(there.any()):
        return math.nan
    return float((2 * both / sizes.clamp(min=1))[there].mean())
