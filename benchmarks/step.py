"""Milliseconds of each part of a training step, ours beside a plain one like the released code's.

Run ``python -m benchmarks.step --help`` in the repository.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Light: torch itself may only allocate after the allocator was set.
from benchmarks.memory import resident_mb
from napari_s2dc.engine.allocator import keep_large_buffers

PARTS = ("data", "views", "teacher", "student", "losses", "optimizer")
BATCHED = "views + losses"
SIDES = ("ours", "released")
WARM_UP = 2
"""Repetitions that are not counted: imports, first allocations, choice of kernels."""

Times = list[dict[str, float]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description="Time a training step of ours and a plain one like the released code's.",
    )
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--window", type=int, default=4, help="side of an attention window")
    parser.add_argument("--crop", type=int, default=48, help="side of a crop in voxels")
    parser.add_argument("--grid", type=int, nargs=3, default=[1, 2, 2], metavar=("Z", "Y", "X"))
    parser.add_argument("--batch", type=int, default=1, help="sub-volumes per step")
    parser.add_argument("--token-stage", type=int, default=2, help="stage whose tokens match")
    parser.add_argument(
        "--head", type=int, nargs=2, default=[512, 256], metavar=("HIDDEN", "OUTPUT")
    )
    parser.add_argument("--repeats", type=int, default=15, help="counted steps of each side")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument(
        "--one-process", action="store_true", help="leave out memory and the allocator's share"
    )
    parser.add_argument("--write", action="store_true", help="put the tables in docs/benchmarks.md")
    # One side alone in a fresh process, for its memory: what this program starts itself with.
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--plain-allocator", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error("--repeats must be at least 2, or there is no spread.")
    return options


def measure(
    options: argparse.Namespace, sides: Sequence[str]
) -> tuple[dict[str, Times], float, str]:
    """Time the steps of some sides in turn (A, B, A, B, ...).

    Returns
    -------
    times : dict
        For each side, seconds of each part, of :data:`BATCHED` and of ``total``, by repetition.
    held_mb : float
        Memory that was held before the first step.
    description : str
        Sizes and machine.
    """
    import torch
    from s2dc_train.module import S2DCModule

    from benchmarks.our_step import OurStep
    from benchmarks.released_step import ReleasedStep
    from benchmarks.report import machine
    from benchmarks.stopwatch import Stopwatch
    from benchmarks.workload import Samples, Sizes

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    sizes = Sizes(
        size=options.size,
        window=options.window,
        crop=options.crop,
        grid=options.grid,
        batch=options.batch,
        token_stage=options.token_stage,
        head=options.head,
    )
    description = f"{str(sizes)[0].upper()}{str(sizes)[1:]}. {machine(device)}"
    makers: dict[str, Any] = {"ours": OurStep, "released": ReleasedStep}
    times: dict[str, Times] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(sizes, Path(folder), device)
        module = S2DCModule(sizes.config()).to(device)
        steps = {side: makers[side](module, samples) for side in sides}
        held_mb = held_memory_mb(options.device)
        watch = Stopwatch(device)
        for repetition in range(WARM_UP + options.repeats):
            for side, step in steps.items():
                watch.start()
                begin = watch.now()
                step.step(repetition, watch)
                total = watch.now() - begin
                if repetition >= WARM_UP:
                    parts = dict(watch.seconds)
                    batched = parts["views"] + parts["losses"]
                    times[side].append({**parts, BATCHED: batched, "total": total})
    return times, held_mb, description


def peak_memory_mb(device: str) -> float:
    """Largest memory of this process: on the GPU if it works there, else resident memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike getrusage, this does not begin at the size of the process that started us.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held_memory_mb(device: str) -> float:
    """Memory that this process holds now, of the GPU if it works there."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device) / 2**20
    return resident_mb()


def alone(options: argparse.Namespace, side: str, *, plain_allocator: bool) -> dict[str, Any]:
    """Time one side in a process of its own.

    Returns
    -------
    dict
        ``times`` and ``held_mb`` as :func:`measure` gives them, and ``peak_memory_mb``.
    """
    command = [sys.executable, "-m", "benchmarks.step", *size_arguments(options), "--side", side]
    if plain_allocator:
        command.append("--plain-allocator")
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def size_arguments(options: argparse.Namespace) -> list[str]:
    """Arguments that repeat this measurement."""
    arguments = ["--size", options.size, "--window", options.window, "--crop", options.crop]
    arguments += ["--grid", *options.grid, "--batch", options.batch]
    arguments += ["--token-stage", options.token_stage, "--head", *options.head]
    arguments += ["--repeats", options.repeats, "--device", options.device]
    if options.threads:
        arguments += ["--threads", options.threads]
    return [str(argument) for argument in arguments]


def named(options: argparse.Namespace) -> str:
    """Name of these sizes on this kind of device, for the heading."""
    device = options.device.partition(":")[0]
    return f"{options.size}, attention window {options.window}, on {device}"


def part_table(times: dict[str, Times]) -> str:
    """Milliseconds of both sides and their ratios, a part a row."""
    from benchmarks.report import spread, table

    rows = []
    for part in (*PARTS, BATCHED, "total"):
        ours, released = ([step[part] for step in times[side]] for side in SIDES)
        # Both sides of one repetition ran one after the other, so their ratio is the fair one.
        ratios = [theirs / mine for mine, theirs in zip(ours, released, strict=True)]
        rows.append([part, spread(ours), spread(released), spread(ratios, 1.0, 2)])
    return table(["part", "ours, ms", "released style, ms", "released style / ours"], rows)


def process_table(options: argparse.Namespace) -> str:
    """Measure times and peak memory of each side in its own process; on the CPU also as it comes.

    One process after the other, so that their ratios hold what the machine did meanwhile.
    """
    from benchmarks.report import spread, table

    rows = []
    ours: tuple[float, float] | None = None
    for side, name in zip(SIDES, ("ours", "released style"), strict=True):
        for plain in (False,) if options.device != "cpu" else (False, True):
            result = alone(options, side, plain_allocator=plain)
            student, total = (
                [step[part] for step in result["times"]] for part in ("student", "total")
            )
            peak, held = result["peak_memory_mb"], result["held_mb"]
            ours = ours or (statistics.median(total), peak)
            label = f"{name}, without the allocator setting" if plain else name
            row = [label, spread(student), spread(total)]
            row += [f"{statistics.median(total) / ours[0]:.2f}", f"{peak:.0f}"]
            rows.append([*row, f"{peak / ours[1]:.2f}", f"{peak - held:.0f}"])
    memory = "GPU memory" if options.device.startswith("cuda") else "memory"
    header = ["each in its own process", "student, ms", "total, ms", "× ours"]
    header += [f"peak {memory}, MB", "× ours", "of it above the start, MB"]
    return table(header, rows)


def report(options: argparse.Namespace) -> str:
    """Measure all that was asked for and describe it in markdown."""
    # First those in their own processes, while this one holds no memory and no threads.
    separate = None if options.one_process else process_table(options)
    times, _, description = measure(options, SIDES)
    command = shlex.join(["python", "-m", "benchmarks.step", *size_arguments(options)])
    lines = [
        f"## Training step, {named(options)}",
        f"{description} Median of {options.repeats} steps of each side in turn, in brackets the "
        "quartiles. Student and losses include their backward passes.",
        part_table(times),
    ]
    if separate:
        lines.append(separate)
    lines.append(f"    {command} --write")
    return "\n\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parse(arguments)
    if not options.plain_allocator:
        keep_large_buffers()
    if options.side:
        times, held_mb, _ = measure(options, [options.side])
        memory = {"held_mb": held_mb, "peak_memory_mb": peak_memory_mb(options.device)}
        print(json.dumps({"times": times[options.side], **memory}))
        return
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section(f"step {named(options)}", text)


if __name__ == "__main__":
    main()
