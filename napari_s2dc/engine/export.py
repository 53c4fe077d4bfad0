"""Trained encoders written for other programs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from napari_s2dc.errors import CheckpointError
from napari_s2dc.files import write_with_torch

ENCODER_NAME = "encoder.safetensors"
FORMATS = ("monai-swin-unetr",)


@dataclass(frozen=True)
class Exported:
    """A written file and the lines of Python that load it.

    Parameters
    ----------
    path : The file.
    tensors : How many tensors it holds.
    usage : Python that loads it.
    """

    path: Path
    tensors: int
    usage: str


def checkpoint_in(run: str | os.PathLike[str]) -> Path:
    """Find the checkpoint a user means: the file itself, or the encoder in a run folder.

    Raises
    ------
    CheckpointError
        There is nothing of that name, or the folder holds no encoder.
    """
    run = Path(run)
    if not run.exists():
        raise CheckpointError(f"There is no run folder or checkpoint file {run}.")
    if not run.is_dir():
        return run
    for candidate in (run / ENCODER_NAME, run / "checkpoints" / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"The folder {run} holds neither {ENCODER_NAME} nor checkpoints/last.ckpt.",
        "Name a run folder that s2dc-train wrote, or a checkpoint file.",
    )


def export_monai_swin_unetr(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Exported:
    """Write an encoder as a state dict for ``monai.networks.nets.SwinUNETR``.

    Parameters
    ----------
    run : path-like
        Run folder of s2dc-train, or any checkpoint that `SwinEncoder.from_checkpoint` reads.
    out : path-like, optional
        File to write; without it ``monai-swin-unetr.pt`` in the run folder, or the checkpoint's
        name with ``-monai-swin-unetr.pt`` beside it.

    Returns
    -------
    Exported
        The file holds plain tensors under ``swinViT.*`` and loads with ``weights_only=True``.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be read, or its encoder looks at borders, which MONAI's does not.
    S2DCError
        The file cannot be written.
    """
    from napari_s2dc.method.encoder import SwinEncoder

    source = checkpoint_in(run)
    if out is not None:
        target = Path(out)
    elif Path(run).is_dir():
        target = Path(run) / "monai-swin-unetr.pt"
    else:
        target = source.with_name(f"{source.stem}-monai-swin-unetr.pt")
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder.", "Name a file for --out.")
    if target.exists() and target.samefile(source):
        raise CheckpointError(f"{target} is the checkpoint itself.", "Name another file for --out.")
    encoder = SwinEncoder.from_checkpoint(source)
    if encoder.config.borders:
        raise CheckpointError(
            f"The encoder in {source} looks at the borders of tissues, which MONAI's SwinUNETR "
            "does not: its weights would be useless there.",
            "In Python, SwinEncoder.to_swin_unetr gives a SwinUNETR that does.",
        )
    state = {
        f"swinViT.{name}": tensor.contiguous() for name, tensor in encoder.swin.state_dict().items()
    }
    write_with_torch(target, state)
    config = encoder.config
    usage = "\n".join(
        [
            "import torch",
            "from monai.networks.nets import SwinUNETR",
            "",
            f"network = SwinUNETR(in_channels={config.in_channels}, out_channels=2, "
            f"feature_size={config.feature_size}, depths={config.depths}, "
            f"num_heads={config.num_heads}, window_size={config.window_size}, "
            f"use_v2={config.use_v2})",
            f"weights = torch.load({str(target)!r}, weights_only=True)",
            "missing, unexpected = network.load_state_dict(weights, strict=False)",
            'assert not unexpected and not [key for key in missing if key.startswith("swinViT.")]',
        ]
    )
    return Exported(path=target, tensors=len(state), usage=usage)
