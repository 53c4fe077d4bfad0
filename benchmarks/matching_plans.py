"""Plans: speed beside POT, a large plan, coarse-to-fine, identical and mirrored scans."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.matching_truth import FIRST_SEED
from benchmarks.memory import peak_during
from benchmarks.report import spread, table
from benchmarks.transport import features, with_pot
from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed_volume
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_warning
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import judge, known_view
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.transport import assignment
from napari_s2dc.volumes.volume import Volume

PROBLEMS, TOKENS, TEMPERATURE = 48, 144, 0.1
ITERATIONS, TOLERANCE = 1000, 1e-6
LARGE = 8000


def pot_one_by_one(scores: torch.Tensor) -> torch.Tensor:
    """POT's ``ot.sinkhorn`` in the log domain, one problem at a time."""
    import ot

    _, n, m = scores.shape
    plans = []
    for problem in scores:
        extended = torch.nn.functional.pad(problem, (0, 1, 0, 1), value=1.0)
        a, b = torch.ones(n + 1), torch.ones(m + 1)
        a[n], b[m] = m, n
        plan = ot.sinkhorn(
            a / (n + m),
            b / (n + m),
            -extended,
            1.0,
            method="sinkhorn_log",
            numItermax=ITERATIONS,
            stopThr=TOLERANCE,
        )
        plans.append(plan * (n + m))
    return torch.stack(plans)


@torch.no_grad()
def solvers(repeats: int) -> str:
    """Time the solvers in turn on the same problems, without gradients."""
    scores = features(PROBLEMS, TOKENS, TEMPERATURE, "cpu")
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: assignment(scores, 1.0, iterations=ITERATIONS, tolerance=TOLERANCE),
        "POT, batched": lambda: with_pot(scores, ITERATIONS, TOLERANCE),
        "POT, ot.sinkhorn(sinkhorn_log), one by one": lambda: pot_one_by_one(scores),
    }
    exact = assignment(scores.double(), 1.0, iterations=20000, tolerance=1e-14)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worst: dict[str, tuple[float, float]] = {}
    for repeat in range(repeats + 1):
        for name, solve in ways.items():
            begun = time.perf_counter()
            plan = solve()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
            marginals = max(float((plan.sum(axis)[:, :-1] - 1).abs().max()) for axis in (1, 2))
            worst[name] = float((plan - exact).abs().max()), marginals
    ours = np.median(seconds["ours"])
    rows = [
        [
            name,
            spread(times),
            f"{np.median(times) / ours:.2f}",
            *(f"{error:.1e}" for error in worst[name]),
        ]
        for name, times in seconds.items()
    ]
    return "\n\n".join(
        [
            f"{PROBLEMS} problems of {TOKENS} × {TOKENS}, temperature {TEMPERATURE}, tolerance "
            f"{TOLERANCE:g}; median of {repeats} runs in turn, in brackets the quartiles.",
            table(["solver", "milliseconds", "over ours", "plan off by", "marginals off by"], rows),
        ]
    )


def random_scan(tokens: tuple[int, int, int], seed: int) -> Embedding:
    """Return an embedding of tokens (z, y, x), all of them tissue, with random features."""
    generator = torch.Generator().manual_seed(seed)
    return Embedding(
        features=torch.randn(48, *tokens, generator=generator).half(),
        foreground=torch.ones(tokens, dtype=torch.bool),
        stride=8,
        shape=(tokens[0] * 8, tokens[1] * 8, tokens[2] * 8),
        offset_vox=(0, 0, 0),
        spacing_mm=(1.0, 1.0, 1.0),
        affine=np.eye(4),
        name="random",
    )


def large_plan() -> str:
    """Time and memory of a plan of 8,000 × 8,000."""
    a, b = random_scan((20, 20, 20), 0), random_scan((20, 20, 20), 1)
    settings = MatchSettings(memory_bytes=2**40)
    found = []
    seconds, memory_mb = peak_during(lambda: found.append(match_embeddings(a, b, settings)))
    return f"A plan of {LARGE} × {LARGE} patches: {seconds:.1f} s and {memory_mb:.0f} MB."


def coarse_against_full(
    name: str, volume: Volume, encoder: SwinEncoder, stage: int, views: int
) -> str:
    """Accuracy of the whole plan and of coarse-to-fine where a quarter of its memory is allowed.

    With that, all partners are looked at that are looked at in scans of up to 200,000 patches.
    """
    settings = EmbedSettings(stage=stage)
    embedding = finish(embed_volume(volume, encoder, settings))
    patches = int(embedding.foreground.sum())
    whole = MatchSettings(memory_bytes=2**40)
    ways = {
        "whole plan": whole,
        "coarse to fine": MatchSettings(memory_bytes=patches**2 * whole.bytes_per_pair // 4),
    }
    figures: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for seed in range(FIRST_SEED, FIRST_SEED + views):
        known = finish(known_view(volume, encoder, settings, seed=seed, embedding=embedding))
        for way, matching in ways.items():
            begun = time.perf_counter()
            match = match_embeddings(known.scan, known.view, matching)
            seconds = time.perf_counter() - begun
            check = judge(known, match)
            figures[way].append((check.accuracy, check.median_mm, seconds))
    rows = [
        [
            way,
            *(
                f"{value:.{digits}f}"
                for value, digits in zip(np.mean(f, 0), (3, 2, 1), strict=True)
            ),
        ]
        for way, f in figures.items()
    ]
    return "\n\n".join(
        [
            f"{name} at stage {stage}, {patches} patches, {views} 3D views:",
            table(["plan", "matching accuracy", "median error, mm", "seconds"], rows),
        ]
    )


def identical_and_mirrored(name: str, volume: Volume, encoder: SwinEncoder) -> str:
    """Share of patches of a scan matched to themselves, and what is said of its mirror image."""
    settings = EmbedSettings()
    embedding = finish(embed_volume(volume, encoder, settings))
    pairs = match_embeddings(embedding, embedding).pairs()
    same = float((pairs.token_a == pairs.token_b).all(1).mean())
    mirrored = finish(embed_mirrored(volume, encoder, settings))
    image = volume.with_array(np.ascontiguousarray(volume.array[:, :, ::-1]))
    flipped, same_scan = (match_embeddings(one, embedding) for one in (mirrored, embedding))
    said = finish(mirror_warning(flipped, embedding, (image, volume))) or "nothing: MISSED"
    unflipped = finish(mirror_warning(same_scan, mirrored, (volume, volume))) or "nothing"
    return (
        f"{name} with itself: {100 * same:.2f} % of the patches are matched to themselves. Said "
        f"of its mirror image: “{said}” Said of itself: {unflipped}."
    )
