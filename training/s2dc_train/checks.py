"""Settings and checkpoints that cannot work are refused before any work is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_s2dc.errors import CheckpointError, ConfigurationError
from napari_s2dc.method.encoder import STRIDES, EncoderConfig
from s2dc_train.config import RunConfig
from s2dc_train.data_settings import check_settings


def check_configuration(config: RunConfig) -> None:
    """Refuse settings that are out of range or contradict each other.

    Parameters
    ----------
    config : RunConfig
        Every setting.

    Raises
    ------
    ConfigurationError
        Naming the setting and its mend.
    """
    data, model = config.data, config.model
    check_settings(data)
    _check_ranges(config)
    if data.crop_size < 32 or data.crop_size % 16:
        raise ConfigurationError(
            f"data.crop_size is {data.crop_size}.", "Use a multiple of 16 of at least 32 voxels."
        )
    if data.crop_size % STRIDES[model.token_stage]:
        raise ConfigurationError(
            f"data.crop_size {data.crop_size} is no multiple of the token side "
            f"{STRIDES[model.token_stage]}.",
            "Change data.crop_size or model.token_stage.",
        )
    if model.head_normalization == "slices" and config.views.matching == "3d":
        raise ConfigurationError(
            "model.head_normalization slices has no slices when views.matching is 3d.",
            "Use features, or in_plane matching.",
        )
    crops = data.batch_size * math.prod(data.grid)
    if config.loss.global_contrast and crops < 2:
        raise ConfigurationError(
            "The global contrast needs at least two crops per step.",
            "Enlarge data.grid or data.batch_size, or set loss.global_contrast to 0.",
        )
    if not any(
        (config.loss.patch_to_patch, config.loss.patch_to_structure, config.loss.global_contrast)
    ):
        raise ConfigurationError("All three losses are switched off.", "Give one a weight above 0.")
    if not config.views.scale_min <= config.views.scale_max:  # also when it is not a number
        raise ConfigurationError("views.scale_min is larger than views.scale_max.")


def _check_ranges(config: RunConfig) -> None:
    # Lower bounds, then the settings that must not go below them.
    at_least: dict[float, list[str]] = {
        0: [
            "seed",
            "model.queue_length",
            "model.crops_per_pass",
            "views.translation",
            "views.rotation_deg",
            "views.tilt_deg",
            "views.crop_translation",
            "views.crop_rotation_deg",
            "views.intensity_shift",
            "loss.patch_to_patch",
            "loss.patch_to_structure",
            "loss.global_contrast",
            "loss.sinkhorn_tolerance",
            "optimizer.final_learning_rate",
            "optimizer.weight_decay",
            "optimizer.warmup_steps",
            "trainer.max_minutes",
            "trainer.memory_gb",
            "trainer.gradient_clip",
        ],
        1: [
            "model.window_size",
            "model.head_layers",
            "model.head_hidden",
            "model.head_output",
            "loss.sinkhorn_iterations",
            "trainer.max_steps",
            "trainer.num_nodes",
            "trainer.accumulate",
            "trainer.save_every",
            "trainer.validate_every",
            "trainer.log_every",
        ],
    }
    positive = [
        "views.scale_min",
        "loss.temperature",
        "loss.global_temperature",
        "optimizer.learning_rate",
    ]
    shares = [
        "model.teacher_momentum",
        "model.teacher_momentum_end",
        "views.crop_scale",
        "views.intensity_scale",
        "views.minimum_foreground",
    ]
    for bound, names in at_least.items():
        for name in names:
            if not _setting(config, name) >= bound:  # also when it is not a number
                raise ConfigurationError(f"{name} must be at least {bound}.")
    for name in positive:
        if not _setting(config, name) > 0:
            raise ConfigurationError(f"{name} must be above 0.")
    for name in shares:
        if not 0 <= _setting(config, name) <= 1:
            raise ConfigurationError(f"{name} must be between 0 and 1.")
    if not 0 <= config.optimizer.beta2 < 1:
        raise ConfigurationError("optimizer.beta2 must be at least 0 and below 1.")
    if config.seed >= 2**32:
        raise ConfigurationError("seed must be below 4294967296.")
    if not 0 <= config.model.token_stage < len(STRIDES):
        raise ConfigurationError(
            f"model.token_stage is {config.model.token_stage}.", f"Use 0 to {len(STRIDES) - 1}."
        )


def _setting(config: RunConfig, name: str) -> float:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return float(value)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Open a training checkpoint; its tensors stay on disk until they are looked at.

    Parameters
    ----------
    path : Path
        A ``last.ckpt``.

    Raises
    ------
    CheckpointError
        The file is missing, damaged or no training checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path} to resume from.", "Leave --ckpt out to start afresh."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if content.keys() >= {"global_step", "state_dict", "optimizer_states"}:
            return dict(content)
        reason = "it holds weights only"
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = type(error).__name__
    raise CheckpointError(
        f"{path} is not a training checkpoint ({reason}).",
        "Name a checkpoints/last.ckpt that s2dc-train wrote; "
        "weights alone are taken by --model.initial_weights.",
    )


def check_fit(checkpoint: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Refuse to resume from a checkpoint of a network of another size or input.

    Parameters
    ----------
    checkpoint : mapping
        From :func:`read_training_checkpoint`.
    module : Module
        What the settings build.
    path : Path
        Named in the message.

    Raises
    ------
    CheckpointError
        Naming the first difference.
    """
    hint = "Resume with the settings of its own run: --config RUN/config.yaml --ckpt last."
    saved = checkpoint.get("hyper_parameters", {}).get("encoder", {})
    wanted = getattr(module, "hparams", {}).get("encoder", {})
    if saved and wanted:
        try:
            there, here = (asdict(EncoderConfig.from_dict(values)) for values in (saved, wanted))
        except ConfigurationError as error:
            raise CheckpointError(f"{path} cannot be resumed: {error.sentence}", hint) from error
        for name in here:
            if there[name] != here[name]:
                raise CheckpointError(
                    f"{path} holds an encoder with {name} {there[name]}, the settings ask for "
                    f"{here[name]}.",
                    hint,
                )
    stored: Mapping[str, Tensor] = checkpoint["state_dict"]
    for name, tensor in module.state_dict().items():
        shape = tuple(stored[name].shape) if name in stored else None
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path} does not fit the settings: {name} has shape {shape} there and "
                f"{tuple(tensor.shape)} here.",
                hint,
            )
    trained = sum(parameter.requires_grad for parameter in module.parameters())
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    if trained != sum(len(group["params"]) for group in groups):
        raise CheckpointError(f"{path} comes from a run that trained other parameters.", hint)
