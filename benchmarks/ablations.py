"""Train the encoder of the evidence short and alike, each time with one thing left out or changed.

    python -m benchmarks.bundled_scans DATA SCANS
    python -m benchmarks.ablations SCANS RUNS
    python -m benchmarks.evidence DATA --ablations RUNS --parts patches contrast --write

A finished run is left as it is, so an interrupted command goes on where it was. What made-up
anatomies are worth for kinds of scans that no training saw is asked of CT alone:

    python -m benchmarks.probing_scans DATA SCANS_CT
    python -m benchmarks.ablations SCANS_CT RUNS_CT --only "all of it" "scans alone"
    python -m benchmarks.evidence DATA --ablations RUNS_CT --title "trained on CT alone" \
        --parts patches --write
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.fewshot_splits import SEEDS
from napari_s2dc.engine.demo_training import TRAIN

COMMON = {
    "config": "tiny_cpu",
    "data.validation_volumes": "2",
    "data.synthetic_share": "0.5",
    "loss.global_contrast": "0.15",
}
"""As S2DC tiny is trained."""

VARIANTS: dict[str, dict[str, str]] = {
    "all of it": {},
    "without patch to patch": {"loss.patch_to_patch": "0"},
    "without patch to structure": {"loss.patch_to_structure": "0"},
    "without global contrast": {"loss.global_contrast": "0"},
    "temperature 1": {"loss.temperature": "1.0"},
    "matching in-plane": {"views.matching": "in_plane"},
    "tokens of stage 3": {"model.token_stage": "3"},
    "each view in a contrast of its own": {"data.cross_contrast": "true"},
    "own contrasts, looked at by borders": {"data.cross_contrast": "true", "model.borders": "true"},
    "scans alone": {"data.synthetic_share": "0"},
    "pairs as released": {},
    "pairs as released, in-plane": {"views.matching": "in_plane"},
}
PAIRS_AS_RELEASED = {name for name in VARIANTS if name.startswith("pairs as released")}
"""Variants of :mod:`benchmarks.released_geometry`, which is no setting of the trainer."""
STEPS = 200


def run_of(runs: Path, name: str, seed: int) -> Path:
    """Folder of a variant's run."""
    return runs / f"{name.replace(' ', '_')}_{seed}"


def train(scans: Path, runs: Path, name: str, steps: int, seed: int) -> None:
    """Train a variant in a process with one thread; its output goes into a file beside."""
    out = run_of(runs, name, seed)
    if (out / "encoder.safetensors").is_file():
        return
    settings = {
        **COMMON,
        "data.path": str(scans),
        "data.cache_dir": str(runs / "cache"),
        "trainer.max_steps": str(steps),
        "trainer.validate_every": str(steps),
        "seed": str(seed),
        **VARIANTS[name],
        "out": str(out),
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", value)]
    trainer = ["-m", "benchmarks.released_geometry"] if name in PAIRS_AS_RELEASED else ["-c", TRAIN]
    with (runs / f"{out.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, *trainer, *arguments],
            check=True,
            cwd=Path(__file__).parent.parent,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    print(f"{name}, seed {seed}: done", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every variant that is missing, with every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", type=Path, help="folder of benchmarks.bundled_scans")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    options = parser.parse_args(arguments)
    # Training runs in the repository, wherever this was started
    scans, runs = options.scans.resolve(), options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [
            pool.submit(train, scans, runs, name, options.steps, seed)
            for seed in SEEDS
            for name in options.only
        ]:
            done.result()


if __name__ == "__main__":
    main()
