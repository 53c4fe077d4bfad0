"""Fine-tuning: a network learns to segment from labelled scans, step by step."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_s2dc.engine.encode import device_of, lacks_operation, out_of_memory
from napari_s2dc.engine.encoders import preset_of
from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
from napari_s2dc.engine.finetune_data import CropSource
from napari_s2dc.engine.finetune_loss import labelled_voxels, voxel_loss
from napari_s2dc.engine.finetune_network import ENCODER_PREFIX, SegmentationNetwork
from napari_s2dc.engine.finetune_segment import segment_with_network
from napari_s2dc.engine.finetune_setup import (
    check_settings,
    crops_together,
    make_optimizer,
    new_network,
)
from napari_s2dc.engine.labelled_scans import UNLABELLED, LabelledScan, targets_of
from napari_s2dc.engine.progress import Steps, TrainingProgress, finish
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import normalize

__all__ = ["FinetuneRun"]

_WARM_UP = 0.1
_ENCODER_WARM_UP = 20
_GRADIENT_NORM = 1.0
_LAST_LOSSES = 20
_MEASURE_EVERY = 10


class FinetuneRun:
    """A training that can be stopped after every step, looked at, and continued.

    Parameters
    ----------
    scans : sequence of LabelledScan
        What is learned from, on the grid of the model.
    encoder : SwinEncoder
        Begun with; not changed. One without metadata counts as not pretrained.
    classes : sequence of SegmentationClass
        What is learned.
    settings : FewshotSettings
        Say how.
    carried : sequence of LabelledScan
        On the grid of the model, with labels that were carried to them.
    held_out : sequence of LabelledScan
        On the grid of the model; where there are any, the model is the one best on them.

    Raises
    ------
    S2DCError
        Nothing is labelled, a setting cannot be used, or there is not enough memory.
    """

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        encoder: SwinEncoder,
        classes: Sequence[SegmentationClass],
        settings: FewshotSettings,
        *,
        carried: Sequence[LabelledScan] = (),
        held_out: Sequence[LabelledScan] = (),
    ) -> None:
        # Fabric, not Lightning's Trainer: a training here is a generator that stands still after
        # every step, so that a window or a command can stop it, look at it and go on. A Trainer
        # calls back, but does not hand control back before its end.
        from lightning.fabric import Fabric

        check_settings(settings.finetune)
        self.settings = settings
        self.classes = tuple(classes)
        self._encoder = encoder
        self._preset = preset_of(scans[0].image, encoder, settings.preset)
        self._source = CropSource(scans, classes, settings, self._preset, carried=carried)
        self._held_out = tuple(held_out)
        self._chance = torch.Generator().manual_seed(settings.seed)
        device = device_of(settings.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Fabric, about processors that it does not use
            self._fabric = Fabric(
                accelerator=device.type,
                devices=1,
                precision="bf16-mixed" if device.type == "cuda" else "32-true",
            )
        network = new_network(encoder, self._source.voxels, settings.seed)
        learner, optimizer = _Learner(network), make_optimizer(network, encoder, settings.finetune)
        self._learner, self._optimizer = self._fabric.setup(learner, optimizer)
        self._average: SegmentationNetwork = (
            copy.deepcopy(learner.network).requires_grad_(False).eval()
        )
        self._together = crops_together(network, self._source.shape, settings.finetune, device)
        self._best: dict[str, Tensor] | None = None
        self._best_dice = -1.0
        self._losses: list[float] = []
        self._crop_dice: float | None = None
        self._done = self._first = self._end = 0

    @property
    def steps_done(self) -> int:
        """Optimiser steps so far."""
        return self._done

    def train(self, steps: int | None = None) -> Steps[None]:
        """Go on with what was stopped, or begin anew from the weights as they are.

        Parameters
        ----------
        steps : int, optional
            Optimiser steps of a training that begins; those of the settings when left out.

        Yields
        ------
        TrainingProgress
            After every optimiser step; closed there, the run can be continued. Dice is that on the
            held-out scans, or else every few steps that of the last crop.

        Raises
        ------
        S2DCError
            The loss is no number any more, or memory ran out; what was learned before is kept.
        """
        if self._done >= self._end:
            wanted = self.settings.finetune.steps if steps is None else steps
            self._first, self._end = self._done, self._done + wanted
        while self._done < self._end:
            try:
                loss = self._step()
            except (RuntimeError, MemoryError) as error:
                if lacks_operation(error, self._fabric.device):
                    raise S2DCError(
                        "PyTorch lacks an operation on Apple's graphics that training needs.",
                        "Choose the processor (cpu) as the device.",
                    ) from error
                if not out_of_memory(error):
                    raise
                self._optimizer.zero_grad()
                shape = " x ".join(map(str, self._source.shape))
                raise S2DCError(
                    f"There is not enough memory to train on crops of {shape} voxels.",
                    "Close other programs, or train by s2dc finetune with a lower "
                    "--finetune.crop_vox or --finetune.memory_gb.",
                ) from error
            self._done += 1
            dice = self._judge() if self._is_judged() else None
            if not self._held_out and self._done % _MEASURE_EVERY == 0:
                dice = self._crop_dice
            yield TrainingProgress(self._done, self._end, "steps", loss=loss, dice=dice)

    def model(self) -> SegmentationModel:
        """Give the model so far: best on the held-out scans, or else of the averaged weights."""
        return self._model_of(self._best or self._average.state_dict())

    def _model_of(self, weights: dict[str, Tensor]) -> SegmentationModel:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        encoder = SwinEncoder(self._encoder.config)
        encoder.metadata = dict(self._encoder.metadata)
        encoder.swin.load_state_dict(
            {
                name.removeprefix(ENCODER_PREFIX): tensor
                for name, tensor in weights.items()
                if name.startswith(ENCODER_PREFIX)
            }
        )
        last = self._losses[-_LAST_LOSSES:]
        metrics = {"held_out_dice": self._best_dice} if self._best else {}
        return SegmentationModel(
            kind="finetune",
            encoder=encoder.eval(),
            tensors={n: t for n, t in weights.items() if not n.startswith(ENCODER_PREFIX)},
            classes=self.classes,
            preset=self._preset,
            spacing_mm=self.settings.spacing_mm,
            segment=self.settings.segment,
            metadata={
                "window_vox": list(self._source.shape),
                "background_labelled": bool(self._source.voxels[0]),
                "steps": self._done,
                "loss": sum(last) / len(last) if last else None,
                "metrics": metrics,
            },
        )

    def _step(self) -> float:
        """Draw crops, learn from them; the loss, as it was before."""
        settings = self.settings.finetune
        self._set_rates()
        network: SegmentationNetwork = self._learner.network
        crops = [self._source.draw() for _ in range(settings.crops_per_step)]
        loss = 0.0
        for first in range(0, len(crops), self._together):
            part = crops[first : first + self._together]
            share = self._loss_of(part) / len(crops)
            loss += float(share.detach())
            if not math.isfinite(loss):
                break
            self._fabric.backward(share)
        norm = nn.utils.clip_grad_norm_(
            [one for one in network.parameters() if one.grad is not None], _GRADIENT_NORM
        )
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            self._optimizer.zero_grad()
            rest = "; what was learned before is kept" if self._done else ""
            raise S2DCError(
                f"The loss is no number any more at step {self._done + 1}{rest}.",
                "Train by s2dc finetune with a --finetune.learning_rate below "
                f"{settings.learning_rate:g}.",
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._losses.append(loss)
        # At first the average would be that of weights from which nothing was learned.
        kept = min(settings.averaging, (self._done + 1) / (self._done + 10))
        for mean, now in zip(self._average.parameters(), network.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - kept)
        return loss

    def _loss_of(self, crops: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Sum of the losses of crops, each for itself: how they are split makes no difference."""
        most = self.settings.finetune.voxels_per_crop
        places = [labelled_voxels(targets, most, self._chance) for _, targets in crops]
        device = self._fabric.device
        images = torch.stack([image for image, _ in crops]).to(device)
        logits = self._learner(images, [chosen.to(device) for chosen in places])
        losses = [
            voxel_loss(one, targets.reshape(-1)[chosen].to(device))
            for one, (_, targets), chosen in zip(logits, crops, places, strict=True)
            if len(chosen)
        ]
        if not self._held_out and len(places[-1]):
            found = logits[-1].detach().argmax(-1).cpu().numpy()
            truth = crops[-1][1].reshape(-1)[places[-1]].numpy()
            dice = _mean_dice(found, truth)
            self._crop_dice = None if math.isnan(dice) else dice
        # A crop may hold no labelled voxel once it is turned.
        return torch.stack(losses).sum() if losses else 0.0 * sum(one.sum() for one in logits)

    def _set_rates(self) -> None:
        """Rates rise, then fall like a cosine; a frozen encoder has none and no gradient."""
        settings = self.settings.finetune
        here, all_steps = self._done - self._first, self._end - self._first
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * here / all_steps))
        rate *= min(1.0, (here + 1) / max(1.0, _WARM_UP * all_steps))
        # A training that is added to one that ended begins with an encoder that is free already.
        pretrained = bool(self._encoder.metadata) and self._first == 0
        frozen = round(settings.frozen_share * all_steps) if pretrained else 0
        warm = min(1.0, (here - frozen + 1) / _ENCODER_WARM_UP) if frozen else 1.0
        for group in self._optimizer.param_groups:
            moving = not group["of_encoder"] or here >= frozen
            group["lr"] = rate * group["share"] * (warm if group["of_encoder"] else 1.0)
            for parameter in group["params"]:
                parameter.requires_grad_(moving)

    def _is_judged(self) -> bool:
        due = self._done == self._end or self._done % self.settings.finetune.held_out_every == 0
        return bool(self._held_out) and due

    def _judge(self) -> float:
        """Mean Dice of the averaged weights on the held-out scans; the best are kept."""
        weights = self._average.state_dict()
        model = self._model_of(weights)
        scores = []
        for scan in self._held_out:
            targets = targets_of(scan.labels.array, self.classes, self.settings)
            image = normalize(scan.image.array, self._preset)
            found, _ = finish(
                segment_with_network(image, model, self.settings.segment, self._fabric.device)
            )
            scores.append(_mean_dice(found, targets))
        dice = float(np.nanmean(scores)) if not np.isnan(scores).all() else 0.0
        if dice > self._best_dice:
            self._best_dice = dice
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return dice


class _Learner(nn.Module):
    """Logits at chosen voxels, by the pass that Fabric sees to the precision of."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, places: Sequence[Tensor]) -> list[Tensor]:
        return self.network.logits_at(images, places)


def _mean_dice(found: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes that the targets have, on their labelled voxels; NaN without any."""
    known = targets != UNLABELLED
    there, truth = found[known].astype(np.int64), targets[known].astype(np.int64)
    size = int(max(there.max(initial=0), truth.max(initial=0))) + 1
    common = np.bincount(truth[there == truth], minlength=size)
    both = np.bincount(there, minlength=size) + np.bincount(truth, minlength=size)
    classes = np.flatnonzero(np.bincount(truth, minlength=size)[1:]) + 1
    return float(np.mean(2 * common[classes] / both[classes])) if len(classes) else math.nan
