"""Long functions run to their end, silently or under a bar, and are closed when they are left."""

from __future__ import annotations

import io

import pytest

from napari_s2dc.engine.progress import (
    Progress,
    Steps,
    StopTraining,
    TrainingProgress,
    finish,
    finish_with_bar,
)


class _Work:
    """Three parts, of which one can fail; notes whether it was closed."""

    def __init__(self, fails_at: int = -1, error: BaseException | None = None) -> None:
        self.fails_at, self.error = fails_at, error
        self.closed = False

    def steps(self) -> Steps[str]:
        try:
            for number in range(3):
                if number == self.fails_at and self.error is not None:
                    raise self.error
                yield Progress(number + 1, 3, "windows")
            return "result"
        finally:
            self.closed = True


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("run", [finish, finish_with_bar])
def test_the_result_is_returned(run) -> None:
    work = _Work()
    assert run(work.steps()) == "result"
    assert work.closed


@pytest.mark.parametrize("run", [finish, finish_with_bar])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_errors_pass_and_the_work_is_closed(run, error: BaseException) -> None:
    work = _Work(1, error)
    with pytest.raises(type(error)):
        run(work.steps())
    assert work.closed


def test_closing_is_cancelling() -> None:
    work = _Work()
    steps = work.steps()
    assert next(steps) == Progress(1, 3, "windows")
    steps.close()
    assert work.closed


def test_the_bar_names_the_parts_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr("sys.stderr", screen)
    finish_with_bar(_Work().steps())
    assert "3/3" in screen.getvalue()
    assert "windows" in screen.getvalue()


def test_a_log_file_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    finish_with_bar(_Work().steps())
    assert capsys.readouterr().err == ""


def test_a_new_start_sets_the_bar_back(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr("sys.stderr", screen)

    def steps() -> Steps[None]:
        yield Progress(2, 4, "windows")
        yield Progress(1, 8, "windows")
        yield Progress(8, 8, "windows")

    finish_with_bar(steps())
    assert "8/8" in screen.getvalue()
    assert "9/8" not in screen.getvalue()


def _training() -> Steps[str]:
    try:
        for step in range(1, 4):
            yield TrainingProgress(
                step, 3, "steps", loss=0.5 / step, dice=0.25 if step == 1 else None
            )
    except StopTraining:
        return "the best so far"
    return "all steps"


def test_the_bar_of_a_training_has_loss_and_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr("sys.stderr", screen)
    assert finish_with_bar(_training()) == "all steps"
    # Dice stays until it is measured again.
    assert "loss=0.167, Dice=0.250" in screen.getvalue()


def test_a_training_that_is_stopped_gives_the_best_so_far() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert finish_with_bar(_training(), stop) == "the best so far"
    with pytest.raises(StopTraining):
        finish_with_bar(_Work().steps(), lambda: True)
