from __future__ import annotations

import gc
import threading
from threading import Event
from typing import Any

from qtpy.QtWidgets import QWidget

from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets.workers import Jobs
from tests.gui.conftest import steps, threads_at_rest


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
    results: list[Any] = []
    jobs.ended.connect(ended.append)
    for number in range(50):
        jobs.run("embed", "Embedding", steps(100_000), results.append)
        qtbot.wait(number % 5)
        jobs.cancel("embed")
        qtbot.waitUntil(lambda count=number: len(ended) == count + 1)
    assert results == []
    threads_at_rest(qtbot)
    assert not jobs._unfinished


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
    jobs.run("embed", "Embedding", steps(100_000, closed), results.append)
    qtbot.wait(20)
    parent.deleteLater()
    del parent, jobs
    gc.collect()
    threads_at_rest(qtbot)
    assert closed == [True]
    assert results == []


def test_a_quick_job_does_not_wait_for_long_ones(jobs: Jobs, qtbot: Any, held: Event) -> None:
    for number in range(4):
        jobs.run(f"long {number}", "Embedding", lambda: held.wait(60), lambda out: None)
    results: list[int] = []
    jobs.run("quick", "Finding colours", lambda: 1, results.append, quiet=True)
    qtbot.waitUntil(lambda: results == [1])
    assert jobs.is_running("long 3")


def test_a_cancelled_job_runs_until_it_ends_but_is_not_due(jobs: Jobs, held: Event) -> None:
    assert not jobs.is_due("match")
    jobs.run("match", "Matching", lambda: held.wait(60), lambda out: None)
    assert jobs.is_due("match")
    jobs.cancel("match")
    assert jobs.is_running("match")
    assert not jobs.is_due("match")


# ------------------------------------------------------------------------------- what writes
def test_writers_are_all_done_in_their_order(jobs: Jobs, qtbot: Any, held: Event) -> None:
    written: list[int] = []
    told: list[int] = []

    def write(number: int) -> int:
        assert held.wait(60)
        written.append(number)
        return number

    for number in range(5):
        jobs.write("Exporting", lambda number=number: write(number), told.append)
    jobs.cancel_all()
    held.set()
    qtbot.waitUntil(lambda: told == [0, 1, 2, 3, 4])
    assert written == told


def test_what_writes_ends_after_its_owner_and_its_errors_are_shown(
    qtbot: Any, window: Any, held: Event
) -> None:
    from napari.utils.notifications import notification_manager

    written: list[int] = []
    told: list[int] = []

    def write() -> int:
        assert held.wait(60)
        written.append(1)
        return 1

    def fail() -> None:
        raise S2DCError("The disk is full.")

    parent = QWidget()
    jobs = Jobs(parent)
    jobs.write("Exporting", write, told.append)
    jobs.write("Exporting", fail, told.append)
    parent.deleteLater()
    gone: list[bool] = []
    parent.destroyed.connect(lambda: gone.append(True))
    qtbot.waitUntil(lambda: bool(gone))
    held.set()
    threads_at_rest(qtbot)
    assert written == [1]
    assert told == []
    assert notification_manager.records[-1].message == "Exporting: The disk is full."


# ------------------------------------------------------------------------- what napari knows
def test_napari_lists_jobs_and_may_cancel_all_but_writers(
    jobs: Jobs, qtbot: Any, window: Any, held: Event
) -> None:
    known = window.window._qt_window._window._task_status_manager
    written: list[bool] = []
    jobs.run("embed", "Embedding torso", steps(100_000), lambda out: None)
    jobs.write("Exporting", lambda: held.wait(60), written.append)
    words = "\n".join(known.get_status())
    assert "Executing Embedding torso" in words
    assert "Executing Exporting" in words
    known.cancel_all()  # as when its window is closed
    qtbot.waitUntil(lambda: not jobs.is_running("embed"))
    held.set()
    qtbot.waitUntil(lambda: written == [True])
    assert not known.is_busy()
