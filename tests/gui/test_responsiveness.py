"""The window lives on while torch is imported and a scan embedded, in a napari just started."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.responsiveness import alone, prepare


@pytest.mark.slow
def test_nothing_heavy_before_painting_and_gaps_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    prepare((32, 48, 48), tmp_path)
    assert "import" in alone("light", tmp_path)
    found = alone("workbench", tmp_path)
    assert found["heavy"] == [[], []]  # after napari's start, and when the workbench was painted
    # How long they are is for the benchmark, on a machine that does nothing else.
    assert {"reading the encoder", "embedding"} <= set(found["gaps"])
