"""Run every benchmark that needs nothing but this machine, and rewrite ``docs/benchmarks.md``.

Run ``python -m benchmarks --help`` in the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Benchmark:
    """One command of this folder.

    Parameters
    ----------
    module : str
        Name in this folder.
    arguments : tuple of str
        What it is run with beside ``--write``.
    screen : bool
        Whether it opens windows.
    """

    module: str
    arguments: tuple[str, ...] = ()
    screen: bool = False

    @property
    def command(self) -> list[str]:
        """Arguments for Python."""
        return ["-m", f"benchmarks.{self.module}", *self.arguments, "--write"]


_PAPER = (
    *("--size", "base", "--window", "7", "--crop", "96", "--grid", "1", "4", "4"),
    *("--token-stage", "4", "--head", "2048", "512"),
)

BENCHMARKS: dict[str, tuple[Benchmark, ...]] = {
    "cpu": (
        Benchmark("transport"),
        Benchmark("transport", ("--temperature", "0.05")),
        Benchmark("encoder", ("--repeats", "3")),
        Benchmark("step"),
        Benchmark("embedding"),
        Benchmark("quick"),
        Benchmark("growth"),
        Benchmark("interactive", screen=True),
        Benchmark("responsiveness", screen=True),
    ),
    "cuda": (
        Benchmark("transport", ("--device", "cuda")),
        Benchmark("transport", ("--temperature", "0.05", "--device", "cuda")),
        *(
            Benchmark("encoder", ("--feature-size", size, "--batch", "16", "--device", "cuda"))
            for size in ("12", "48")
        ),
        Benchmark("step", ("--device", "cuda")),
        Benchmark("step", (*_PAPER, "--device", "cuda")),
    ),
}
"""What is run on each device, in this order, until the time is over."""

NEED_MORE = ("learning", "probing", "matching", "fewshot", "evidence")
"""Benchmarks that need trained encoders or scans; each has a command of its own."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=tuple(BENCHMARKS), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop when they are over")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these only")
    options = parser.parse_args(arguments)
    known = {benchmark.module for benchmark in BENCHMARKS[options.device]}
    unknown = sorted(set(options.only or ()) - known)
    if unknown:
        parser.error(f"--only: no {', '.join(unknown)} among {', '.join(sorted(known))}.")
    return options


def chosen(options: argparse.Namespace) -> tuple[list[Benchmark], list[str]]:
    """Return what is run, and sentences on what is left out."""
    wanted = [
        benchmark
        for benchmark in BENCHMARKS[options.device]
        if not options.only or benchmark.module in options.only
    ]
    on_screen = [benchmark for benchmark in wanted if benchmark.screen]
    left_out = [f"{', '.join(NEED_MORE)}: they need trained encoders or scans."]
    if on_screen and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        names = ", ".join(benchmark.module for benchmark in on_screen)
        left_out.append(f"{names}: no screen; xvfb-run -a gives one.")
        wanted = [benchmark for benchmark in wanted if not benchmark.screen]
    return wanted, left_out


def run(benchmarks: Sequence[Benchmark], minutes: float) -> tuple[dict[str, float], list[str]]:
    """Run each in a process of its own, so that neither memory nor settings are shared.

    Parameters
    ----------
    benchmarks : sequence of Benchmark
        One after the other.
    minutes : float
        For all together.

    Returns
    -------
    seconds : dict
        By command, of those that ended well.
    failures : list of str
        Commands that failed, or had no time left, with the reason.
    """
    deadline = time.monotonic() + 60 * minutes
    seconds: dict[str, float] = {}
    failures: list[str] = []
    for benchmark in benchmarks:
        name = " ".join(("python", *benchmark.command))
        begun = time.monotonic()
        try:
            code = subprocess.run(
                [sys.executable, *benchmark.command],
                cwd=REPOSITORY,
                timeout=max(deadline - begun, 0.0),
            ).returncode
        except subprocess.TimeoutExpired:
            failures.append(f"{name}: the {minutes:g} minutes were over.")
            continue
        if code:
            failures.append(f"{name}: exit code {code}.")
        else:
            seconds[name] = round(time.monotonic() - begun, 1)
    return seconds, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 1 if one of them failed or the time was over."""
    options = parse(arguments)
    benchmarks, left_out = chosen(options)

    # Only now: --help must not wait for torch.
    import torch

    from benchmarks import report, results

    facts = report.machine_facts(torch.device(options.device))
    before = results.read(report.DOCUMENT)
    seconds, failures = run(benchmarks, options.minutes)
    after = results.read(report.DOCUMENT)
    written = {name: found for name, found in after.items() if found != before.get(name)}
    if options.json:
        content = {"machine": facts, "seconds": seconds, "sections": written}
        options.json.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(f"\nWritten: {', '.join(written) or 'nothing'}.")
    for title, sentences in (("Left out", left_out), ("Failed", failures)):
        for sentence in sentences:
            print(f"{title}: {sentence}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
