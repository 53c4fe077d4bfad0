"""Time and memory of embedding a whole scan, ours beside MONAI's sliding window."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

# Light: torch itself may only allocate after the allocator was set.
from benchmarks.memory import peak_during
from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.engine.embed_settings import OVERLAP, WINDOW_VOX

if TYPE_CHECKING:
    import torch

    from napari_s2dc.volumes.volume import Volume

STAGE = 2


def full_scan(shape: Sequence[int]) -> Volume:
    """Return noise, all of it tissue, because ours would leave out air and MONAI's would not."""
    from napari_s2dc.volumes.volume import Volume

    array = np.random.default_rng(0).random(tuple(shape), dtype=np.float32)
    array += 1  # in place, and so far from 0 that nothing counts as dark
    return Volume(array, np.eye(4), name="noise")


def monai_encoder(options: argparse.Namespace, *, flash: bool) -> torch.nn.Module:
    """MONAI's encoder of the size that is measured."""
    from benchmarks.encoder_side import Side

    side = Side(
        ours=False,
        flash=flash,
        tuned=False,
        training=False,
        feature_size=12,
        window=options.window,
        crop=0,
        batch=1,
        device="cpu",
    )
    return side.network().eval()


def monai_alone(options: argparse.Namespace) -> float:
    """Seconds of MONAI's inferer with MONAI's encoder and windows, in a process of their own."""
    import torch
    from monai.inferers import sliding_window_inference

    network = monai_encoder(options, flash=options.flash)
    image = torch.rand(1, 1, *options.shape)
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        with torch.no_grad():
            sliding_window_inference(
                image, (WINDOW_VOX,) * 3, 1, lambda crop: network(crop)[STAGE], OVERLAP, "gaussian"
            )
        times.append(time.perf_counter() - begun)
    return times[1]


def seconds_alone(options: argparse.Namespace, *more: str) -> float:
    """Run :func:`monai_alone` in another process."""
    command = [sys.executable, "-m", "benchmarks.embedding", "--monai-alone", *more]
    command += ["--window", str(options.window), "--shape", *map(str, options.shape)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def phantom_of(shape: Sequence[int]) -> Volume:
    """Return a phantom made by another process, whose memory must not count as ours."""
    from napari_s2dc.volumes.volume import Volume

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "phantom.npy")
        code = (
            "import sys, numpy; from napari_s2dc.volumes.phantom import phantom; "
            f"numpy.save(sys.argv[1], phantom({tuple(shape)}, seed=0)[0].array)"
        )
        subprocess.run([sys.executable, "-c", code, str(file)], check=True)
        return Volume(np.load(file), np.eye(4), name="phantom")


def report(options: argparse.Namespace) -> str:
    """Measure and describe in markdown."""
    import torch
    from monai.inferers import sliding_window_inference

    from benchmarks.report import machine, table
    from napari_s2dc.engine.cache import EmbeddingCache, embed_cached
    from napari_s2dc.engine.embed import EmbedSettings, embed_volume, normalised, plan
    from napari_s2dc.engine.progress import finish
    from napari_s2dc.method.encoder import SwinEncoder

    torch.manual_seed(0)
    description = machine(torch.device("cpu"))
    # First those in their own processes, while this one holds no memory.
    plain, tuned = seconds_alone(options), seconds_alone(options, "--flash", "--tuned")
    encoder = SwinEncoder.from_size("tiny", window_size=options.window).eval()
    settings = EmbedSettings(stage=STAGE, device="cpu")
    body, volume = phantom_of(options.shape), full_scan(options.shape)
    windows = plan(volume.shape, encoder, settings)
    crop = torch.rand(1, 1, *windows.window)

    @torch.no_grad()
    def one_window(work: Callable[[torch.Tensor], object]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            work(crop)
            times.append(time.perf_counter() - begun)
        return float(np.median(times[1:]))

    found = {}

    def ours() -> None:
        found["ours"] = finish(embed_volume(volume, encoder, settings)).features.float()

    theirs_alike = monai_encoder(options, flash=False)
    theirs_alike.load_state_dict(encoder.swin.state_dict())
    kept = {
        "ours": lambda batch: encoder(batch)[STAGE],
        "theirs": lambda batch: theirs_alike(batch)[STAGE],
    }

    @torch.no_grad()
    def monai(whose: str) -> None:
        image = torch.as_tensor(normalised(volume, encoder, settings))[None, None]
        places = [sorted({start[axis] for start in windows.starts}) for axis in range(3)]
        # Half a voxel, or int() would round the step of whole tokens down.
        overlaps = [
            (side - there[1] - 0.5) / side if len(there) > 1 else 0.0
            for there, side in zip(places, windows.window, strict=True)
        ]
        found["monai"] = sliding_window_inference(
            image,
            windows.window,
            1,
            kept[whose],
            overlap=overlaps,
            mode="gaussian",
        )[0]

    # Memory of the first time, before the allocator has any to use again; time of the second.
    _, memory = peak_during(ours)
    single = one_window(lambda crop: encoder.stage(crop, STAGE))
    seconds, _ = peak_during(ours)
    if not bool((found["ours"] != 0).any(0).all()):
        raise RuntimeError("Ours left windows out that MONAI's inferer encodes.")
    steps = embed_volume(body, encoder, settings)
    body_seconds, _ = peak_during(lambda: finish(steps))
    monai("theirs")
    all_monai_seconds, _ = peak_during(lambda: monai("theirs"))
    monai("ours")
    monai_seconds, _ = peak_during(lambda: monai("ours"))
    shape = found["ours"].shape[1:]
    theirs = found["monai"][:, : shape[0], : shape[1], : shape[2]]
    difference = float((found["ours"] - theirs).abs().max() / theirs.abs().max())
    features_mb = found["ours"].numel() * 2 / 2**20
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(Path(folder))
        finish(embed_cached(volume, encoder, settings, cache))
        again, _ = peak_during(lambda: finish(embed_cached(volume, encoder, settings, cache)))
    size = "×".join(map(str, options.shape))
    own = f"{WINDOW_VOX}³ windows of its own"
    taken = {
        "ours": seconds,
        f"MONAI, {own}, as it comes": plain,
        f"MONAI, {own}, flash attention, allocator": tuned,
        "MONAI's encoder and inferer, our windows, allocator": all_monai_seconds,
        "our encoder, MONAI's inferer, our windows, allocator": monai_seconds,
        "ours, a phantom of a body with air round it": body_seconds,
        "ours, again from the cache": again,
    }
    memories = {"ours": f"{memory:.0f}"}
    rows = [
        [way, f"{spent:.2f}", f"{spent / seconds:.2f}", memories.get(way, "")]
        for way, spent in taken.items()
    ]
    command = ["python", "-m", "benchmarks.embedding", "--window", str(options.window)]
    command += ["--shape", *map(str, options.shape)]
    header = ["way", "seconds", "over ours", "memory above the start, MB"]
    return "\n\n".join(
        [
            f"## Embedding {size}, tiny, attention window {options.window}",
            f"{windows.windows} windows of {'×'.join(map(str, windows.window))} voxels, stage "
            f"{STAGE}, over a scan full of tissue; one window alone {single * 1e3:.0f} ms (median "
            f"of 4), so ours takes {seconds / (windows.windows * single):.2f} times the windows. "
            f"MONAI's {WINDOW_VOX}³ windows overlap by {OVERLAP:g} too and are planned by its "
            "inferer, each in a process of its own; MONAI's encoder computes all stages. Largest "
            f"difference from MONAI's features on our windows {difference:.1e} of the largest "
            f"value (float16 is stored). Features {features_mb:.1f} MB. {description}",
            table(header, rows),
            f"    {shlex.join(command)}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 256, 256], help="voxels z y x")
    parser.add_argument("--window", type=int, default=4, help="side of an attention window")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    # What this program starts itself with.
    parser.add_argument("--monai-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--flash", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tuned or not options.monai_alone:
        keep_large_buffers()
    if options.monai_alone:
        print(monai_alone(options))
        return
    text = report(options)
    print(text)
    if options.write:
        from benchmarks.report import write_section

        write_section(f"embedding window {options.window}", text)


if __name__ == "__main__":
    main()
