"""The ``s2dc-train`` command."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc import __version__
from napari_s2dc.engine.console import (
    INTERRUPTED,
    command_line,
    parse_arguments,
    run_reporting_errors,
)
from napari_s2dc.errors import ConfigurationError
from s2dc_train.config import RunConfig, run_config
from s2dc_train.interruption import Interrupted, StopRequest, is_first_process

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

PROGRAM = "s2dc-train"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


def presets() -> dict[str, str]:
    """Names of the packaged configurations and the files that hold them."""
    folder = files("s2dc_train") / "configs"
    return {
        Path(entry.name).stem: str(entry)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Pretrain an S2DC encoder on a folder of unlabelled 3D scans.",
        version=__version__,
    )
    parser.add_argument(
        "--config",
        action="config",
        help=f"Packaged configuration ({', '.join(presets())}) or a YAML file.",
    )
    parser.add_argument(
        "--ckpt",
        type=str,
        default="",
        help="Resume: 'last' for the run folder's own checkpoint, or a checkpoint file.",
    )
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def _with_preset_files(arguments: Sequence[str]) -> list[str]:
    """Replace the name of a packaged configuration after ``--config`` by its file."""
    known = presets()
    result: list[str] = []
    for position, argument in enumerate(arguments):
        value = argument.removeprefix("--config=")
        named = value != argument or (position > 0 and arguments[position - 1] == "--config")
        if named and value in known:
            argument = argument.removesuffix(value) + known[value]
        elif named and not Path(value).is_file():
            raise ConfigurationError(
                f"There is no configuration '{value}'.",
                f"Use {', '.join(known)} or a YAML file.",
            )
        result.append(argument)
    return result


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    return parse_arguments(parser, _with_preset_files(arguments), PROGRAM)


def _checkpoint(asked: str, out: Path) -> Path | None:
    """Checkpoint to resume from; refuses to write over a run that is already there."""
    from s2dc_train.run import LAST, last_checkpoint

    found = last_checkpoint(out)
    # A job that SLURM requeued starts with the same command as before.
    if found and int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return found
    if asked and asked != "last":
        given = Path(asked).expanduser()
        if found and given.is_file() and out.resolve() not in given.resolve().parents:
            raise ConfigurationError(
                f"{out} already holds a run, and {given} belongs to another one.",
                "Choose another --out, or go on with --ckpt last.",
            )
        return given
    if asked:
        return found or out / LAST
    if found:
        raise ConfigurationError(
            f"{out} already holds a run.",
            "Go on with --ckpt last, choose another --out, or delete that folder.",
        )
    return None


class _Messages(logging.Handler):
    """Prints to whatever standard output is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _show_messages() -> None:
    """Print what the run reports, and nothing of the libraries'."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    messages = logging.getLogger("s2dc_train")
    if is_first_process() and not messages.handlers:
        messages.addHandler(_Messages())
        messages.setLevel(logging.INFO)
        messages.propagate = False


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    parsed = _parse(parser, arguments)
    asked = parsed.pop("ckpt")
    parsed.pop("config", None)
    config = run_config(parsed.as_dict())
    out = Path(config.out).expanduser()
    config.out = str(out)
    resume_command = command_line([PROGRAM, "--config", str(out / "config.yaml"), "--ckpt", "last"])
    try:
        with StopRequest() as request:
            # Only now: --help and --print_config must not wait for torch.
            from napari_s2dc.engine.allocator import keep_large_buffers

            keep_large_buffers()
            from s2dc_train.run import train

            _show_messages()
            resume = _checkpoint(asked, out)
            summary = train(config, resume=resume, request=request)
    except Interrupted as interrupted:
        saved = (out / LAST_CHECKPOINT).is_file()
        then = f"Go on with: {resume_command}" if saved else "Start again with the same command."
        if is_first_process():
            print(f"Stopped at once. {then}")
        return INTERRUPTED if interrupted.number == signal.SIGINT else 0
    if not is_first_process():
        return 0  # the first process speaks for all
    _print_result(summary, out, resume_command)
    stopped_by_user = summary["stopped"] == "signal" and request.number == signal.SIGINT
    return INTERRUPTED if stopped_by_user else 0


def _print_result(summary: dict[str, Any], out: Path, resume_command: str) -> None:
    """Print the main figures and where the files are."""

    def change(name: str) -> str:
        first, last = (summary.get(f"{name}_{end}") for end in ("first", "last"))
        shown = ["not measured" if value is None else f"{value:.3f}" for value in (first, last)]
        measured = summary["measured_after_steps"]
        when = "" if measured == summary["steps"] else f" (after {measured} steps)"
        return " -> ".join(shown) + when

    rows = [
        ("Steps", f"{summary['steps']} in {summary['seconds'] / 60:.1f} minutes"),
        ("Matching accuracy", change("match_accuracy")),
        ("Effective rank", change("effective_rank")),
    ]
    if "nearest_neighbour_accuracy_last" in summary:
        rows.insert(2, ("5-NN accuracy", change("nearest_neighbour_accuracy")))
    rows += [("Encoder", str(out / "encoder.safetensors")), ("Figures", str(out / "metrics.csv"))]
    for name, text in rows:
        print(f"{name:<19}{text}")
    if summary["stopped"]:
        why = "at the time limit" if summary["stopped"] == "time" else "on request"
        print(f"Stopped {why} and saved. Go on with: {resume_command}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s2dc-train`` and return its exit code: 0, 2 for a user's error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_reporting_errors(lambda: _run(arguments), PROGRAM)
