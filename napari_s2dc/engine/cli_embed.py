"""``s2dc embed``: features of scans as files that the workbench and Python read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_s2dc.engine.cli_outcome import over_scans
from napari_s2dc.engine.cli_scans import (
    ScanFile,
    add_shared_arguments,
    encoder_of,
    read_scan,
    scans_in,
    settings_of,
    targets_of,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["EMBED_SUMMARY", "embed_parser", "run_embed"]

EMBED_SUMMARY = "Compute the features of scans and write them to files."

_ENDING = ".embedding.safetensors"


def embed_parser() -> ArgumentParser:
    """Build the parser of ``s2dc embed``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=EMBED_SUMMARY)
    parser.add_argument(
        "scans",
        type=str,
        nargs="+",
        help="Scans, DICOM series folders, or folders with scans (label maps are left out).",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help=f"Folder for the files (NAME{_ENDING}), or a .safetensors file for one scan; "
        "without it beside the scans.",
    )
    add_shared_arguments(parser)
    return parser


def run_embed(
    scans: list[str],
    out: str | None,
    encoder: str | None,
    stage: int | None,
    preset: str,
    device: str,
    json: bool,
) -> int:
    """Embed scans and return the exit code: 0, or 2 when none could be used."""
    from napari_s2dc.engine.embed import embed_volume
    from napari_s2dc.engine.embedding_file import save_embedding
    from napari_s2dc.engine.encoders import name_of, weights_hash
    from napari_s2dc.engine.progress import finish_with_bar

    settings = settings_of(stage, preset, device)
    found = scans_in(scans)
    targets = targets_of(found, out, (".safetensors",), _ENDING)
    network = encoder_of(encoder)

    def work(scan: ScanFile, target: Path) -> dict[str, Any]:
        started = time.perf_counter()
        volume = read_scan(scan.path, network)
        embedding = finish_with_bar(embed_volume(volume, network, settings))
        save_embedding(embedding, target)
        facts = {
            "tokens_zyx": list(embedding.grid),
            "channels": len(embedding.features),
            "token_side_vox": embedding.stride,
            "preset": embedding.metadata["preset"],
            "seconds": round(time.perf_counter() - started, 2),
            "notice": embedding.metadata["notice"],
        }
        if not json:
            size = " x ".join(map(str, embedding.grid))
            print(
                f"{target}: {size} tokens of {embedding.stride} voxels, {facts['channels']} "
                f"channels, {facts['preset']}, {facts['seconds']:.1f} s"
            )
            if facts["notice"]:
                print(f"  {facts['notice']}")
        return facts

    outcome = over_scans(found, targets, work)
    if json:
        outcome.print_json(encoder={"name": name_of(network), "weights": weights_hash(network)})
    return outcome.exit_code
