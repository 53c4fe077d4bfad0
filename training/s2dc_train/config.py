"""Every setting of a pretraining run, one field a line of help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal, get_type_hints


@dataclass
class DataConfig:
    """Which scans are used and how they are cut."""

    path: str = ""
    """Folder (searched recursively), decathlon ``dataset.json``, or a CSV/TXT list of scans."""
    section: str = ""
    """Section of ``dataset.json`` to read; empty means every section that lists images."""
    preset: str = "auto"
    """Intensity preset: auto, ct, ct_soft_tissue, ct_lung, ct_bone, ct_wide, mr or pet."""
    spacing_mm: list[float] = field(default_factory=list)
    """Resample every scan to this spacing in mm (z, y, x); empty keeps each scan's own."""
    crop_size: int = 48
    """Side of one crop in voxels; a multiple of 16."""
    grid: list[int] = field(default_factory=lambda: [1, 2, 2])
    """Number of crops along (z, y, x) in one sub-volume."""
    foreground_fraction: float = 0.1
    """Least share of foreground voxels wanted in a sub-volume."""
    synthetic_share: float = 0.0
    """Share of the sub-volumes that are made up: endless anatomies in random contrasts."""
    cross_contrast: bool = False
    """Show each view of a made-up anatomy in a contrast of its own: places are found across
    contrasts more often, and within one less often."""
    validation_volumes: int = 3
    """Scans held out for matching accuracy and the 5-nearest-neighbour probe."""
    batch_size: int = 1
    """Sub-volumes per step and device."""
    workers: int = 0
    """Processes that load data beside the training process."""
    cache_dir: str = ""
    """Folder of preprocessed scans; empty means ``cache`` inside the run folder."""


@dataclass
class ModelConfig:
    """Encoder, heads, teacher and queue."""

    size: Literal["tiny", "small", "base"] = "tiny"
    """Encoder size: tiny (feature size 12), small (24) or base (48)."""
    window_size: int = 6
    """Side of an attention window in tokens."""
    borders: bool = False
    """Look at the borders of tissues in place of intensities, so that contrasts matter less."""
    initial_weights: str = ""
    """Checkpoint to start the encoder from; empty means random weights."""
    token_stage: int = 2
    """Encoder stage whose tokens are matched; its stride is 2, 4, 8, 16 or 32 voxels."""
    head_layers: int = 3
    """Linear layers of both projection heads."""
    head_hidden: int = 2048
    """Width of the hidden layers of both projection heads."""
    head_output: int = 512
    """Width of the projected features."""
    head_normalization: Literal["features", "slices"] = "features"
    """Token head: normalise features over all tokens, or, as the released code, whole z-slices."""
    teacher_momentum: float = 0.999
    """Share of the old teacher kept at each update."""
    teacher_momentum_end: float = 0.0
    """Momentum reached at the last step by a cosine; 0 keeps it constant."""
    queue_length: int = 1024
    """Past teacher keys kept as negatives of the global loss."""
    gradient_checkpointing: bool = False
    """Recompute attention in the backward pass to save memory."""
    crops_per_pass: int = 0
    """Crops encoded together; 0 chooses, by the device and `trainer.memory_gb`."""


@dataclass
class ViewConfig:
    """How the second view and the contrastive view are drawn."""

    matching: Literal["in_plane", "3d"] = "in_plane"
    """Match tokens within each z-slice (in_plane) or over the whole volume (3d)."""
    translation: float = 0.25
    """Largest shift as a share of the crop side."""
    rotation_deg: float = 30.0
    """Largest rotation about z in degrees."""
    tilt_deg: float = 15.0
    """Largest rotation about y and x in degrees; used by 3d matching only."""
    scale_min: float = 0.9
    """Smallest isotropic scale."""
    scale_max: float = 1.2
    """Largest isotropic scale."""
    crop_translation: float = 0.1
    """Largest shift of the contrastive crop as a share of the crop side."""
    crop_rotation_deg: float = 10.0
    """Largest rotation of the contrastive crop in degrees."""
    crop_scale: float = 0.05
    """Largest change of scale of the contrastive crop; 0.05 means 0.95 to 1.05."""
    intensity_shift: float = 0.05
    """Largest value added to the intensities (which lie in 0 to 1) of a view."""
    intensity_scale: float = 0.1
    """Largest relative change of contrast of a view; 0.1 means 0.9 to 1.1."""
    minimum_foreground: float = 0.05
    """Tokens with a smaller share of foreground take part in no pair; 0 keeps all."""


@dataclass
class LossConfig:
    """Weights and temperatures of the three losses."""

    patch_to_patch: float = 0.5
    """Weight of the discrepancy loss."""
    patch_to_structure: float = 0.5
    """Weight of the consistency loss."""
    global_contrast: float = 0.5
    """Weight of the contrast between whole crops; 0 skips its computation."""
    temperature: float = 0.1
    """Divides cosine similarities before transport."""
    global_temperature: float = 0.2
    """Divides the logits of the global contrast."""
    global_normalize: bool = True
    """L2-normalise the features of the global contrast."""
    dustbin: float = 1.0
    """Score of matching nothing at the start."""
    learn_dustbin: bool = True
    """Train the dustbin score."""
    sinkhorn_iterations: int = 500
    """Largest number of Sinkhorn iterations; few are needed at temperature 0.1, many at 0.05."""
    sinkhorn_tolerance: float = 1e-5
    """Stop Sinkhorn at this marginal error; 0 runs every iteration."""


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    final_learning_rate: float = 0.01
    """Share of the peak reached at the last step."""
    weight_decay: float = 0.1
    """Decay of matrices and kernels; norms, biases and bias tables have none."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta2: float = 0.999
    """Second-moment decay of AdamW."""


@dataclass
class TrainerConfig:
    """Length and hardware of the run; passed to Lightning's Trainer."""

    max_steps: int = 1000
    """Optimizer steps."""
    max_minutes: float = 0.0
    """Stop after this many minutes and save; 0 means no limit."""
    accelerator: str = "auto"
    """auto (a CUDA GPU if there is one, else the CPU), cpu or gpu."""
    devices: int | str = "auto"
    """Devices on each node; auto takes all (on Windows one, which is the most there)."""
    num_nodes: int = 1
    """Nodes of a distributed run."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto (bf16 on a GPU that has it, else 32 bit), 32-true, bf16-mixed or 16-mixed."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 means no clipping."""
    memory_gb: float = 0.0
    """Memory the run may take, in GB (1e9); 0 means half the machine's, or 90 % of a GPU's."""
    compile: bool = False
    """Compile the encoder by torch.compile: minutes at the start, and on a CPU slower after it."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    save_every: int = 100
    """Steps between checkpoints."""
    validate_every: int = 250
    """Steps between validations; validation also runs before the first and after the last."""
    log_every: int = 10
    """Steps between logged losses."""
    probe: bool = True
    """Run the 5-nearest-neighbour probe at validation when the scans have labels."""


@dataclass
class RunConfig:
    """One pretraining run."""

    out: str = "run"
    """Folder of the run: configuration, metrics, checkpoints, encoder and summary."""
    seed: int = 0
    """Seed of the weights, the order of the scans and every view."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which scans are used and how they are cut."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder, heads, teacher and queue."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """How the second view and the contrastive view are drawn."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and temperatures of the three losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW with linear warm-up and cosine decay."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length and hardware of the run."""


def changed_settings(config: RunConfig, before: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ from those of a checkpoint, each with both values.

    Parameters
    ----------
    config : RunConfig
        The settings now.
    before : mapping
        Those of the checkpoint, nested like ``config``. What is missing there is not compared, nor
        are the folder of the run and the weights that it began from, which are not read again.
    """
    phrases = []
    for section, values in asdict(config).items():
        earlier = before.get(section)
        if isinstance(values, dict) and isinstance(earlier, Mapping):
            phrases += [
                f"{section}.{name} {value} (was {earlier[name]})"
                for name, value in values.items()
                if name != "initial_weights" and name in earlier and earlier[name] != value
            ]
        elif section != "out" and section in before and earlier != values:
            phrases.append(f"{section} {values} (was {earlier})")
    return phrases


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Build the settings from nested plain values, such as those of a ``config.yaml``.

    Parameters
    ----------
    values : mapping
        By field name; sections are mappings themselves. What is missing keeps its default.
    """
    kinds = get_type_hints(RunConfig)
    return RunConfig(
        **{
            name: kinds[name](**value) if is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )
