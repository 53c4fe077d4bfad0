"""The ``s2dc`` command: embed, probe, match and segment scans, carry labels, run the demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc import __version__
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.cli_embed import EMBED_SUMMARY, embed_parser, run_embed
from napari_s2dc.engine.cli_evaluate import EVALUATE_SUMMARY, evaluate_parser, run_evaluate
from napari_s2dc.engine.cli_finetune import FINETUNE_SUMMARY, finetune_parser, run_finetune
from napari_s2dc.engine.cli_match import MATCH_SUMMARY, match_parser, run_match
from napari_s2dc.engine.cli_probe import (
    CONSISTENCY_SUMMARY,
    PROBE_SUMMARY,
    consistency_parser,
    points_as_values,
    probe_parser,
    run_consistency,
    run_probe,
)
from napari_s2dc.engine.cli_segment import SEGMENT_SUMMARY, run_segment, segment_parser
from napari_s2dc.engine.cli_transfer import TRANSFER_SUMMARY, run_transfer, transfer_parser
from napari_s2dc.engine.console import parse_arguments, run_reporting_errors
from napari_s2dc.engine.export import (
    ENCODER_NAME,
    FORMATS,
    checkpoint_in,
    export_monai_swin_unetr,
)
from napari_s2dc.errors import ConfigurationError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PROGRAM = "s2dc"
_CHECKPOINT_SUFFIXES = frozenset((".safetensors", ".pt", ".pth", ".ckpt", ".bin"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s2dc`` and return its exit code: 0, 2 for a user's error, 130 after Ctrl-C."""
    return run_reporting_errors(lambda: _run(argv), PROGRAM)


def _run(argv: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    settings = parse_arguments(_parser(), points_as_values(arguments), PROGRAM)
    command = settings.subcommand
    keep_large_buffers()  # each command imports torch after this
    return _COMMANDS[command](**settings[command].as_dict())


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=PROGRAM,
        description="S2DC encoders of 3D medical scans: embed, probe, match and segment.",
        version=__version__,
    )
    commands = parser.add_subcommands(metavar="COMMAND")

    summary = (
        "Describe a checkpoint (what fits), a file of s2dc embed, a model of s2dc finetune, or the "
        "header of a scan."
    )
    info = ArgumentParser(description=summary)
    info.add_argument(
        "file",
        type=str,
        help="Checkpoint of ours or of others, run folder, name of a bundled encoder, file of s2dc "
        "embed or s2dc finetune, scan, or DICOM series folder.",
    )
    info.add_argument(
        "--json", action="store_true", help="Print JSON instead of text, for other programs."
    )
    commands.add_subcommand("info", info, help=summary)

    summary = "Write a trained encoder for another program and say how to load it there."
    export = ArgumentParser(description=summary)
    export.add_argument(
        "run", type=str, help="Run folder of s2dc-train, or any checkpoint that s2dc info reads."
    )
    export.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="What to write; monai-swin-unetr is a state dict for monai.networks.nets.SwinUNETR.",
    )
    export.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="File to write; without it, one named after the format beside the encoder.",
    )
    commands.add_subcommand("export", export, help=summary)

    commands.add_subcommand("embed", embed_parser(), help=EMBED_SUMMARY)
    commands.add_subcommand("probe", probe_parser(), help=PROBE_SUMMARY)
    commands.add_subcommand("consistency", consistency_parser(), help=CONSISTENCY_SUMMARY)
    commands.add_subcommand("match", match_parser(), help=MATCH_SUMMARY)
    commands.add_subcommand("transfer", transfer_parser(), help=TRANSFER_SUMMARY)
    commands.add_subcommand("finetune", finetune_parser(), help=FINETUNE_SUMMARY)
    commands.add_subcommand("segment", segment_parser(), help=SEGMENT_SUMMARY)
    commands.add_subcommand("evaluate", evaluate_parser(), help=EVALUATE_SUMMARY)

    summary = "Show in a report what the bundled encoder knows, and train it on a little."
    demo = ArgumentParser(description=summary)
    demo.add_argument(
        "--out",
        type=str,
        default="demo",
        help="Folder for the report (index.html) and everything made on the way.",
    )
    demo.add_argument(
        "--minutes",
        type=float,
        default=2.0,
        help="Time to take; training runs for as many steps as fit.",
    )
    commands.add_subcommand("demo", demo, help=summary)
    return parser


def _info(file: str, json: bool) -> int:
    from napari_s2dc.engine.encoders import encoder_named

    path = Path(file)
    if not path.exists():
        path = encoder_named(file) or path
    if _is_embedding(path):
        return _embedding_info(path, json)
    if _is_model(path):
        return _model_info(path, json)
    if _is_checkpoint(path):
        return _checkpoint_info(path, json)
    return _scan_info(path, json)


def _export(run: str, format: str, out: str | None) -> int:
    exported = export_monai_swin_unetr(run, out)
    print(f"Wrote {exported.path} ({exported.tensors} tensors, {format}). Load it with:\n")
    print("\n".join(f"    {line}".rstrip() for line in exported.usage.splitlines()))
    return 0


def _demo(out: str, minutes: float) -> int:
    if not minutes > 0:
        raise ConfigurationError(f"--minutes must be above 0, not {minutes:g}.")
    from napari_s2dc.engine.demo import run_demo

    run_demo(out=Path(out), minutes=minutes)
    return 0


_COMMANDS: dict[str, Callable[..., int]] = {
    "info": _info,
    "export": _export,
    "embed": run_embed,
    "probe": run_probe,
    "consistency": run_consistency,
    "match": run_match,
    "transfer": run_transfer,
    "finetune": run_finetune,
    "segment": run_segment,
    "evaluate": run_evaluate,
    "demo": _demo,
}


def _is_embedding(path: Path) -> bool:
    from napari_s2dc.engine.cli_embedded import is_embedding_file

    if not path.is_file() or not is_embedding_file(path):
        return False
    from napari_s2dc.engine.embedding_file import holds_embedding

    return holds_embedding(path)


def _embedding_info(path: Path, as_json: bool) -> int:
    from napari_s2dc.engine.embedding_file import load_embedding

    embedding = load_embedding(path)
    channels = int(embedding.features.shape[0])
    facts = {
        "name": embedding.name,
        "shape_zyx": list(embedding.shape),
        "spacing_mm": list(embedding.spacing_mm),
        "patches_zyx": list(embedding.grid),
        "patch_side_vox": embedding.stride,
        "channels": channels,
        "metadata": embedding.metadata,
    }
    if as_json:
        _print_json({"kind": "embedding", "path": str(path), **facts})
        return 0
    print(f"{path}: features of a scan, written by s2dc embed")
    _print_table(
        {
            "scan": embedding.name,
            "voxels (z, y, x)": " x ".join(map(str, embedding.shape)),
            "spacing in mm": " x ".join(f"{side:.4g}" for side in embedding.spacing_mm),
            "patches (z, y, x)": " x ".join(map(str, embedding.grid)),
            "side of a patch": f"{embedding.stride} voxels",
            "numbers per patch": channels,
            "encoder": embedding.metadata.get("encoder", "not stated"),
            "stage": embedding.metadata.get("stage", "not stated"),
        }
    )
    return 0


def _is_model(path: Path) -> bool:
    from napari_s2dc.engine.segmentation_model import holds_model

    return path.is_file() and holds_model(path)


def _model_info(path: Path, as_json: bool) -> int:
    from napari_s2dc.engine.segmentation_model import SegmentationModel

    model = SegmentationModel.load(path)
    known, classes = model.metadata, [asdict(one) for one in model.classes]
    if as_json:
        _print_json(
            {
                "kind": "segmentation model",
                "path": str(path),
                "mode": model.kind,
                "classes": classes,
                "preset": model.preset,
                "spacing_mm": model.spacing_mm,
                "segment": asdict(model.segment),
                "metadata": known,
            }
        )
        return 0
    print(f"{path}: segmentation model, written by s2dc finetune or the Segment tab")
    scans, spacing = known.get("scans", []), model.spacing_mm
    facts = {
        "mode": model.kind,
        "classes": ", ".join(f"{one.label} {one.name}" for one in model.classes),
        "intensities": model.preset,
        "spacing in mm": " x ".join(f"{side:.4g}" for side in spacing) if spacing else "as scans",
        "encoder": known.get("encoder", "not stated"),
        "learned from": ", ".join(one["name"] for one in scans) or "not stated",
        "steps": known.get("steps", "not stated"),
    }
    _print_table({**facts, **known.get("metrics", {})})
    return 0


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / ENCODER_NAME).is_file() or (path / "checkpoints" / "last.ckpt").is_file()
    if path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        return True
    from napari_s2dc.method.checkpoint_files import looks_like_checkpoint

    return looks_like_checkpoint(path)


def _checkpoint_info(path: Path, as_json: bool) -> int:
    from napari_s2dc.method.checkpoint_layouts import read_checkpoint
    from napari_s2dc.method.checkpoints import compare, require_fit
    from napari_s2dc.method.encoder import SwinEncoder

    checkpoint = read_checkpoint(checkpoint_in(path))
    encoder = SwinEncoder(checkpoint.config)
    report = compare(checkpoint, encoder)
    config = checkpoint.config
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    facts = {key: value for key, value in checkpoint.metadata.items() if key != "architecture"}
    if as_json:
        _print_json(
            {
                "kind": "checkpoint",
                "path": str(checkpoint.path),
                "layout": checkpoint.layout,
                "architecture": {**config.as_dict(), "size": config.size_name},
                "parameters": parameters,
                "metadata": facts,
                "report": report.as_dict(),
            }
        )
    else:
        print(report)
        print(f"Architecture ({config.size_name}, {parameters:,} parameters)")
        _print_table(config.as_dict())
        if facts:
            print("Metadata")
            _print_table(facts)
    require_fit(report)
    return 0


def _scan_info(path: Path, as_json: bool) -> int:
    from napari_s2dc.volumes.io import read_header

    header = read_header(path)
    spacing = [float(side) for side in header.spacing_mm]
    if as_json:
        _print_json(
            {
                "kind": "scan",
                "path": str(path),
                "shape_zyx": [int(size) for size in header.shape_zyx],
                "spacing_mm": spacing,
                "dtype": str(header.dtype),
                "modality": header.modality,
            }
        )
        return 0
    print(f"{path}: scan")
    _print_table(
        {
            "voxels (z, y, x)": " x ".join(str(size) for size in header.shape_zyx),
            "spacing in mm": " x ".join(f"{side:.4g}" for side in spacing),
            "stored as": str(header.dtype),
            "modality": header.modality or "not stated",
        }
    )
    return 0


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, default=str))


def _print_table(rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        shown = json.dumps(value, default=str) if isinstance(value, (dict, list)) else value
        print(f"  {name:<{width}}  {shown}")
