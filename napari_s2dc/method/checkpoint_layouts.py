"""Where the encoder lies in our and other people's checkpoints, and its architecture.

Whatever the file, the encoder's tensors are found by MONAI's own names for them behind any prefix
(``student.swinViT.``, ``module.backbone.swinViT.``, ...) and the architecture is read off their
shapes where it is not stated, as by our files and training checkpoints. The kind of patch merging
and of input leave no trace in the tensors; MONAI's default ``merging`` and intensities are assumed,
as in all foreign layouts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from napari_s2dc.errors import CheckpointError, ConfigurationError
from napari_s2dc.method.checkpoint_files import METADATA_KEY, TensorFile, read_tensors
from napari_s2dc.method.encoder import EncoderConfig

OURS = "napari-s2dc encoder"
OUR_TRAINING = "napari-s2dc training checkpoint (Lightning)"
AUTHORS = "S2DC authors' checkpoint"
VOCO = "VoCo checkpoint"
MONAI_PRETRAINED = "MONAI pretrained Swin ViT (model_swinvit.pt)"
SWIN_UNETR = "Swin UNETR"
SWIN = "Swin transformer"

_ENCODER_NAME = re.compile(r"^(?P<prefix>(?:.*?\.)??)(?P<name>(?:patch_embed|layers[1-4]c?)\..+)$")
_TABLE = "attn.relative_position_bias_table"


@dataclass(frozen=True)
class Checkpoint:
    """Encoder tensors of a file under MONAI's names.

    Parameters
    ----------
    path : The file.
    layout : Kind of file, in words.
    prefix : What stands before MONAI's names in the file.
    config : Architecture that the file states or that the shapes show.
    tensors : Encoder tensors.
    outside : Names of the file's other tensors: decoder, heads, teacher, optimizer.
    metadata : What the file says about itself.
    """

    path: Path
    layout: str
    prefix: str
    config: EncoderConfig
    tensors: dict[str, Tensor]
    outside: tuple[str, ...]
    metadata: dict[str, Any]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the encoder's tensors from any supported file.

    Supported: ours (safetensors), our Lightning training checkpoints (the student), the authors'
    (``student.swinViT.``), VoCo's (``backbone.swinViT.``), MONAI's ``model_swinvit.pt``, Swin UNETR
    and bare Swin state dicts; any of them under ``module.`` or nested in further mappings.

    Raises
    ------
    CheckpointError
        The file cannot be read or holds no 3D Swin encoder.
    """
    path = Path(path)
    file = read_tensors(path)
    prefix = _choose_prefix(path, file)
    tensors: dict[str, Tensor] = {}
    outside: list[str] = []
    for full_name, tensor in file.tensors.items():
        found = _ENCODER_NAME.match(full_name)
        if found and found["prefix"] == prefix:
            # names of MONAI before 1.0
            name = found["name"].replace(".mlp.fc1.", ".mlp.linear1.")
            tensors[name.replace(".mlp.fc2.", ".mlp.linear2.")] = tensor
        else:
            outside.append(full_name)
    metadata = file.facts.get(METADATA_KEY)
    layout = _layout(prefix, file)
    if layout == OUR_TRAINING:
        stated = _mapping(file.facts.get("hyper_parameters")).get("encoder")
    else:
        stated = _mapping(metadata).get("architecture")
    try:
        if isinstance(stated, Mapping):
            config = EncoderConfig.from_dict(stated)
        else:
            config = _architecture(path, tensors)
    except ConfigurationError as error:
        raise CheckpointError(f"The encoder in {path} cannot be built: {error}") from error
    return Checkpoint(
        path=path,
        layout=layout,
        prefix=prefix,
        config=config,
        tensors=tensors,
        outside=tuple(outside),
        metadata=metadata if isinstance(metadata, dict) else _foreign_metadata(file),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _choose_prefix(path: Path, file: TensorFile) -> str:
    """Prefix of the encoder to take when a file holds several (student and teacher)."""
    counts: dict[str, int] = {}
    for full_name in file.tensors:
        if found := _ENCODER_NAME.match(full_name):
            counts[found["prefix"]] = counts.get(found["prefix"], 0) + 1
    if not counts:
        some = ", ".join(list(file.tensors)[:3])
        raise CheckpointError(
            f"{path} holds no Swin encoder" + (f" (it starts with {some})." if some else ".")
        )

    def rank(prefix: str) -> tuple[bool, bool, int, int]:
        parts = prefix.split(".")
        second = any(part in parts for part in ("teacher", "ema", "optimizer", "exp_avg"))
        return second, "student" not in parts, -counts[prefix], len(prefix)

    return min(counts, key=rank)


def _layout(prefix: str, file: TensorFile) -> str:
    parts = prefix.rstrip(".").split(".")
    if METADATA_KEY in file.facts:
        return OURS
    if prefix.endswith("student.encoder.swin."):
        return OUR_TRAINING
    if parts[-1] in ("swinViT", "swin_vit"):
        if "student" in parts:
            return AUTHORS
        return VOCO if "backbone" in parts else SWIN_UNETR
    old_names = any(".mlp.fc1." in name for name in file.tensors)
    return MONAI_PRETRAINED if old_names and "module" in parts else SWIN


def _foreign_metadata(file: TensorFile) -> dict[str, Any]:
    """Plain facts of a foreign file; a Lightning ``global_step`` becomes ``steps``."""
    facts = {
        key: value
        for key, value in file.facts.items()
        if isinstance(value, (bool, int, float, str)) or key == "hyper_parameters"
    }
    if "global_step" in facts:
        facts["steps"] = facts.pop("global_step")
    return facts


def _architecture(path: Path, tensors: Mapping[str, Tensor]) -> EncoderConfig:
    """Architecture that the tensors' shapes show.

    Raises
    ------
    CheckpointError
        The tensors are those of no 3D Swin encoder with patches of 2 voxels and cubic windows.
    ConfigurationError
        The numbers found do not make an encoder.
    """
    embedding = tensors.get("patch_embed.proj.weight")
    norm = tensors.get("layers1.0.blocks.0.norm1.weight")
    first = embedding if embedding is not None else norm
    if first is None:
        raise CheckpointError(
            f"{path} lacks patch_embed.proj.weight and layers1.0.blocks.0.norm1.weight, so the "
            "size of its encoder cannot be told."
        )
    if embedding is not None and tuple(embedding.shape[2:]) != (2, 2, 2):
        raise CheckpointError(
            f"The encoder in {path} has patches of {list(embedding.shape[2:])} voxels; only "
            "3D encoders with patches of [2, 2, 2] can be used."
        )
    depths, heads = [], []
    window = 0
    for layer, usual_heads in zip((1, 2, 3, 4), (3, 6, 12, 24), strict=True):
        block = re.compile(rf"^layers{layer}\.0\.blocks\.(\d+)\.")
        numbers = [int(found[1]) for name in tensors if (found := block.match(name))]
        depths.append(max(numbers, default=1) + 1)
        table = tensors.get(f"layers{layer}.0.blocks.0.{_TABLE}")
        heads.append(int(table.shape[1]) if table is not None else usual_heads)
        if table is not None and not window:
            window = _window_size(path, int(table.shape[0]))
    return EncoderConfig(
        feature_size=int(first.shape[0]),
        window_size=window or 7,
        depths=tuple(depths),
        num_heads=tuple(heads),
        in_channels=int(embedding.shape[1]) if embedding is not None else 1,
        use_v2=any(re.match(r"layers[1-4]c\.", name) for name in tensors),
    )


def _window_size(path: Path, rows: int) -> int:
    """Side w of a cubic window from its (2w - 1)³ relative positions."""
    positions = round(rows ** (1 / 3))
    if positions**3 != rows or positions % 2 == 0:
        raise CheckpointError(
            f"The encoder in {path} has attention windows that are not cubes ({rows} relative "
            "positions); only cubic windows can be used."
        )
    return (positions + 1) // 2
