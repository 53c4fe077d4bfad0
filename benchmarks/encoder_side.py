"""One side of the encoder's benchmark, alone in a process with its own allocator setting."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

# Light: torch itself may only allocate after the allocator was set.
from benchmarks.memory import peak_during
from napari_s2dc.engine.allocator import keep_large_buffers

if TYPE_CHECKING:
    import torch

KINDS: dict[str, tuple[str, ...]] = {
    "attention": (
        "aten::bmm",
        "aten::baddbmm",
        "softmax",
        "exp2",
        "dot_product",
        "blockwise",
        "tiled",
    ),
    "convolutions": ("conv", "mkldnn_reorder"),
    "linear layers": ("aten::addmm", "aten::mm"),
    "norms": ("norm",),
    "copies": ("copy", "aten::cat", "index", "gather", "roll", "pad", "fill", "scatter"),
}
"""Parts of the names of torch's operations of each kind, looked up in this order."""


_WHOLE = ("napari_s2dc::convolve", "napari_s2dc::tiled", "napari_s2dc::layer", "napari_s2dc::norm")
"""Starts of the names of our operators whose parts are not counted by themselves."""


@dataclass(frozen=True)
class Side:
    """What is measured in one process.

    Parameters
    ----------
    ours : Our encoder, otherwise MONAI's ``SwinTransformer``.
    flash : MONAI's ``use_flash_attention``, which acts without gradients only.
    tuned : Keep large buffers (`napari_s2dc.engine.allocator`).
    training : Forward and backward, otherwise forward.
    feature_size, window, crop, batch : Sizes.
    device : Device; on a GPU the networks run in bf16.
    """

    ours: bool
    flash: bool
    tuned: bool
    training: bool
    feature_size: int
    window: int
    crop: int
    batch: int
    device: str

    def network(self) -> torch.nn.Module:
        """Return the network, always with the same weights."""
        import torch
        from monai.networks.nets.swin_unetr import SwinTransformer

        from napari_s2dc.method.swin import FastSwinTransformer

        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "in_chans": 1,
            "embed_dim": self.feature_size,
            "window_size": (self.window,) * 3,
            "patch_size": (2, 2, 2),
            "depths": (2, 2, 2, 2),
            "num_heads": (3, 6, 12, 24),
            "use_v2": True,
        }
        if self.ours:
            return FastSwinTransformer(**settings)
        return SwinTransformer(**settings, use_flash_attention=self.flash)

    def step(self, network: torch.nn.Module, crops: torch.Tensor) -> float:
        """One pass; a number that depends on all stages."""
        import torch

        half = torch.autocast(crops.device.type, torch.bfloat16, enabled=self.device != "cpu")
        with torch.set_grad_enabled(self.training), half:
            loss = torch.stack([s.float().pow(3).mean() for s in network(crops)]).sum()
        if self.training:
            network.zero_grad()
            loss.backward()
        return loss.item()


def _rise(work: Callable[[], object], device: torch.device) -> float:
    """MB by which some work raises the memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - start) / 2**20
    return peak_during(work)[1]


def _kind(event: Any) -> str:
    """Kind of an operation; what some of our own operators consist of is part of them."""
    name, around = event.name.lower(), event.cpu_parent
    while around is not None:
        if any(part in around.name for part in _WHOLE):
            name = around.name.lower()
        around = around.cpu_parent
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "rest"


def shares(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of the time of some work on a device that each kind of operation takes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + on_gpu * [ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    spent = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiler.events():
        # The time of kernels is counted at the operation that started them, and once more at
        # themselves, which are no operations of the CPU
        if event.device_type == torch.autograd.DeviceType.CPU:
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[_kind(event)] += time
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.items()}


def product_side(device: str) -> int:
    """Rows of the matrices whose product is this kind of device's rate; a GPU wants large ones."""
    return 2048 if device == "cpu" else 8192


def _products(device: torch.device) -> float:
    """GFLOP/s of a large matrix product."""
    import torch

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    side = product_side(device.type)
    matrix = torch.randn(side, side, device=device, dtype=dtype)

    def once() -> float:
        begun = time.perf_counter()
        result = matrix @ matrix
        float(result[0, 0])
        return time.perf_counter() - begun

    return 2 * side**3 / min(once() for _ in range(10)) / 1e9


def _operations(side: Side) -> float:
    """GFLOP of a pass forward, counted without computing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    crops = torch.empty(side.batch, 1, *(side.crop,) * 3, device="meta")
    with counter, torch.no_grad():
        side.network().to("meta")(crops)
    return counter.get_total_flops() / 1e9


def serve(side: Side, pipe: Connection) -> None:
    """Answer what the main process asks: ``time``, ``facts`` or ``end``.

    Parameters
    ----------
    side : Side
        What is measured.
    pipe : Connection
        First gives (loss, MB that the first pass took); then one answer per question.
    """
    if side.tuned and side.device == "cpu" and not keep_large_buffers():
        sys.exit("The allocator cannot be set on this system.")
    import torch

    device = torch.device(side.device)
    network = side.network().to(device)
    generator = torch.Generator().manual_seed(1)
    crops = torch.rand(side.batch, 1, *(side.crop,) * 3, generator=generator).to(device)
    losses: list[float] = []
    memory = _rise(lambda: losses.append(side.step(network, crops)), device)
    pipe.send((losses[0], memory))
    while (question := pipe.recv()) != "end":
        if question == "time":
            begun = time.perf_counter()
            side.step(network, crops)
            pipe.send(time.perf_counter() - begun)
        elif question == "facts":
            facts = {"shares": shares(lambda: side.step(network, crops), device)}
            pipe.send({**facts, "products": _products(device), "operations": _operations(side)})
