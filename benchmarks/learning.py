"""What pretraining runs learned: the validation figures of finished run folders, side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from s2dc_train.callbacks import read_rows
from s2dc_train.config import DataConfig, ModelConfig
from s2dc_train.data import FullVolume, S2DCDataModule
from s2dc_train.evaluate import majority_labels, nearest_neighbour_accuracy
from s2dc_train.validation import PROBE_SUBJECTS
from torch import Tensor

from benchmarks.report import machine, table, write_section
from napari_s2dc.engine.embed import embed
from napari_s2dc.method.encoder import STRIDES, SwinEncoder

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


def structures_by_window(run: Path, encoder: SwinEncoder) -> float | None:
    """5-NN accuracy with the embedding that users get: overlapping windows instead of tiles.

    Parameters
    ----------
    run : Path
        Run folder; its configuration names the scans and the split.
    encoder : SwinEncoder
        What embeds them.

    Returns
    -------
    float or None
        None when too few scans have labels.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    settings = DataConfig(**config["data"])
    stage = ModelConfig(**config["model"]).token_stage
    data = S2DCDataModule(settings, seed=config["seed"], run_dir=run)
    data.setup()
    stride = STRIDES[stage]

    def tokens(scan: FullVolume) -> tuple[Tensor, Tensor]:
        assert scan.labels is not None
        features = embed(
            scan.image[0].numpy(),
            encoder,
            stage=stage,
            window_vox=settings.crop_size,
            overlap=0.5,
        )
        missing = [side for size in reversed(scan.labels.shape) for side in (0, -size % stride)]
        names = majority_labels(F.pad(scan.labels, missing), stride)
        inside = names > 0
        return F.normalize(features.flatten(1).T[inside], dim=-1), names[inside]

    training = [tokens(scan) for scan in data.train_volumes_with_labels(PROBE_SUBJECTS)]
    labelled = [scan for scan in data.validation_volumes() if scan.labels is not None]
    held_out = [tokens(scan) for scan in labelled[:PROBE_SUBJECTS]]
    return nearest_neighbour_accuracy(training, held_out) if training and held_out else None


def windows_sentence(run: Path) -> str:
    """5-NN accuracy by overlapping windows, untrained and trained, in a sentence."""
    trained = SwinEncoder.from_checkpoint(run / "encoder.safetensors")
    torch.manual_seed(0)
    before = structures_by_window(run, SwinEncoder(trained.config))
    after = structures_by_window(run, trained)
    if before is None or after is None:
        return "No labels: structures were not probed."
    return (
        "5-NN accuracy of the finished encoder with the embedding that the tools use (windows of "
        f"one crop that overlap by half, Gaussian weights): {after:.3f}, untrained {before:.3f}. "
        "The column above embeds separate crops, which is quicker but gives their edges less "
        "context."
    )


def describe(run: Path) -> str:
    """Name, settings that matter, time and scans of a run."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
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
        parts += [describe(run), curve(run), windows_sentence(run)]
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
