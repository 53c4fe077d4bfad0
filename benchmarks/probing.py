"""Is the probe meaningful: click a structure, and how well does its heat-map find that structure.

The encoder must not have seen the scan:

    python -m benchmarks.probing_scans DATA SCANS
    s2dc-train --config tiny_cpu --data.path SCANS --data.validation_volumes 1 \
        --data.preset ct_soft_tissue --data.spacing_mm "[3,3,3]" --loss.global_contrast 0.15 \
        --trainer.max_steps 1200 --out RUN
    python -m benchmarks.probing RUN/encoder.safetensors DATA/totalseg_ct --write
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score

from benchmarks.report import machine, table, write_section
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed_volume, to_voxels
from napari_s2dc.engine.probe import similarity_map
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.volumes.foreground import foreground_mask
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.volume import Volume

UNTRAINED_SEEDS = (0, 1, 2)

Probe = Callable[[tuple[int, int, int]], np.ndarray]
"""From the voxel that is clicked to a heat-map (Z, Y, X)."""


def centre_of(structure: np.ndarray) -> tuple[int, int, int]:
    """Voxel that lies deepest in a structure, which is where a person clicks.

    Parameters
    ----------
    structure : np.ndarray (Z, Y, X)
        Boolean.
    """
    depth = ndimage.distance_transform_edt(np.pad(structure, 1))[1:-1, 1:-1, 1:-1]
    z, y, x = np.unravel_index(int(depth.argmax()), structure.shape)
    return int(z), int(y), int(x)


def largest_structures(labels: np.ndarray, number: int) -> list[int]:
    """Labels of the largest structures, the largest first."""
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return [int(label) for label in np.argsort(-sizes, kind="stable")[:number]]


def probe_of(embedding: Embedding) -> Probe:
    """Heat-map as the workbench shows it."""

    def heat(voxel: tuple[int, int, int]) -> np.ndarray:
        token = embedding.token_of_voxel(voxel)
        assert token is not None, "the whole scan is embedded"
        return to_voxels(similarity_map(embedding, [token]), embedding.shape, embedding.stride)

    return heat


def intensity_probe(image: np.ndarray, side: int) -> Probe:
    """Nearness of the mean intensity of a cube of `side` voxels to that at the click."""
    smooth = ndimage.uniform_filter(image, side, mode="nearest")
    return lambda voxel: -np.abs(smooth - smooth[voxel])


def probes(volume: Volume, encoder: SwinEncoder, stages: Sequence[int]) -> dict[str, list[Probe]]:
    """Every way to make a heat-map, several of a kind where they are drawn at random."""
    ways: dict[str, list[Probe]] = {}
    for stage in stages:
        settings = EmbedSettings(stage=stage)
        side = STRIDES[stage]
        embedded = finish(embed_volume(volume, encoder, settings))
        ways[f"trained, patches of {side} voxels"] = [probe_of(embedded)]
        untrained = []
        for seed in UNTRAINED_SEEDS:
            torch.manual_seed(seed)
            network = SwinEncoder(encoder.config)
            network.metadata.update(encoder.metadata)  # the same preprocessing
            untrained.append(probe_of(finish(embed_volume(volume, network, settings))))
        ways[f"untrained, patches of {side} voxels"] = untrained
        ways[f"intensity, mean of {side} voxels a side"] = [intensity_probe(volume.array, side)]
    ways["intensity of the voxel"] = [intensity_probe(volume.array, 1)]
    return ways


def report(options: argparse.Namespace) -> str:
    """Probe the largest structures in every way and tabulate average precision."""
    description = machine(torch.device("cpu"))
    image_path = next((options.data / "imagesTr").iterdir())
    volume = read_volume(image_path)
    labels = read_volume(options.data / "labelsTr" / image_path.name, labels=True).array
    names = json.loads((options.data / "dataset.json").read_text(encoding="utf-8"))["labels"]
    encoder = SwinEncoder.from_checkpoint(options.encoder)
    tissue = foreground_mask(volume.array) | (labels > 0)
    chosen = largest_structures(labels, options.structures)
    ways = probes(replace(volume, name=options.data.name), encoder, options.stages)
    truth = {label: labels == label for label in chosen}
    clicks = {label: centre_of(truth[label]) for label in chosen}

    def precision(way: Sequence[Probe], label: int) -> float:
        return float(
            np.mean(
                [
                    average_precision_score(truth[label][tissue], probe(clicks[label])[tissue])
                    for probe in way
                ]
            )
        )

    figures = {name: [precision(way, label) for label in chosen] for name, way in ways.items()} | {
        "chance (share of the tissue)": [float(truth[label][tissue].mean()) for label in chosen]
    }
    summary = [[name, f"{np.mean(values):.3f}"] for name, values in figures.items()]
    shown = [f"trained, patches of {STRIDES[stage]} voxels" for stage in options.stages]
    shown += [name for name in figures if name not in shown]
    detail = [
        [str(names[str(label)]).replace("_", " ")] + [f"{figures[name][row]:.2f}" for name in shown]
        for row, label in enumerate(chosen)
    ]
    training = encoder.metadata.get("training", {})
    return "\n\n".join(
        [
            f"## What a click finds in {options.data.name}",
            f"A click at the deepest voxel of each of the {len(chosen)} largest structures; "
            "average precision of the heat-map against the structure, over all voxels of the body. "
            "Left and right count as different structures. The encoder was trained on other scans "
            f"({training.get('volumes', '?')} of them, {training.get('steps', '?')} steps, "
            f"without labels); untrained: mean of {len(UNTRAINED_SEEDS)} seeds. {description}",
            table(["heat-map", "mean average precision"], summary),
            table(["structure", *shown], detail),
            f"    python -m benchmarks.probing {options.encoder.name} {options.data.name}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="encoder trained on other scans")
    parser.add_argument("data", type=Path, help="decathlon folder with one labelled scan")
    parser.add_argument("--structures", type=int, default=12, help="how many of the largest")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2], help="encoder stages")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    text = report(options)
    print(text)
    if options.write:
        write_section(f"probing {options.data.name}", text)


if __name__ == "__main__":
    main()
