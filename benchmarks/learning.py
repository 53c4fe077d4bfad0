"""What pretraining runs learned: the validation figures of finished run folders, side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from s2dc_train.callbacks import read_rows

from benchmarks.report import machine, table, write_section

FIGURES = {
    "match_accuracy": "matching accuracy",
    "nearest_neighbour_accuracy": "5-NN accuracy",
    "effective_rank": "effective rank",
}
SHOWN_SETTINGS = (
    ("data", "crop_size"),
    ("data", "grid"),
    ("model", "size"),
    ("model", "window_size"),
    ("model", "token_stage"),
    ("model", "head_layers"),
    ("model", "teacher_momentum"),
    ("optimizer", "learning_rate"),
    ("views", "matching"),
    ("loss", "temperature"),
    ("trainer", "max_steps"),
)


def curve(run: Path) -> str:
    """Tabulate the validation figures of a run; what was not measured is left out."""
    rows = [row for row in read_rows(run / "metrics.csv") if row.get("validation_match_accuracy")]
    names = [name for name in FIGURES if rows and rows[0].get(f"validation_{name}")]
    body = [
        [
            # The first row is the untrained encoder's; a row's step counts from 0.
            "0" if number == 0 else str(int(row["step"]) + 1),
            *(f"{float(row[f'validation_{name}']):.3f}" for name in names),
        ]
        for number, row in enumerate(rows)
    ]
    return table(["steps", *(FIGURES[name] for name in names)], body)


def describe(run: Path) -> str:
    """Name, settings that matter, time and scans of a run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings = ", ".join(
        f"{section}.{name} {config[section][name]}" for section, name in SHOWN_SETTINGS
    )
    source = Path(config["data"]["path"]).name
    return (
        f"### {run.name}\n\n"
        f"Scans of `{source}`: {summary['volumes_used']} used, "
        f"{config['data']['validation_volumes']} of them held out, "
        f"{len(summary['volumes_skipped'])} skipped. {summary['steps']} steps in "
        f"{summary['seconds'] / 60:.1f} minutes, validation included "
        f"({summary['steps_per_second']} steps a second), peak memory "
        f"{summary['peak_memory_mb']:.0f} MB. Seed {config['seed']}; {settings}."
    )


def report(runs: Sequence[Path], title: str) -> str:
    """Describe runs and their curves in markdown."""
    parts = [f"## {title}", machine(torch.device("cpu"))]
    for run in runs:
        parts += [describe(run), curve(run)]
    parts.append("    python -m benchmarks.learning " + shlex.join(run.name for run in runs))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders of s2dc-train.")
    parser.add_argument("--title", default="What pretraining learned", help="Heading.")
    parser.add_argument("--write", action="store_true", help="Put it into docs/benchmarks.md.")
    options = parser.parse_args(arguments)
    text = report(options.runs, options.title)
    print(text)
    if options.write:
        write_section(f"learning {options.title}", text)


if __name__ == "__main__":
    main()
