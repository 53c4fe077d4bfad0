"""Time and memory of the encoder, ours beside MONAI's as it comes and beside MONAI's at its best.

Run ``python -m benchmarks.encoder --help`` in the repository.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.encoder_side import KINDS, Side, product_side, serve

SIDES: dict[str, dict[str, bool]] = {
    "MONAI": {"ours": False, "flash": False, "tuned": False},
    "MONAI, flash attention, allocator": {"ours": False, "flash": True, "tuned": True},
    "ours, allocator": {"ours": True, "flash": False, "tuned": True},
}

_PAUSE_S = 1.0
"""Before each pass. Right after another process, whatever comes next takes up to a tenth longer."""


class _Measured:
    """One side in its process, with all that it answered."""

    def __init__(self, side: Side) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, far = context.Pipe()
        self.pipe: Connection = pipe
        self.process = context.Process(target=serve, args=(side, far))
        self.process.start()
        far.close()
        self.loss, self.memory = pipe.recv()
        self.seconds: list[float] = []

    def ask(self, question: str) -> Any:
        """Answer to one question."""
        self.pipe.send(question)
        return self.pipe.recv()

    def end(self) -> None:
        """Stop the process."""
        self.pipe.send("end")
        self.process.join()


def measure(
    training: bool, options: argparse.Namespace
) -> tuple[dict[str, _Measured], dict[str, dict[str, Any]]]:
    """Run all sides of one size in turn.

    Parameters
    ----------
    training : bool
        Forward and backward, otherwise forward.
    options : Namespace
        Options of the command.

    Returns
    -------
    measured : dict of str to _Measured
        Each side.
    facts : dict of str to dict
        Shares, operations and the rate of matrix products of MONAI as it comes and of ours.
    """
    sizes = (options.feature_size, options.window, options.crop, options.batch, options.device)
    measured = {
        name: _Measured(Side(*flags.values(), training, *sizes)) for name, flags in SIDES.items()
    }
    for _ in range(options.repeats):
        for one in measured.values():
            time.sleep(_PAUSE_S)
            one.seconds.append(one.ask("time"))
    first, *_, last = measured
    facts = {name: measured[name].ask("facts") for name in (first, last)}
    for one in measured.values():
        one.end()
    reference = measured[first].loss
    for name, one in measured.items():
        # bf16 keeps three digits
        allowed = 1e-4 if options.device == "cpu" else 2e-2
        if abs(one.loss - reference) > allowed * abs(reference):
            raise SystemExit(f"{name} computes {one.loss}, MONAI {reference}.")
    return measured, facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--feature-size", type=int, default=48, help="12, 24 or 48")
    parser.add_argument("--window", type=int, default=7, help="side of an attention window")
    parser.add_argument("--crop", type=int, default=96, help="side of a crop in voxels")
    parser.add_argument("--batch", type=int, default=1, help="crops at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; bf16 on a GPU")
    parser.add_argument("--write", action="store_true", help="put the tables in docs/benchmarks.md")
    options = parser.parse_args(arguments)

    import torch

    from benchmarks.report import machine, spread, table, write_section

    device = torch.device(options.device)
    description, side = machine(device), product_side(device.type)
    times, parts = [], []
    for training, work in ((False, "forward"), (True, "forward + backward")):
        measured, facts = measure(training, options)
        ours = list(measured.values())[-1]
        for name, one in measured.items():
            ratio = statistics.median(one.seconds) / statistics.median(ours.seconds)
            times.append(
                [
                    f"{work}, {name}",
                    spread(one.seconds, digits=0),
                    f"{ratio:.2f}",
                    f"{one.memory:.0f}",
                    f"{one.memory / ours.memory:.2f}",
                ]
            )
        for name, fact in facts.items():
            row = [f"{work}, {name}"]
            row += [f"{100 * fact['shares'][kind]:.0f}" for kind in [*KINDS, "rest"]]
            rates = ["", "", ""]
            if not training:
                rate = fact["operations"] / statistics.median(measured[name].seconds)
                percent = 100 * rate / fact["products"]
                rates = [f"{fact['operations']:.1f}", f"{rate:.0f}", f"{percent:.0f} %"]
            parts.append(row + rates)
    command = (
        f"python -m benchmarks.encoder --feature-size {options.feature_size} --window "
        f"{options.window} --crop {options.crop} --batch {options.batch} "
        f"--repeats {options.repeats} --device {options.device}"
    )
    text = "\n\n".join(
        [
            f"## The encoder at feature size {options.feature_size}, window {options.window} on "
            f"{device.type}",
            f"{options.batch} crop(s) of {options.crop}³ voxels, "
            f"{'float32' if device.type == 'cpu' else 'bf16'}, the same weights. {description} "
            f"Every side in a process of its own; median of {options.repeats} runs in turn with "
            f"{_PAUSE_S:g} s between them, in brackets the quartiles. Memory: rise in the first "
            "pass.",
            table(
                ["work, side", "ms", "ours is × faster", "MB", "× ours"],
                times,
            ),
            "Share of the operations' time in percent (torch's profiler), operations of a forward "
            f"pass, their rate, and that rate beside a product of {side} × {side} matrices. "
            "Operations of convolutions are counted in full, though on the CPU ours does the large "
            "ones with half.",
            table(
                ["work, side", *KINDS, "rest", "GFLOP", "GFLOP/s", "of products"],
                parts,
            ),
            f"    {command} --write",
        ]
    )
    print(text)
    if options.write:
        write_section(f"encoder {options.feature_size} window {options.window} {device.type}", text)


if __name__ == "__main__":
    main()
