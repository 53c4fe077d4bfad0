from __future__ import annotations

import threading
import warnings
from threading import Event
from typing import Any

import pytest

from napari_s2dc.widgets import threads
from tests.gui.conftest import threads_at_rest


def test_messages_come_in_their_order_and_in_the_main_thread(qtbot: Any) -> None:
    heard: list[tuple[int, int]] = []

    def work(say: Any) -> None:
        for number in range(20):
            say(number)

    threads.start(work, lambda number: heard.append((number, threading.get_ident())))
    assert threads.busy() == 1
    threads_at_rest(qtbot)
    assert heard == [(number, threading.get_ident()) for number in range(20)]


@pytest.mark.filterwarnings("always::UserWarning")
def test_warnings_of_threads_are_logged_and_others_shown_as_before(
    qtbot: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[str] = []

    def work(_: Any) -> None:
        warnings.warn("a library changed its mind", UserWarning, stacklevel=1)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
        threads.start(work, lambda _: None)
        threads_at_rest(qtbot)
        warnings.warn("the user should know", UserWarning, stacklevel=1)
    assert "a library changed its mind" in caplog.text
    assert shown == ["the user should know"]


def test_work_that_overlaps_leaves_pythons_warnings_alone(qtbot: Any) -> None:
    threads.start(lambda _: None, lambda _: None)  # takes over what shows warnings, once
    before = warnings.showwarning, list(warnings.filters)
    gates = [Event(), Event()]
    done: list[int] = []
    for number, gate in enumerate(gates):
        threads.start(lambda say, on=gate, at=number: say((on.wait(60), at)), done.append)
    assert (warnings.showwarning, list(warnings.filters)) == before
    for number, gate in enumerate(gates):
        gate.set()
        qtbot.waitUntil(lambda count=number + 1: len(done) == count)
    threads_at_rest(qtbot)
    assert done == [(True, 0), (True, 1)]
    assert (warnings.showwarning, list(warnings.filters)) == before
