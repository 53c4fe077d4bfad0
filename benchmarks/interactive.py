"""How long a drag waits for its heat-map, in a real viewer.

Needs a screen; without one: ``xvfb-run -a python -m benchmarks.interactive``.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOKEN_STAGES = {8: 2, 4: 1}


def _embedded(layer: Any, stage: int, folder: Path) -> Any:
    """Embed a layer as the workbench does, with an untrained tiny encoder."""
    import torch

    from napari_s2dc.engine.embed import EmbedSettings, embed_volume
    from napari_s2dc.engine.probe import sharpe_map
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.widgets.session import Embedded, LoadedEncoder
    from napari_s2dc.widgets.volumes_of_layers import snapshot

    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    settings = EmbedSettings(stage=stage, device="cpu")
    source = snapshot(layer, 0)
    embedding = finish(embed_volume(source.load(), encoder, settings))
    embedding.unit()
    sharpe_map(embedding)
    loaded = LoadedEncoder(encoder, "untrained", folder / "untrained.safetensors")
    return Embedded(embedding, source, loaded, settings)


def drag(workbench: Any, layer: Any, events: int) -> tuple[list[float], list[float]]:
    """Move the mouse over the middle slice; milliseconds to the data and to the painted window."""
    from qtpy.QtWidgets import QApplication

    from napari_s2dc.widgets.probe_mouse import REPLACE, ProbePoint

    random = np.random.default_rng(0)
    shape = np.asarray(layer.data.shape)
    places = random.uniform(0.3, 0.7, (events, 3)) * shape
    places[:, 0] = shape[0] // 2
    to_data, to_paint = [], []
    for number, place in enumerate(places):
        world = tuple(float(part) for part in layer.data_to_world(place))
        begun = time.perf_counter()
        workbench.probing.probe(ProbePoint(world, REPLACE, None, [1, 2], False, number > 0))
        to_data.append(1e3 * (time.perf_counter() - begun))
        QApplication.processEvents()
        to_paint.append(1e3 * (time.perf_counter() - begun))
    # The first event makes the layer; a user waits for that once.
    return to_data[1:], to_paint[1:]


def report(options: argparse.Namespace) -> str:
    """Measure and describe in markdown."""
    import napari
    import torch
    from napari.layers import Layer

    from benchmarks.report import machine, table
    from napari_s2dc._reader import layer_data
    from napari_s2dc.volumes.phantom import phantom
    from napari_s2dc.widgets.workbench import Workbench

    viewer = napari.Viewer(show=True)
    image, _ = phantom(tuple(options.shape), seed=0)
    data, keywords, kind = layer_data(image)
    layer = viewer.add_layer(Layer.create(data, keywords, kind))
    workbench = Workbench(viewer)
    viewer.window.add_dock_widget(workbench)
    rows = []
    for stride, stage in TOKEN_STAGES.items():
        embedded = _embedded(layer, stage, Path())
        workbench.session.keep(layer, embedded)
        to_data, to_paint = drag(workbench, layer, options.events)
        cells = [
            f"{np.percentile(values, part):.1f}"
            for values in (to_data, to_paint)
            for part in (50, 95)
        ]
        rows.append([f"{stride} ({embedded.embedding.foreground.numel()} tokens)", *cells])
        workbench.probing.clear()
    viewer.close()
    size = "×".join(map(str, options.shape))
    command = ["python", "-m", "benchmarks.interactive", "--shape", *map(str, options.shape)]
    header = ["voxels a token side", "data, median ms", "95 %", "painted, median ms", "95 %"]
    return "\n\n".join(
        [
            f"## Dragging the probe over {size} voxels",
            f"From the mouse event until the heat-map's data are new, and until the window is "
            f"painted (software OpenGL where there is no graphics card); {options.events} events. "
            f"{machine(torch.device('cpu'))}",
            table(header, rows),
            f"    {shlex.join(command)}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 256, 256], help="voxels z y x")
    parser.add_argument("--events", type=int, default=200, help="mouse events")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section("interactive", text)


if __name__ == "__main__":
    main()
