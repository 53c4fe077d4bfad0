"""Milliseconds of transport with a dustbin, forward and backward: ours, POT and one by one.

Run ``python -m benchmarks.transport --help`` in the repository.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from s2dc_train.config import LossConfig
from torch import Tensor

from benchmarks.released_losses import sinkhorn
from benchmarks.report import machine, spread, table, write_section
from benchmarks.stopwatch import Stopwatch
from napari_s2dc.method.transport import assignment

DUSTBIN = 1.0
TEMPERATURE = 0.1
CONVERGED = 5000
"""Iterations after which no plan of these changes any more."""
_LOSS = LossConfig()
TOLERANCE = _LOSS.sinkhorn_tolerance


def with_pot(scores: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Solve with POT's batched log-domain solver with unrolled gradients."""
    from ot.batch import solve_batch

    count, n, m = scores.shape
    extended = F.pad(scores, (0, 1, 0, 1), value=DUSTBIN)
    a, b = scores.new_ones(count, n + 1), scores.new_ones(count, m + 1)
    a[:, n], b[:, m] = m, n
    result = solve_batch(
        -extended,
        reg=1.0,
        a=a / (n + m),
        b=b / (n + m),
        max_iter=iterations,
        tol=tolerance,
        method="log_sinkhorn",
        grad="autodiff",
    )
    return result.plan * (n + m)


def one_by_one(scores: Tensor, iterations: int) -> Tensor:
    """Solve each problem on its own, as in the released code."""
    return torch.stack([sinkhorn(problem, DUSTBIN, iterations) for problem in scores])


def features(problem_count: int, tokens: int, temperature: float, device: str) -> Tensor:
    """Scores of tokens that resemble their partners, as after some training."""
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(problem_count, tokens, 128, generator=generator), dim=-1)
    noise = F.normalize(torch.randn(query.shape, generator=generator), dim=-1)
    key = F.normalize(query + noise, dim=-1)
    return (query @ key.mT / temperature).to(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--problems", type=int, default=6, help="matching problems")
    parser.add_argument("--tokens", type=int, default=144, help="tokens of each view")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--write", action="store_true", help="put the table in docs/benchmarks.md")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    scores = features(options.problems, options.tokens, options.temperature, options.device)
    reached = f"until {TOLERANCE:g}"
    every = f"all {options.iterations}"
    ours = partial(assignment, dustbin=DUSTBIN)
    most = _LOSS.sinkhorn_iterations
    solvers: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
        ("ours", reached): partial(ours, iterations=most, tolerance=TOLERANCE),
        ("POT, log domain, batched", reached): partial(
            with_pot, iterations=most, tolerance=TOLERANCE
        ),
        ("ours", every): partial(ours, iterations=options.iterations),
        ("POT, log domain, batched", every): partial(
            with_pot, iterations=options.iterations, tolerance=0.0
        ),
        ("log domain, one by one", every): partial(one_by_one, iterations=options.iterations),
    }
    watch = Stopwatch(device)
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in solvers}
    converged = ours(scores.double(), iterations=CONVERGED)
    errors: dict[tuple[str, str], float] = {}
    description = machine(device)
    for repetition in range(options.repeats + 1):
        for name, solver in solvers.items():
            watch.start()
            leaf = scores.clone().requires_grad_()
            with watch.part("forward"):
                plan = solver(leaf)
            if not repetition:
                # Of the plan that sums to 1.
                difference = (plan.detach() - converged).abs().amax()
                errors[name] = float(difference) / (2 * options.tokens)
            loss = -plan[:, :-1, :-1].diagonal(dim1=1, dim2=2).clamp(min=1e-6).log().mean()
            with watch.part("backward"):
                loss.backward()
            if repetition:
                seconds[name].append((watch.seconds["forward"], watch.seconds["backward"]))
    rows = []
    for name, times in seconds.items():
        forward, backward = zip(*times, strict=True)
        rows.append([*name, spread(forward), spread(backward), f"{errors[name]:.1e}"])
    command = shlex.join(
        f"python -m benchmarks.transport --problems {options.problems} --tokens {options.tokens} "
        f"--temperature {options.temperature:g} --iterations {options.iterations} "
        f"--repeats {options.repeats} --device {options.device}".split()
    )
    header = ["solver", "iterations", "forward, ms", "backward, ms", "off the converged plan"]
    text = "\n\n".join(
        [
            f"## Transport with a dustbin on {device.type}",
            f"{options.problems} problems of {options.tokens} × {options.tokens} tokens, "
            f"temperature {options.temperature:g}, float32. {description} Median of "
            f"{options.repeats} runs in turn, in brackets the quartiles. Last column: largest "
            f"difference from the plan (which sums to 1) after {CONVERGED} iterations in float64.",
            table(header, rows),
            f"    {command} --write",
        ]
    )
    print(text)
    if options.write:
        heat = f" {options.temperature:g}" if options.temperature != TEMPERATURE else ""
        write_section(f"transport {device.type}{heat}", text)


if __name__ == "__main__":
    main()
