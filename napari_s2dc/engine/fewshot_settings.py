"""How a segmentation is learned from a few labels: one configuration for window and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_s2dc.engine.random_order import require_seed
from napari_s2dc.errors import ConfigurationError
from napari_s2dc.files import replace_atomically

__all__ = [
    "SPACING_FACTOR",
    "FewshotSettings",
    "FinetuneSettings",
    "QuickSettings",
    "SegmentSettings",
    "SegmentationClass",
    "note_on_background",
    "note_on_spacings",
    "settings_from",
    "write_settings",
]

SPACING_FACTOR = 1.5
"""Beyond it on any axis, voxels count as unlike those of the training. On voxels of 3 x 3 x 6 mm, a
model that learned at 3 mm agreed with its own result at 3 mm by a Dice of 0.49."""


@dataclass(frozen=True)
class SegmentationClass:
    """A structure that is learned; the background is none.

    Parameters
    ----------
    label : int
        Its number in label maps, not 0.
    name : str
        Its name.
    colour : tuple of float
        Red, green and blue, 0 to 1.
    """

    label: int
    name: str
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class QuickSettings:
    """Light head over features of the frozen encoder."""

    stages: tuple[int, ...] = (2, 3)
    """Encoder stages whose features are used, ascending, 0 to 4."""
    components: int = 16
    """Most principal components of a stage that are used."""
    smoothing_vox: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """Widths in voxels of the Gaussians whose smoothed intensities and gradients are used beside
    them."""
    hidden: int = 64
    """Units of the head's hidden layer."""
    steps: int = 150
    """Optimiser steps of a training from scratch; a refresh takes a third of them. Where strokes
    spread over the scan, as many again follow."""
    voxels: int = 40_000
    """Most labelled voxels that are learned from, over all scans."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Training of a Swin UNETR whose encoder is the pretrained one."""

    steps: int = 400
    """Optimiser steps of the training."""
    crop_vox: int = 64
    """Side in voxels of the cube that has as many voxels as a crop may have; a crop is as long as
    the tissue along axes where that is short, and longer along others."""
    crops_per_step: int = 1
    """Crops whose gradients make a step; they are computed one after the other where they do not
    fit into the memory together."""
    learning_rate: float = 4e-2
    """Peak learning rate of the decoder."""
    encoder_rate: float = 0.05
    """Learning rate of the last layer of a pretrained encoder, as a share of the decoder's. An
    encoder that was not pretrained has the decoder's."""
    layer_decay: float = 0.8
    """Factor of the learning rate from a layer of a pretrained encoder to the one before."""
    frozen_share: float = 0.6
    """Share of the steps, the first ones, in which a pretrained encoder is not changed; they take a
    quarter less time."""
    voxels_per_crop: int = 20_000
    """Most labelled voxels of a crop that a step learns from, drawn at random."""
    augmentation: float = 0.6
    """Strength of the random changes of place, form and intensity; 0 for none."""
    averaging: float = 0.95
    """Share of the averaged weights, which make the model, that a step keeps."""
    carried_scans: int = 20
    """Most unlabelled scans that labels are carried to, drawn by the seed."""
    carried_share: float = 0.5
    """Share of the crops that come from scans whose labels were carried to them, where there are
    such scans."""
    held_out_every: int = 50
    """Steps after which the averaged weights are judged on held-out scans, if there are any."""
    memory_gb: float = 0.0
    """Memory that a step may take for what it computes, in GB (1e9); 0 means 4 on a CPU and half of
    what is free on a GPU."""


@dataclass(frozen=True)
class SegmentSettings:
    """How a whole scan is segmented by a model."""

    overlap: float = 0.25
    """Least share of a window that the next one covers again (fine-tuned networks)."""
    flips: bool = False
    """Average over the scan and its mirror images along z, y and x; the uncertainty is then the
    entropy of the mean probabilities, H(mean p) = mean H(p) + mutual information, whose second part
    is how far the mirror images disagree. Only sensible where no two classes are mirror images of
    each other."""
    largest_component: bool = False
    """Keep the largest connected part of every class only."""

    def __post_init__(self) -> None:
        """Refuse windows with gaps between them, or that never get on, by ConfigurationError."""
        if not 0 <= self.overlap < 1:
            raise ConfigurationError(
                f"segment.overlap is {self.overlap:g}, but must be at least 0 and below 1."
            )


@dataclass(frozen=True)
class FewshotSettings:
    """Everything that decides what is learned from labels."""

    mode: Literal["quick", "finetune"] = "quick"
    """``quick``: frozen features and a light head, seconds; ``finetune``: a Swin UNETR, minutes."""
    zero: Literal["unlabelled", "background"] = "unlabelled"
    """What label 0 means: ``unlabelled`` where strokes were painted, ``background`` where label
    maps are complete. Quick spreads strokes within regions of like intensity, and takes some
    unlabelled voxels for background, with little weight."""
    background: int | None = None
    """Label that means background where 0 means unlabelled; none is painted when left out."""
    preset: str = "checkpoint"
    """Intensities, ``checkpoint`` for those the encoder was trained with, ``auto``, or the name of
    a preset."""
    spacing_mm: tuple[float, float, float] | None = None
    """Spacing (z, y, x) that scans are resampled to before they are learned from or segmented; as
    they are when left out."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``mps``."""
    seed: int = 0
    """Same seed, same result on the same device."""
    quick: QuickSettings = field(default_factory=QuickSettings)
    """Settings of mode ``quick``."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    """Settings of mode ``finetune``."""
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    """How scans are segmented with the model."""


def note_on_background(settings: FewshotSettings) -> str:
    """Say in a sentence what happens where no class means background; "" where one does."""
    if settings.zero == "background" or settings.background is not None:
        return ""
    return "No class means background, so " + (
        "what looks like unlabelled voxels may become background."
        if settings.mode == "quick"
        else "every voxel will become one of the classes."
    )


def note_on_spacings(
    spacings_mm: Sequence[tuple[str, Sequence[float]]], settings: FewshotSettings
) -> str:
    """Say in a sentence which scan has voxels unlike those of the first; "" where none has.

    Parameters
    ----------
    spacings_mm : sequence of (str, sequence of float)
        Name and spacing (z, y, x) in mm of the scans that are learned from.
    settings : FewshotSettings
        May have a spacing of their own, to which all of them are brought.
    """
    if settings.spacing_mm is not None or not spacings_mm:
        return ""
    (name, first), *others = spacings_mm
    for other, spacing in others:
        ratios = [one / known for one, known in zip(spacing, first, strict=True)]
        if any(not 1 / SPACING_FACTOR <= ratio <= SPACING_FACTOR for ratio in ratios):
            return (
                f"{other} has voxels of {_sides(spacing)} mm and {name} of {_sides(first)} mm, but "
                "a model counts in voxels: s2dc finetune --spacing_mm brings them to one size."
            )
    return ""


def _sides(spacing_mm: Sequence[float]) -> str:
    return " × ".join(f"{side:.3g}" for side in spacing_mm)


def write_settings(settings: FewshotSettings, path: Path, *, encoder: str = "") -> None:
    """Write settings as YAML that ``s2dc finetune --config`` reads.

    Parameters
    ----------
    settings : FewshotSettings
        What decides what is learned.
    path : Path
        File to write.
    encoder : str
        Checkpoint, run folder or name of the encoder that is begun with, unless another one is
        named beside the file; "" for none.

    Raises
    ------
    S2DCError
        The file cannot be written.
    """
    import yaml

    begun_with = {"encoder": encoder} if encoder else {}
    text = yaml.safe_dump({**begun_with, **_plain(asdict(settings))}, sort_keys=False)
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def settings_from(content: Any, where: str) -> FewshotSettings:
    """Make settings of plain values, as YAML and JSON give them; what is left out has its default.

    Parameters
    ----------
    content : object
        Mapping of names to values, groups as mappings within.
    where : str
        Where the values come from, for the message.

    Raises
    ------
    ConfigurationError
        A setting is unknown, of the wrong type, or makes no sense, such as a seed out of range.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if not isinstance(content, dict):
        raise ConfigurationError(f"{where} holds no settings, but {type(content).__name__}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FewshotSettings)
    try:
        parsed = parser.instantiate(parser.parse_object(content))
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{where}: a setting cannot be used. {reason}") from error
    settings = FewshotSettings(**vars(parsed))
    require_seed(settings.seed, f"{where}: seed")
    return settings


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which YAML writes in a way that other programs read."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
