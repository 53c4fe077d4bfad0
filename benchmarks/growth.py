"""How time and memory grow with the voxels of a scan, the patches of a match, a step's crops."""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# Light: torch itself may only allocate after the allocator was set.
from napari_s2dc.engine.allocator import keep_large_buffers, release_free_buffers

STAGE = 2
GRIDS = ((10, 10, 10), (10, 10, 20), (10, 20, 20), (20, 20, 20))
CROPS = ((1, 1, 2), (1, 2, 2), (2, 2, 2), (2, 2, 4))
LARGE_CT = (400, 512, 512)
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "growth.png"
_WORTH_REPEATING = 3.0
"""Seconds; what is done sooner is done again several times, and the median counts."""

Row = dict[str, float]


def full_scan(side: int) -> np.ndarray:
    """Cube of noise, float32: all of it is tissue, so that no window is left out."""
    block = np.random.default_rng(0).uniform(400, 600, (32, 32, 32)).astype(np.float32)
    tiles = -(-side // 32)
    scan = np.empty((side, side, side), np.float32)
    for z in range(side):  # so that making it leaves no memory behind that could be used again
        scan[z] = np.tile(block[z % 32], (tiles, tiles))[:side, :side]
    return scan


def repeated(work: Callable[[], object], first: float) -> float:
    """Seconds that some work takes again whose first time, with memory to ask for, took `first`."""
    times: list[float] = []
    while not times or first + sum(times) < _WORTH_REPEATING:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def one_scan(side: int) -> Row:
    """Time and memory of embedding a cube, for a process that does nothing else."""
    import torch

    from benchmarks.memory import peak_during
    from napari_s2dc.engine.embed import EmbedSettings, embed_volume, plan
    from napari_s2dc.engine.embedding import Embedding
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.volumes.volume import Volume

    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4).eval()
    settings = EmbedSettings(stage=STAGE, device="cpu")
    small, volume = (Volume(full_scan(n), np.eye(4), name="cube") for n in (32, side))
    finish(embed_volume(small, encoder, settings))  # imports
    found: list[Embedding] = []

    def work() -> None:
        found[:] = [finish(embed_volume(volume, encoder, settings))]

    seconds, memory_mb = peak_during(work)
    if not bool(found[0].foreground.all()):
        raise RuntimeError("Not all of the scan counts as tissue.")
    features_mb = found[0].features.nbytes / 2**20
    return {
        "size": side**3,
        "encoded": plan(volume.shape, encoder, settings).voxels,
        "seconds": repeated(work, seconds),
        "features_mb": features_mb,
        "memory_mb": memory_mb - features_mb,
    }


def scans(sides: Sequence[int]) -> list[Row]:
    """Embed cubes, each in a process of its own, for its memory."""
    rows: list[Row] = []
    for side in sides:
        command = [sys.executable, "-m", "benchmarks.growth", "--one-scan", str(side)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def matches() -> list[Row]:
    """Match scans of more and more patches of random features."""
    from benchmarks.matching_plans import random_scan
    from benchmarks.memory import peak_during
    from napari_s2dc.engine.match import match_embeddings

    rows: list[Row] = []
    for grid in GRIDS:
        a, b = random_scan(grid, 0), random_scan(grid, 1)
        work = functools.partial(match_embeddings, a, b)
        release_free_buffers()  # what the smaller ones have left
        first, memory_mb = peak_during(work)
        seconds = repeated(work, first)
        rows.append({"size": math.prod(grid), "seconds": seconds, "memory_mb": memory_mb})
    return rows


def steps() -> list[Row]:
    """Take training steps of more and more crops, each number in a process of its own."""
    from benchmarks.step import alone, parse

    rows: list[Row] = []
    for grid in CROPS:
        options = parse(["--grid", *map(str, grid), "--repeats", "3"])
        result = alone(options, "ours", plain_allocator=False)
        seconds = statistics.median(step["total"] for step in result["times"])
        memory_mb = float(result["peak_memory_mb"])
        rows.append({"size": math.prod(grid), "seconds": seconds, "memory_mb": memory_mb})
    return rows


def exponent(rows: Sequence[Row], by: str = "size", of: str = "seconds") -> float:
    """Fit the power of `by` that `of` grows with, by least squares of the logarithms."""
    slope, _ = np.polyfit(
        np.log([row[by] for row in rows]), np.log([row[of] for row in rows]), deg=1
    )
    return float(slope)


def draw(parts: dict[str, list[Row]], path: Path) -> None:
    """Plot seconds against sizes, both logarithmic, beside a line that grows alike.

    Parameters
    ----------
    parts : dict
        From what is counted to its rows.
    path : Path
        PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(4 * len(parts), 3.4), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(parts)), parts.items(), strict=True):
        sizes, seconds = ([row[key] for row in rows] for key in ("size", "seconds"))
        linear = [seconds[0] * size / sizes[0] for size in sizes]
        axes.loglog(sizes, linear, "--", color="0.6", label="exponent 1")
        axes.loglog(sizes, seconds, "o-", label=f"measured, exponent {exponent(rows):.2f}")
        axes.set(xlabel=name, ylabel="seconds")
        axes.legend(frameon=False)
        for axis in (axes.xaxis, axes.yaxis):  # less than a decade would have labels in the way
            axis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=110)


def features_sentence() -> str:
    """Say how large the features of a large CT are at each stage."""
    from napari_s2dc.engine.large_arrays import IN_MEMORY_BYTES
    from napari_s2dc.engine.window_plan import plan_windows
    from napari_s2dc.method.encoder import STRIDES, EncoderConfig

    parts = []
    for stage in range(4):
        sizes = []
        for feature_size in (12, 48):
            config = EncoderConfig(feature_size=feature_size)
            tokens = plan_windows(LARGE_CT, config, stage=stage, window_vox=96, overlap=0.25).tokens
            sizes.append(2 * math.prod(tokens) * feature_size * 2**stage / 2**20)
        parts.append(f"{sizes[0]:.0f} and {sizes[1]:.0f} MB at stage {stage} ({STRIDES[stage]})")
    return (
        f"Features of {'×'.join(map(str, LARGE_CT))} voxels, tiny and base, voxels a token side in "
        f"brackets: {', '.join(parts)}. Above {IN_MEMORY_BYTES // 2**20} MB they lie in a "
        "temporary file that is mapped into memory, window by window, and so do features of "
        "length 1, which colours, clicks and matches need: float32, twice as large."
    )


def report(options: argparse.Namespace) -> str:
    """Measure and describe in markdown; with ``--write`` the picture is drawn too."""
    # First those in their own processes, while this one holds no memory.
    embedded, trained = scans(options.sides), steps()
    import torch

    from benchmarks.report import machine, table
    from napari_s2dc.engine.match import MatchSettings

    description = machine(torch.device("cpu"))
    matched = matches()
    most = (MatchSettings().memory_bytes / MatchSettings().bytes_per_pair) ** 0.5
    whole = [row for row in matched if row["size"] <= most]
    if options.write:
        draw(
            {
                "voxels embedded": embedded,
                "patches matched": matched,
                "crops in a training step": trained,
            },
            PICTURE,
        )
    several = [row for row in embedded if row["encoded"] > 1.01 * row["size"]]
    rows = [
        [
            f"{round(row['size'] ** (1 / 3))}³",
            f"{row['encoded'] / row['size']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / row['encoded'] * 1e9:.0f}",
            f"{row['features_mb']:.1f}",
            f"{row['memory_mb']:.0f}",
        ]
        for row in embedded
    ]
    header = ["voxels", "encoded, times", "seconds", "ns an encoded voxel"]
    header += ["features, MB", "memory beyond, MB"]
    command = ["python", "-m", "benchmarks.growth", "--sides", *map(str, options.sides)]
    return "\n\n".join(
        [
            "## Growth",
            f"{description} tiny, attention window 4, stage {STAGE}. Seconds grow with the voxels "
            f"of the scan to the power {exponent(embedded):.2f}, from scans of several windows on "
            f"{exponent(several):.2f}, and with the voxels encoded "
            f"{exponent(embedded, 'encoded'):.2f}: windows overlap, and there is nothing to "
            "overlap with where one is enough. Memory beyond scan and features grows with the "
            f"power {exponent(several, of='memory_mb'):.2f} from scans of several windows on.",
            table(header, rows),
            features_sentence(),
            f"Matching, by patches in each scan, up to {whole[-1]['size']:.0f} by whole plans "
            f"(seconds with the power {exponent(whole):.2f}, memory from {whole[1]['size']:.0f} on "
            f"with {exponent(whole[1:], of='memory_mb'):.2f}), beyond coarse to fine:",
            table(
                ["patches", "seconds", "memory above the start, MB"],
                [
                    [f"{row['size']:.0f}", f"{row['seconds']:.2f}", f"{row['memory_mb']:.0f}"]
                    for row in matched
                ],
            ),
            f"A training step of ours, by crops of 48³ (power {exponent(trained):.2f}):",
            table(
                ["crops", "seconds", "peak memory of the process, MB"],
                [
                    [f"{row['size']:.0f}", f"{row['seconds']:.2f}", f"{row['memory_mb']:.0f}"]
                    for row in trained
                ],
            ),
            "![Seconds against size](pictures/growth.png)",
            f"    {shlex.join([*command, '--write'])}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[64, 96, 128, 192, 256, 320], help="of the cubes"
    )
    parser.add_argument("--write", action="store_true", help="put it into docs, with the picture")
    # One cube in a fresh process, for its memory: what this program starts itself with.
    parser.add_argument("--one-scan", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    keep_large_buffers()
    if options.one_scan:
        print(json.dumps(one_scan(options.one_scan)))
        return
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section("growth", text)


if __name__ == "__main__":
    main()
