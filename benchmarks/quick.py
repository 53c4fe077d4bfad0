"""How long a person waits for Quick, beside a random forest on filters as in ilastik."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.memory import peak_during

# Light: torch itself may only allocate after the allocator was set.
from napari_s2dc.engine.allocator import keep_large_buffers

if TYPE_CHECKING:
    from napari_s2dc.volumes.volume import Volume

ORGANS = 8
_BACKGROUND = 99


def strokes_of(image: Volume, labels: Volume, seed: int) -> np.ndarray:
    """Paint strokes of the largest structures and of the background; 0 where nothing is painted."""
    from benchmarks.fewshot_strokes import largest, strokes_on
    from napari_s2dc.volumes.foreground import foreground_mask

    truth = labels.array
    structures = largest(truth, range(1, int(truth.max()) + 1), ORGANS)
    body = foreground_mask(image.array)
    strokes = strokes_on(truth, body, structures, seed, background_everywhere=True)
    return np.where(strokes == 0, _BACKGROUND, strokes.clip(min=0)).astype(np.uint8)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of some work."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def report(options: argparse.Namespace) -> str:
    """Measure and describe in markdown."""
    import torch

    from benchmarks.fewshot_forest import classify, filtered, grow
    from benchmarks.report import machine, spread, table
    from napari_s2dc.engine.fewshot_settings import FewshotSettings
    from napari_s2dc.engine.labelled_scans import LabelledScan, classes_in
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.engine.quick import train_quick
    from napari_s2dc.engine.quick_scan import prepare_scan
    from napari_s2dc.engine.quick_spread import learn_from_spread_strokes
    from napari_s2dc.engine.segment import QuickSegmenter
    from napari_s2dc.method.encoder import SwinEncoder
    from napari_s2dc.volumes.phantom import phantom

    description = machine(torch.device("cpu"))
    torch.manual_seed(0)
    encoder = SwinEncoder.from_size("tiny", window_size=4).eval()
    settings = FewshotSettings(zero="unlabelled", background=_BACKGROUND, device="cpu")
    shape = (options.shape[0], options.shape[1], options.shape[2])
    image, labels = phantom(shape, spacing_mm=(3.0, 3.0, 3.0), seed=0)
    # The second stroke set holds what the first has: strokes that were added.
    first = strokes_of(image, labels, 0)
    more = np.where(first > 0, first, strokes_of(image, labels, 1))
    classes = classes_in([LabelledScan(image, labels.with_array(first))], settings)
    middle = image.shape[0] // 2
    scan = finish(prepare_scan(image, encoder, settings.quick, device="cpu"))
    kept: dict[str, Any] = {}

    def features() -> None:
        kept["scan"] = finish(prepare_scan(image, encoder, settings.quick, device="cpu"))

    def train() -> None:
        kept["model"] = finish(train_quick([(scan, first)], classes, encoder, settings))
        QuickSegmenter(scan, kept["model"]).plane(0, middle)

    def refresh() -> None:
        again = finish(train_quick([(scan, more)], classes, encoder, settings, start=kept["model"]))
        QuickSegmenter(scan, again).plane(0, middle)

    def everywhere() -> None:
        kept["all"] = finish(learn_from_spread_strokes([(scan, first)], kept["model"], settings))

    def whole() -> None:
        finish(QuickSegmenter(scan, kept["all"]).whole())

    def filters() -> None:
        kept["filters"] = filtered(image, "ct_wide")

    def forest() -> None:
        truth = np.where(first == 0, -1, np.where(first == _BACKGROUND, 0, first))
        kept["forest"] = grow([(kept["filters"], truth.astype(np.int64))], seed=0)

    def all_voxels() -> None:
        classify(kept["forest"], kept["filters"])

    ours = {
        "features of the scan, once": features,
        "train, then the slice on screen": train,
        "refresh after more strokes, then the slice": refresh,
        "learn from what strokes spread to": everywhere,
        "the whole scan": whole,
    }
    theirs = {
        "features of the scan, once": filters,
        "train, then the slice on screen": forest,
        "the whole scan": all_voxels,
    }
    rows = []
    for name, work in ours.items():
        once, memory = peak_during(work)  # also warms up
        seconds = [seconds_of(work) for _ in range(options.repeats)] or [once]
        other = "-"
        if name in theirs and not options.alone:
            other = f"{seconds_of(theirs[name]):.2f}"
        rows.append([name, spread(seconds, scale=1, digits=2), f"{memory:.0f}", other])
    size = "×".join(map(str, options.shape))
    painted = int(np.count_nonzero(first))
    command = ["python", "-m", "benchmarks.quick", "--shape", *map(str, options.shape)]
    command += ["--repeats", str(options.repeats), *(["--alone"] if options.alone else [])]
    header = ["what", "Quick, s", "memory above the start, MB", "forest, s"]
    return "\n\n".join(
        [
            f"## Waiting for Quick, {size}, tiny",
            f"Strokes on {len(classes)} organs of a phantom and round them, {painted} voxels; "
            f"median of {options.repeats or 1}, quartiles; the forest once, in the same process. "
            f"It has to classify the slice besides, which is not counted. {description}",
            table(header, rows),
            f"    {shlex.join(command)}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 128], help="voxels z y x")
    parser.add_argument("--repeats", type=int, default=5, help="0: the first time counts")
    parser.add_argument("--alone", action="store_true", help="without the forest")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    keep_large_buffers()
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section(f"quick {options.shape[0]}", text)


if __name__ == "__main__":
    main()
