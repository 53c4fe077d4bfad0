"""The benchmark's tables have their rows, and both of its sides compute what they should."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import WindowAttention
from s2dc_train.config import ViewConfig
from s2dc_train.losses import global_contrast, patch_to_patch, patch_to_structure
from s2dc_train.module import S2DCModule

from benchmarks import released_losses, released_step, step, transport
from benchmarks.encoder_side import Side, shares
from benchmarks.memory import peak_during
from benchmarks.our_step import OurStep
from benchmarks.report import spread, table, write_section
from benchmarks.stopwatch import Stopwatch
from benchmarks.workload import Samples, Sizes
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.tokens import pair_matrix, partners
from napari_s2dc.method.transport import assignment

SMALL = ["--crop", "32", "--grid", "1", "1", "2", "--window", "4", "--head", "16", "8"]
CPU = torch.device("cpu")


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return Samples(Sizes(crop=32, grid=(1, 1, 2), window=4, head=(16, 8)), tmp_path, CPU)


@pytest.fixture
def module() -> S2DCModule:
    return S2DCModule(Sizes(crop=32, grid=(1, 1, 2), window=4, head=(16, 8)).config())


def _cells(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


@pytest.mark.slow
def test_one_run_prints_every_part_of_both_sides(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The setting would hold for the whole test process.
    monkeypatch.setattr(step, "keep_large_buffers", lambda: False)
    step.main([*SMALL, "--repeats", "2", "--one-process"])
    cells = _cells(capsys.readouterr().out)
    figure = re.compile(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]")
    for part in (*step.PARTS, step.BATCHED, "total"):
        assert len(cells[part]) == 3
        assert all(figure.fullmatch(cell) for cell in cells[part])


@pytest.mark.slow
def test_a_side_in_its_own_process_reports_times_and_memory() -> None:
    options = step.parse([*SMALL, "--repeats", "2"])
    result = step.alone(options, "ours", plain_allocator=True)
    assert len(result["times"]) == 2
    assert set(result["times"][0]) == {*step.PARTS, step.BATCHED, "total"}
    assert 50 < result["held_mb"] < result["peak_memory_mb"] < 10_000


def test_parts_add_up_to_the_total(samples: Samples, module: S2DCModule) -> None:
    watch = Stopwatch(CPU)
    side = OurStep(module, samples)
    begin = watch.now()
    side.step(0, watch)
    total = watch.now() - begin
    assert set(watch.seconds) == set(step.PARTS)
    assert sum(watch.seconds.values()) <= total


def test_our_side_has_the_loss_and_gradient_of_the_trainer(
    samples: Samples, module: S2DCModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_log", lambda *_: None)
    module.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    expected = module.training_step(samples.read(0), 0)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
    module.zero_grad()
    module.queue.filled.zero_()
    module.queue.position.zero_()

    side = OurStep(module, samples)
    seen = {}

    def keep(*_: object) -> None:
        seen.update(
            {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
        )

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    assert side.step(0, Stopwatch(CPU)) == pytest.approx(expected.item(), rel=1e-6)
    assert seen.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_released_side_trains_its_student_and_moves_its_teacher(
    samples: Samples, module: S2DCModule
) -> None:
    side = released_step.ReleasedStep(module, samples)
    student = [p.clone() for p in side.student.parameters()]
    teacher = [p.clone() for p in side.teacher.parameters()]
    queue = side.queue.clone()
    assert np.isfinite(side.step(0, Stopwatch(CPU)))
    moved = [not torch.equal(a, b) for a, b in zip(student, side.student.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert any(
        not torch.equal(a, b) for a, b in zip(teacher, side.teacher.parameters(), strict=True)
    )
    assert (side.queue != queue).any(1).sum() == 1


def test_the_released_side_encodes_every_crop_three_times_with_the_teacher(
    samples: Samples, module: S2DCModule
) -> None:
    side = released_step.ReleasedStep(module, samples)
    crops: list[int] = []
    side.teacher.encoder.register_forward_pre_hook(lambda _, inputs: crops.append(len(inputs[0])))
    side.step(0, Stopwatch(CPU))
    assert crops == [2, 2, 2]


def test_the_released_side_has_monais_own_encoder_with_plain_attention(
    samples: Samples, module: S2DCModule
) -> None:
    side = released_step.ReleasedStep(module, samples)
    for network in (side.student, side.teacher):
        attention = [m for m in network.encoder.modules() if isinstance(m, WindowAttention)]
        assert len(attention) == sum(module.student.encoder.config.depths)
        assert not any(block.use_flash_attention for block in attention)
    crop = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        plain, ours = side.student.encoder(crop), module.student.encoder(crop)
    for theirs, mine in zip(plain, ours, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_looped_losses_equal_batched_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (
        F.normalize(torch.randn(3, 20, 8, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    pairs = torch.eye(20, dtype=torch.bool).repeat(3, 1, 1)
    pairs[0] = False
    looped = released_losses.patch_to_patch_loop(query, key, pairs, 0.1, 1.0, 30)
    batched = patch_to_patch(query, key, pairs, temperature=0.1, iterations=30)
    torch.testing.assert_close(looped, batched.total)
    torch.testing.assert_close(
        released_losses.patch_to_structure_loop(query, key, pairs),
        patch_to_structure(query, key, pairs),
    )
    torch.testing.assert_close(
        released_losses.global_contrast_loop(query[0], key[0], [key[1]] * 20, 0.2),
        global_contrast(query[0], key[0], key[1], temperature=0.2),
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_released_side_warps_and_pairs_as_ours(seed: int) -> None:
    matrix = released_step.random_affine(ViewConfig(), 16, np.random.default_rng(seed))
    affine = Affine3D(torch.from_numpy(matrix))
    image = np.random.default_rng(seed).random((1, 16, 32, 32), dtype=np.float32)
    warped = released_step.warp_volume(image, matrix)
    torch.testing.assert_close(warped, affine.warp(torch.from_numpy(image)), rtol=1e-3, atol=1e-3)
    grid = [4, 8, 8]
    expected = pair_matrix(partners(affine, grid, 4)[None], grid, per_slice=True)
    pairs = released_step.pair_matrices(matrix, grid, 4)
    assert pairs.sum() > 30
    np.testing.assert_array_equal(pairs, expected.numpy())


def test_crops_and_tokens_lie_where_ours_do(samples: Samples, module: S2DCModule) -> None:
    side = released_step.ReleasedStep(module, samples)
    image = samples.read(0)["image"]
    first, second, contrast, pairs = side.views(image, 0)
    assert first.shape == second.shape == contrast.shape == (2, 1, 32, 32, 32)
    assert pairs.shape == (4, 32, 32)
    # The first crop is the left half up to contrast and brightness.
    original = image[0, :, :, :, :32]
    inside = (first[0] > 0) & (first[0] < 1)
    values = torch.stack([original[inside], first[0][inside]])
    assert torch.corrcoef(values)[0, 1] > 0.999


def test_transport_prints_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    transport.main(["--problems", "2", "--tokens", "9", "--repeats", "2", "--iterations", "20"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 6
    assert all(len(re.findall(r"\d+\.\d+ \[", row)) == 2 for row in rows[1:])


def test_all_solvers_of_the_transport_benchmark_agree() -> None:
    scores = transport.features(2, 9, 0.1, "cpu").double()
    ours = assignment(scores, transport.DUSTBIN, iterations=40)
    torch.testing.assert_close(transport.with_pot(scores, 40, 0.0), ours)
    torch.testing.assert_close(transport.one_by_one(scores, 40), ours)


def test_a_section_is_replaced_in_place_and_others_stay(tmp_path: Path) -> None:
    document = tmp_path / "docs" / "benchmarks.md"
    write_section("a", "first", document)
    write_section("b", "second", document)
    write_section("a", "third", document)
    text = document.read_text()
    assert "first" not in text
    assert text.index("third") < text.index("second")
    assert text.count("<!-- begin") == text.count("<!-- end") == 2
    assert text.startswith("# Benchmarks")


def test_a_table_is_aligned() -> None:
    lines = table(["part", "ms"], [["views", "1.0"], ["x", "10.25"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|-------|------:|"


def test_both_sides_of_the_encoder_compute_the_same() -> None:
    settings = {"feature_size": 12, "window": 4, "crop": 32, "batch": 1, "device": "cpu"}
    losses = []
    for ours in (True, False):
        side = Side(ours=ours, flash=False, tuned=False, training=True, **settings)
        losses.append(side.step(side.network(), torch.linspace(0, 1, 32**3).view(1, 1, 32, 32, 32)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_shares_of_operations_add_up() -> None:
    matrix = torch.rand(64, 64)
    found = shares(lambda: (matrix @ matrix).softmax(-1).clone(), torch.device("cpu"))
    assert sum(found.values()) == pytest.approx(1)
    assert found["linear layers"] > 0
    assert found["attention"] > 0
    assert found["convolutions"] == 0


def test_a_single_measurement_has_no_quartiles() -> None:
    assert spread([0.25]) == "250.0"
    assert spread([1.0, 2.0, 3.0], scale=1, digits=2) == "2.00 [1.50, 2.50]"


def test_work_that_fails_ends_the_watch_over_memory() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_during(lambda: 1 / 0)
    assert threading.active_count() == before
