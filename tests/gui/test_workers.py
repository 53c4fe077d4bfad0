from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from napari_s2dc.engine.progress import Progress
from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets.workers import Jobs, TaskBar, time_left
from tests.gui.conftest import threads_at_rest


@pytest.fixture
def jobs(qtbot: Any, window: Any) -> Iterator[Jobs]:  # napari notes workers with a viewer
    parent = QObject()
    jobs = Jobs(parent)
    yield jobs
    jobs.cancel_all()
    qtbot.waitUntil(lambda: not jobs._running, timeout=10_000)


def steps(count: int, closed: list[bool] | None = None) -> Any:
    def make() -> Iterator[Progress]:
        try:
            for number in range(count):
                time.sleep(0.002)
                yield Progress(number + 1, count, "windows")
            return "result"
        finally:
            if closed is not None:
                closed.append(True)

    return make


def test_result_and_progress_arrive_in_the_main_thread(jobs: Jobs, qtbot: Any) -> None:
    seen: list[tuple[int, Any]] = []
    results: list[Any] = []
    jobs.progressed.connect(lambda name, at: seen.append((threading.get_ident(), at.done)))
    jobs.run(
        "embed", "Embedding", steps(5), lambda out: results.append((threading.get_ident(), out))
    )
    qtbot.waitUntil(lambda: bool(results))
    main = threading.get_ident()
    assert results == [(main, "result")]
    assert seen == [(main, number) for number in range(1, 6)]


def test_a_user_error_is_told_in_one_sentence(jobs: Jobs, qtbot: Any) -> None:
    told: list[str] = []
    jobs.failed.connect(told.append)

    def fail() -> None:
        raise S2DCError("The scan is empty.", "Open another.")

    jobs.run("embed", "Embedding", fail, lambda out: told.append("done"))
    qtbot.waitUntil(lambda: bool(told))
    assert told == ["The scan is empty. Open another."]


def test_cancel_closes_the_generator_and_gives_no_result(jobs: Jobs, qtbot: Any) -> None:
    closed: list[bool] = []
    results: list[Any] = []
    ended: list[str] = []
    jobs.ended.connect(ended.append)
    jobs.run("embed", "Embedding", steps(100_000, closed), results.append)
    qtbot.wait(50)
    jobs.cancel("embed")
    qtbot.waitUntil(lambda: bool(ended))
    assert closed == [True]
    assert results == []
    assert not jobs.is_running("embed")


def test_cancelling_at_any_moment_leaves_nothing(jobs: Jobs, qtbot: Any) -> None:
    ended: list[str] = []
    closed: list[bool] = []
    results: list[Any] = []
    jobs.ended.connect(ended.append)
    for number in range(50):
        jobs.run("embed", "Embedding", steps(100_000, closed), results.append)
        qtbot.wait(number % 5)
        jobs.cancel("embed")
        qtbot.waitUntil(lambda count=number: len(ended) == count + 1)
    assert results == []
    threads_at_rest(qtbot)
    qtbot.waitUntil(lambda: len(jobs.children()) <= 1)


def test_a_newer_job_takes_the_place_of_the_older(jobs: Jobs, qtbot: Any) -> None:
    results: list[str] = []
    jobs.run("structure", "Finding", steps(100_000), lambda out: results.append("old"))
    jobs.run("structure", "Finding", steps(3), lambda out: results.append("new"))
    qtbot.waitUntil(lambda: bool(results))
    qtbot.wait(50)
    assert results == ["new"]


def test_the_owner_may_go_while_a_job_runs(qtbot: Any, window: Any) -> None:
    closed: list[bool] = []
    results: list[Any] = []
    parent = QWidget()
    jobs = Jobs(parent)
    jobs.run("embed", "Embedding", steps(40, closed), results.append)
    qtbot.wait(20)
    parent.deleteLater()
    del parent, jobs
    gc.collect()
    qtbot.waitUntil(lambda: bool(closed), timeout=10_000)
    qtbot.wait(50)
    assert results == []


def test_warnings_of_libraries_do_not_pop_up(jobs: Jobs, qtbot: Any) -> None:
    from napari.utils.notifications import notification_manager

    results: list[Any] = []
    before = len(notification_manager.records)

    def noisy() -> int:
        warnings.warn("a library changed its mind", UserWarning, stacklevel=1)
        return 1

    jobs.run("embed", "Embedding", noisy, results.append)
    qtbot.waitUntil(lambda: bool(results))
    assert len(notification_manager.records) == before


def test_overlapping_jobs_leave_pythons_warnings_as_they_were(jobs: Jobs, qtbot: Any) -> None:
    before = warnings.showwarning, list(warnings.filters)
    gates = {name: threading.Event() for name in ("first", "second")}
    for name, gate in gates.items():
        jobs.run(name, name, lambda wait=gate.wait: wait(60), lambda out: None)
    qtbot.waitUntil(lambda: warnings.showwarning is not before[0])
    for name, gate in gates.items():
        gate.set()
        qtbot.waitUntil(lambda ended=name: not jobs.is_running(ended))
    threads_at_rest(qtbot)
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_a_quick_job_does_not_wait_for_long_ones(jobs: Jobs, qtbot: Any) -> None:
    gate = threading.Event()
    for number in range(4):
        jobs.run(f"long {number}", "Embedding", lambda: gate.wait(60), lambda out: None)
    results: list[int] = []
    jobs.run("quick", "Exporting", lambda: 1, results.append, quiet=True)
    try:
        qtbot.waitUntil(lambda: results == [1])
        assert jobs.is_running("long 3")
    finally:
        gate.set()


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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s left"), (41.6, "42 s left"), (200, "3 min left"), (9000, "2.5 h left")],
)
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert time_left(seconds) == words
