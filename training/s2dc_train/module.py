"""The Lightning module: one training step of S²DC, its metrics and what a checkpoint holds."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SIZES, STRIDES, EncoderConfig, SwinEncoder
from napari_s2dc.method.tokens import merge_tokens, problems
from s2dc_train.checks import check_configuration
from s2dc_train.config import RunConfig
from s2dc_train.evaluate import effective_rank
from s2dc_train.losses import global_contrast, patch_losses
from s2dc_train.passes import Passes, memory_budget, plan_passes, saved_bytes, state_bytes
from s2dc_train.student_teacher import Branch, KeyQueue, make_teacher, update_teacher
from s2dc_train.views import Views, build_views, draw

_log = logging.getLogger("s2dc_train")


def _build_encoder(config: RunConfig) -> SwinEncoder:
    model = config.model
    architecture = EncoderConfig(
        feature_size=SIZES[model.size],
        window_size=model.window_size,
        in_channels=1,
        borders=model.borders,
    )
    checkpointing = model.gradient_checkpointing
    encoder = SwinEncoder(architecture, gradient_checkpointing=checkpointing)
    if model.initial_weights:
        source = SwinEncoder.from_checkpoint(model.initial_weights, expected=architecture)
        encoder.load_state_dict(source.state_dict())
    return encoder


class S2DCModule(L.LightningModule):
    """Student, teacher, queue and losses of one run.

    Parameters
    ----------
    config : RunConfig
        Every setting of the run.

    Notes
    -----
    Source: S²DC (Pan et al., ICCV 2025), section 3. The random numbers of the views depend only on
    the seed and the sample's number, so no generator state has to survive a resume.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        check_configuration(config)
        model = config.model
        self.student = Branch(
            _build_encoder(config),
            model.token_stage,
            model.head_hidden,
            model.head_output,
            model.head_layers,
            per_slice=model.head_normalization == "slices",
            pooled=bool(config.loss.global_contrast),
        )
        self.teacher = make_teacher(self.student)
        self.queue = KeyQueue(model.queue_length, model.head_output)
        self.dustbin = nn.Parameter(
            torch.tensor(config.loss.dustbin), requires_grad=config.loss.learn_dustbin
        )
        self.token_size_vox = STRIDES[model.token_stage]
        self.per_slice = config.views.matching == "in_plane"
        self._passes: Passes | None = None
        if not config.loss.global_contrast:
            # Without this loss its head and the last layer get no gradient, which DDP forbids.
            self.student.contrast_head.requires_grad_(False)
            for name, parameter in self.student.encoder.named_parameters():
                if _layer_of(name) > model.token_stage:
                    parameter.requires_grad_(False)
        self.save_hyperparameters({"encoder": self.student.encoder.config.as_dict()}, logger=False)

    def views(self, batch: dict[str, Tensor]) -> Views:
        """Return views of a batch, the same whenever the same samples come.

        Parameters
        ----------
        batch : dict
            ``image``, ``valid``, ``foreground`` and ``sample`` of the data module.
        """
        data = self.config.data
        draws = draw(self.config.views, data.crop_size, batch["sample"].tolist(), self.config.seed)
        return build_views(
            batch["image"],
            batch["valid"],
            batch["foreground"],
            draws,
            self.config.views,
            crop_size=data.crop_size,
            token_size_vox=self.token_size_vox,
        )

    def passes(self, crops: Tensor) -> Passes:
        """Return how the crops of a step are encoded within the memory budget, the same each time.

        Parameters
        ----------
        crops : Tensor (N, 1, c, c, c)
            Crops of the first step; the activations of one of them are measured.
        """
        if self._passes is not None:
            return self._passes
        settings, device = self.config, crops.device
        # As it is uncompiled: what hooks on saved tensors count, compiled code hides
        student = self.student
        crop_bytes = saved_bytes(
            lambda: student.encoder.stages(crops[:1], student.stages_used), student
        )
        budget, state = memory_budget(settings.trainer.memory_gb, device), state_bytes(self, device)
        self._passes = plan_passes(
            len(crops),
            settings.data.crop_size,
            crop_bytes,
            budget - state,
            on_gpu=device.type == "cuda",
            together=settings.model.crops_per_pass,
        )
        parts = self._passes.split(crops)
        twice = sum(len(part) for part, kept in parts if not kept)
        if twice:
            _log.info(
                f"Memory: {budget / 1e9:.1f} GB, activations of a crop {crop_bytes / 1e9:.2f} GB: "
                f"those of {twice} of {len(crops)} crops are computed twice."
            )
        return self._passes

    def _project(self, branch: Branch, tokens: Tensor, valid: Tensor) -> Tensor:
        """Token head on the valid tokens of each problem; the others are 0."""
        rows = problems(merge_tokens(tokens, self.config.data.grid), per_slice=self.per_slice)
        if branch.token_head.per_slice:
            return F.normalize(branch.token_head(rows).float(), dim=-1) * valid[..., None]
        chosen = valid if valid.sum() > 1 else torch.ones_like(valid)
        projected = F.normalize(branch.token_head(rows[chosen]).float(), dim=-1)
        result = projected.new_zeros(*rows.shape[:2], projected.shape[-1])
        result[chosen] = projected
        return result

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch; see :class:`s2dc_train.views.Views` for what is compared."""
        views = self.views(batch)
        weights = self.config.loss
        passes = self.passes(views.first)
        with torch.no_grad():
            # The teacher sees the second view and, for the global loss, one crop per volume.
            seen = [views.second, views.contrast] if weights.global_contrast else [views.second]
            tokens, pooled = self.teacher.encode(torch.cat(seen), passes)
            key = self._project(self.teacher, tokens[: len(views.second)], views.valid_second)
        tokens, student_pooled = self.student.encode(views.first, passes)
        query = self._project(self.student, tokens, views.valid_first)

        with torch.autocast(self.device.type, enabled=False):
            match, structure = patch_losses(
                query,
                key,
                views.true_pairs,
                temperature=weights.temperature,
                dustbin=self.dustbin,
                iterations=weights.sinkhorn_iterations,
                tolerance=weights.sinkhorn_tolerance,
                valid_query=views.valid_first,
                valid_key=views.valid_second,
            )
        losses = {"patch_to_patch": match.total, "patch_to_structure": structure}
        loss = weights.patch_to_patch * match.total + weights.patch_to_structure * structure
        if weights.global_contrast:
            contrast = self._global_loss(student_pooled, pooled, views)
            losses["global_contrast"] = contrast
            loss = loss + weights.global_contrast * contrast
        losses |= {"loss": loss, "patch_to_patch_positive": match.positive}
        if (batch_index + 1) % self.config.trainer.accumulate == 0:
            self._log(losses, query, views)
        return loss

    def _global_loss(self, student_pooled: Tensor, pooled: Tensor, views: Views) -> Tensor:
        weights = self.config.loss
        query = self.student.contrast_head(student_pooled)[views.query_index].float()
        with torch.no_grad():
            keys = self.teacher.contrast_head(pooled).float()
            others, positive = keys[: len(views.second)], keys[len(views.second) :]
        # The query's own place in the second view shows the same anatomy: not a negative.
        place = torch.arange(len(others), device=keys.device)
        usable = torch.cat(
            [
                (place != views.query_index[:, None]) & views.tissue_second,
                self.queue.filled.expand(len(query), -1),
            ],
            dim=1,
        )
        with torch.autocast(self.device.type, enabled=False):
            loss = global_contrast(
                query,
                positive,
                torch.cat([others, self.queue.keys]),
                temperature=weights.global_temperature,
                normalize=weights.global_normalize,
                valid_negatives=usable,
            )
        gathered = self.all_gather(positive) if self.trainer.world_size > 1 else positive
        assert isinstance(gathered, Tensor)
        self.queue.push(gathered.reshape(-1, positive.shape[-1]))
        return loss

    @torch.no_grad()
    def _log(self, losses: dict[str, Tensor], query: Tensor, views: Views) -> None:
        """Log losses, and signs of collapse that cost a decomposition, every ``log_every`` steps.

        Straight to the loggers: Lightning would write the row after the checkpoint of the same
        step, so that a kill in between would lose it.
        """
        step = self.global_step
        if (step + 1) % self.config.trainer.log_every:
            return
        tokens = query[views.valid_first].detach()
        values = {name: float(value.detach()) for name, value in losses.items()}
        values["probability_true_pairs"] = math.exp(-values["patch_to_patch_positive"])
        values["dustbin"] = float(self.dustbin.detach())
        values["learning_rate"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        if len(tokens) > 1:
            values["token_std"] = float(tokens.std(0).mean())
            values["head_effective_rank"] = effective_rank(tokens)
        for logger in self.loggers:
            logger.log_metrics(values, step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm, also under autocast, where Lightning refuses to for a fused optimizer."""
        if gradient_clip_val:
            trained = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(trained, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the student, then move the teacher."""
        super().optimizer_step(*args, **kwargs)
        update_teacher(self.teacher, self.student, self.teacher_momentum())

    def teacher_momentum(self) -> float:
        """Share of the old teacher that stays at this step."""
        model = self.config.model
        if not model.teacher_momentum_end:
            return model.teacher_momentum
        done = min(self.global_step / max(self.config.trainer.max_steps, 1), 1.0)
        remaining = (1 + math.cos(math.pi * done)) / 2
        end = model.teacher_momentum_end
        return end - (end - model.teacher_momentum) * remaining

    def on_train_start(self) -> None:
        """Let the settings rule the optimizer; a checkpoint has just brought those of before."""
        settings = self.config.optimizer
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        schedule.base_lrs = [settings.learning_rate for _ in schedule.base_lrs]
        for group, factor, decay in zip(
            optimizer.param_groups, schedule.lr_lambdas, (settings.weight_decay, 0.0), strict=True
        ):
            group.update(
                initial_lr=settings.learning_rate,
                lr=settings.learning_rate * factor(schedule.last_epoch),
                weight_decay=decay,
                betas=(0.9, settings.beta2),
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the settings; keep the last good checkpoint when training has diverged.

        Raises
        ------
        S2DCError
            A weight is no finite number.
        """
        state: dict[str, Tensor] = checkpoint["state_dict"]
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise S2DCError(
                f"Training has diverged: after {self.global_step} steps weights are NaN or "
                "infinite, and they are not saved.",
                "Lower --optimizer.learning_rate; with --ckpt last a run goes on from the last "
                "weights it saved.",
            )
        checkpoint["settings"] = asdict(self.config)

    def configure_optimizers(self) -> Any:
        """Return AdamW, without decay on norms, biases and the like; warm-up, then cosine."""
        settings = self.config.optimizer
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim < 2 or name.endswith("relative_position_bias_table")
                (free if plain else decayed).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": free, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
            # Fused takes a third of the time. With 16 bit floats it would undo the scaling of the
            # gradients itself, after they were clipped.
            fused=self.config.trainer.precision != "16-mixed",
        )
        total = self.config.trainer.max_steps
        warmup = min(settings.warmup_steps, total // 2)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min((step - warmup) / max(total - warmup, 1), 1.0)
            floor = settings.final_learning_rate
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _layer_of(name: str) -> int:
    """Return the encoder stage that a parameter first contributes to; 0 for the patch embedding."""
    for part in name.split("."):
        if part.startswith("layers"):
            return int(part[6])
    return 0
