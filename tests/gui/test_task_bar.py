from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from napari_s2dc.engine.progress import Progress
from napari_s2dc.widgets import task_bar
from napari_s2dc.widgets.task_bar import TaskBar, time_left
from napari_s2dc.widgets.workers import Jobs
from tests.gui.conftest import steps


def test_the_bar_shows_what_runs_and_cancels_it(jobs: Jobs, qtbot: Any) -> None:
    bar = TaskBar(jobs)
    qtbot.addWidget(bar)
    assert not bar.isVisibleTo(None)
    jobs.run("embed", "Embedding torso", steps(100_000), lambda out: None)
    qtbot.waitUntil(lambda: "left" in bar.text.text() and bar.isVisible())
    assert bar.text.text().startswith("Embedding torso: ")
    assert " of 100000 windows, " in bar.text.text()
    bar.cancel_button.click()
    assert not bar.cancel_button.isEnabled()
    qtbot.waitUntil(lambda: not bar.isVisible())
    assert not jobs.is_running("embed")


def test_what_cannot_be_counted_moves_the_bar_without_figures(
    jobs: Jobs, qtbot: Any, held: Event
) -> None:
    bar = TaskBar(jobs)
    qtbot.addWidget(bar)
    seen: list[Progress] = []
    jobs.progressed.connect(lambda name, at: seen.append(at))

    def make() -> Iterator[Progress]:
        yield Progress(0, 0, "layouts")
        assert held.wait(60)

    jobs.run("umap", "UMAP of 9 patches", make, lambda out: None)
    qtbot.waitUntil(lambda: bool(seen))
    assert bar.text.text() == "UMAP of 9 patches…"
    assert bar.bar.maximum() == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s left"), (41.6, "42 s left"), (200, "3 min left"), (9000, "2.5 h left")],
)
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert time_left(seconds) == words


def test_time_left_is_that_of_the_parts_that_are_counted_now(
    jobs: Jobs, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = TaskBar(jobs)
    qtbot.addWidget(bar)
    clock = [0.0]
    monkeypatch.setattr(task_bar.time, "monotonic", lambda: clock[0])
    jobs.started.emit("tune", "Fine-tuning")
    for clock[0], progress in (
        (0.0, Progress(0, 3, "scans")),
        (60.0, Progress(2, 3, "scans")),
        (60.0, Progress(1, 101, "steps")),
        (61.0, Progress(11, 101, "steps")),
    ):
        jobs.progressed.emit("tune", progress)
    assert bar.text.text() == "Fine-tuning: 11 of 101 steps, 9 s left"
