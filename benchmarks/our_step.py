"""One training step of :class:`s2dc_train.module.S2DCModule`, taken apart so that it can be timed.

A test holds the loss equal to that of the module's own ``training_step``.
"""

from __future__ import annotations

import torch
from s2dc_train.losses import global_contrast, patch_losses
from s2dc_train.module import S2DCModule
from s2dc_train.student_teacher import update_teacher
from s2dc_train.views import Views
from torch import Tensor

from benchmarks.stopwatch import Stopwatch
from benchmarks.workload import Samples, autocast


class OurStep:
    """Our step without Lightning round it.

    Parameters
    ----------
    module : S2DCModule
        Weights and settings.
    samples : Samples
        Where batches come from.
    """

    def __init__(self, module: S2DCModule, samples: Samples) -> None:
        self.module = module
        self.samples = samples
        configured = module.configure_optimizers()
        self.optimizer = configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, repetition: int, watch: Stopwatch) -> float:
        """Train on one batch.

        Parameters
        ----------
        repetition : int
            Number of the batch.
        watch : Stopwatch
            Gets the time of each part.

        Returns
        -------
        float
            The loss.
        """
        module, device = self.module, self.samples.device
        with watch.part("data"):
            batch = self.samples.read(repetition)
        with watch.part("views"):
            views = module.views(batch)
        passes = module.passes(views.first)  # chosen in the first step, which is not counted
        with watch.part("teacher"), torch.no_grad(), autocast(device):
            tokens, pooled = module.teacher.encode(
                torch.cat([views.second, views.contrast]), passes
            )
            key = module._project(module.teacher, tokens[: len(views.second)], views.valid_second)
            keys = module.teacher.contrast_head(pooled).float()
        with watch.part("student"), autocast(device):
            tokens, pooled = module.student.encode(views.first, passes)
            query = module._project(module.student, tokens, views.valid_first)
            vector = module.student.contrast_head(pooled)[views.query_index].float()
        # Cut here, so that the backward pass of the losses and of the student can be told apart.
        query_leaf = query.detach().requires_grad_()
        vector_leaf = vector.detach().requires_grad_()
        with watch.part("losses"):
            loss = self._losses(query_leaf, key, vector_leaf, keys, views)
            loss.backward()
        with watch.part("student"):
            torch.autograd.backward([query, vector], [query_leaf.grad, vector_leaf.grad])
        with watch.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.parameters, module.config.trainer.gradient_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            update_teacher(module.teacher, module.student, module.config.model.teacher_momentum)
        return float(loss.detach())

    def _losses(
        self, query: Tensor, key: Tensor, vector: Tensor, keys: Tensor, views: Views
    ) -> Tensor:
        module, settings = self.module, self.module.config.loss
        match, structure = patch_losses(
            query,
            key,
            views.true_pairs,
            temperature=settings.temperature,
            dustbin=module.dustbin,
            iterations=settings.sinkhorn_iterations,
            tolerance=settings.sinkhorn_tolerance,
            valid_query=views.valid_first,
            valid_key=views.valid_second,
        )
        others, positive = keys[: len(views.second)], keys[len(views.second) :]
        place = torch.arange(len(others), device=keys.device)
        usable = torch.cat(
            [
                (place != views.query_index[:, None]) & views.tissue_second,
                module.queue.filled.expand(len(vector), -1),
            ],
            dim=1,
        )
        contrast = global_contrast(
            vector,
            positive,
            torch.cat([others, module.queue.keys]),
            temperature=settings.global_temperature,
            normalize=settings.global_normalize,
            valid_negatives=usable,
        )
        module.queue.push(positive)
        return (
            settings.patch_to_patch * match.total
            + settings.patch_to_structure * structure
            + settings.global_contrast * contrast
        )
