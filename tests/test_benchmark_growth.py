"""The growth benchmark fits powers, draws them and measures a scan as the tools embed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth


def test_the_power_is_that_of_the_figures() -> None:
    rows = [{"size": size, "seconds": 0.3 * size**1.5, "mb": 7.0} for size in (10.0, 40.0, 90.0)]
    assert growth.exponent(rows) == pytest.approx(1.5)
    assert growth.exponent(rows, of="mb") == pytest.approx(0.0, abs=1e-9)


def test_only_short_work_is_done_more_than_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    seconds = growth.repeated(lambda: calls.append(1), 2 * growth._WORTH_REPEATING)
    assert 0 <= seconds < growth._WORTH_REPEATING
    assert calls == [1]
    monkeypatch.setattr(growth, "_WORTH_REPEATING", 0.01)
    growth.repeated(lambda: calls.append(1), 0.0)
    assert len(calls) > 2


def test_a_scan_is_embedded_and_measured() -> None:
    row = growth.one_scan(40)
    assert row["size"] == row["encoded"] == 40**3
    assert row["seconds"] > 0
    assert row["features_mb"] == pytest.approx(48 * 5**3 * 2 / 2**20)


def test_the_picture_has_a_panel_for_each_part(tmp_path: Path) -> None:
    from PIL import Image

    rows = [{"size": 1.0, "seconds": 1.0}, {"size": 8.0, "seconds": 9.0}]
    growth.draw({"voxels": rows, "patches": rows}, tmp_path / "two.png")
    growth.draw({"voxels": rows, "patches": rows, "crops": rows}, tmp_path / "three.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "three.png") as three:
        assert three.width == pytest.approx(1.5 * two.width, abs=2)
        assert len(set(two.convert("L").tobytes())) > 10


def test_features_of_a_large_scan_are_counted() -> None:
    # 400 x 512 x 512 voxels: 50 x 64 x 64 tokens of 48 channels in half precision at stage 2
    assert f"{50 * 64 * 64 * 48 * 2 / 2**20:.0f} and" in growth.features_sentence()
