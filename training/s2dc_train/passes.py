"""How many crops are encoded together, and for how many the backward pass begins again at voxels.

The losses need the tokens of all crops at once, but the encoder's activations are needed crop by
crop. Those that do not fit into a memory budget are dropped after the forward pass and computed
again when the backward pass comes to them, so that loss and gradient are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

CPU_VOXELS = 96**3
"""Voxels encoded together on a CPU. Measured: of crops of 96 voxels one at a time is fastest, of
four crops of 48 voxels all together."""

TRANSIENT = 2.0
"""What a pass takes beside the activations it saves, as a share of these, on the safe side. With
MONAI's attention 1.8 and 1.9 were measured; with ours, a step of 16 crops of 96 voxels at feature
size 48 that was planned for 8.0 GB on a CPU peaked at 6.3 GB."""

PROCESS_BYTES = 0.6e9
"""The interpreter with torch, MONAI and Lightning before the first step, roughly."""

_CPU_SHARE = 0.5
_GPU_SHARE = 0.9


@dataclass(frozen=True)
class Passes:
    """How the crops of a step are encoded.

    Parameters
    ----------
    together : int
        Crops of one pass.
    kept : int
        Passes, the last ones, whose activations are kept for the backward pass; those of the
        others are computed twice.
    """

    together: int
    kept: int

    def split(self, crops: Tensor) -> list[tuple[Tensor, bool]]:
        """Return the crops of every pass and whether its activations are kept."""
        parts = crops.split(self.together)
        return [(part, number >= len(parts) - self.kept) for number, part in enumerate(parts)]


def plan_passes(
    crops: int,
    crop_size: int,
    crop_bytes: float,
    free_bytes: float,
    *,
    on_gpu: bool,
    together: int = 0,
) -> Passes:
    """Choose the passes of a step.

    Parameters
    ----------
    crops : int
        Crops of a step.
    crop_size : int
        Side of a crop in voxels.
    crop_bytes : float
        Activations that one crop saves for the backward pass, as by :func:`saved_bytes`.
    free_bytes : float
        Memory that the activations may take.
    on_gpu : bool
        Whether the step runs on a GPU, which needs more crops at a time to be busy.
    together : int
        Crops of one pass; 0 chooses.

    Returns
    -------
    Passes
        At least one crop at a time, whether or not that fits.
    """
    if not together and on_gpu:
        fits_whole = crops * crop_bytes * (1 + TRANSIENT) <= free_bytes
        together = crops if fits_whole else int(free_bytes / (2 * (1 + TRANSIENT)) // crop_bytes)
        together = max(together, 1)
    together = min(together or together_on_cpu(crop_size), crops)
    # The backward pass of a dropped one begins when those that were kept are gone.
    kept = int(free_bytes / (together * crop_bytes) - TRANSIENT)
    return Passes(together, min(max(kept, 0), -(-crops // together)))


def together_on_cpu(crop_size: int) -> int:
    """Crops of some voxels a side that are encoded together on a CPU."""
    return max(CPU_VOXELS // crop_size**3, 1)


def saved_bytes(forward: Callable[[], Any], module: nn.Module) -> int:
    """Memory that a forward pass keeps for its backward pass.

    Parameters
    ----------
    forward : callable
        Runs the pass; what it returns is dropped.
    module : Module
        Its parameters and buffers are there anyway and do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    storages: dict[int, int] = {}
    # Held until the count is over, or the address of one that is freed could come twice. Without
    # the graph, which would hold itself through them for ever.
    held: list[Tensor] = []

    def note(tensor: Tensor) -> None:
        values = tensor.detach()
        held.append(values)
        if values.is_mkldnn:  # in oneDNN's own layout, which shows no storage
            storages[id(values)] = values.numel() * values.element_size()
            return
        storage = values.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing),
    ):
        forward()
    return sum(storages.values())


def memory_budget(asked_gb: float, device: torch.device) -> float:
    """Bytes that a run may take on its device.

    Parameters
    ----------
    asked_gb : float
        In units of 1e9 bytes; 0 means half of the machine's memory, or nine tenths of a GPU's,
        whatever is free at the moment, so that a resumed run plans the same.
    device : torch.device
        CPU or GPU.
    """
    if asked_gb:
        return asked_gb * 1e9
    if device.type == "cuda":
        return _GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return _CPU_SHARE * _machine_bytes()


def _machine_bytes() -> float:
    """Memory of this machine, or of the control group if that has less."""
    total = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else ""
    return min(total, float(text)) if text.isdigit() else total


def state_bytes(module: nn.Module, device: torch.device) -> float:
    """Memory beside activations: weights, gradients, both moments of AdamW and the process."""
    held = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    trained = sum(tensor.nbytes for tensor in module.parameters() if tensor.requires_grad)
    return held + 3 * trained + (0 if device.type == "cuda" else PROCESS_BYTES)
