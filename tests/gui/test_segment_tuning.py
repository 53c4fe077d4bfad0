"""Stopping a fine-tuning, going on with it, and using what it has learned so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from napari_s2dc.engine.progress import Progress, TrainingProgress
from napari_s2dc.errors import S2DCError
from tests.gui.conftest import SHAPE
from tests.gui.segmenting import painted, settled

pytestmark = pytest.mark.usefixtures("light_quick")


class Run:
    """Stands for the engine's fine-tuning: a step whenever it is let, a model of Quick so far."""

    def __init__(
        self, scans: Any, encoder: Any, classes: Any, settings: Any, *, carried: Any, held_out: Any
    ) -> None:
        self.scans, self.encoder, self.classes, self.settings = scans, encoder, classes, settings
        assert not held_out
        self.carried = carried
        self.steps_done = 0
        self.asked: list[int] = []
        self.fails = False

    def train(self) -> Iterator[TrainingProgress]:
        while self.steps_done < self.settings.finetune.steps:
            assert LET.acquire(timeout=60)
            if self.fails:
                raise S2DCError("The loss is no number any more.")
            self.steps_done += 1
            dice = self.steps_done / 100 if self.steps_done % 3 == 0 else None
            yield TrainingProgress(
                self.steps_done, self.settings.finetune.steps, "steps", 1 / self.steps_done, dice
            )

    def model(self) -> Any:
        from napari_s2dc.engine.progress import finish
        from napari_s2dc.engine.quick import train_quick
        from napari_s2dc.engine.quick_scan import prepare_scan

        self.asked.append(self.steps_done)
        scan = self.scans[0]
        features = finish(prepare_scan(scan.image, self.encoder, self.settings.quick, device="cpu"))
        labelled = [(features, scan.labels.array)]
        return finish(train_quick(labelled, self.classes, self.encoder, self.settings))


LET = threading.Semaphore(0)


@pytest.fixture
def tuning(workbench: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Begin a fine-tuning of 100 steps on strokes."""
    from napari_s2dc.engine import finetune

    monkeypatch.setattr(finetune, "FinetuneRun", Run)
    painted(workbench, qtbot)
    tab = workbench.segment_tab
    tab.mode.setCurrentIndex(tab.mode.findData("finetune"))
    tab.steps.setValue(100)
    assert not tab.refresh.isEnabled()
    assert "Only Quick" in tab.refresh.toolTip()
    assert not tab.stop_button.isEnabled()
    assert not tab.continue_button.isEnabled()
    LET.acquire(blocking=False)
    tab.train_button.click()
    yield workbench.segmenting.tuning
    for _ in range(300):
        LET.release()
    settled(workbench, qtbot)
    while LET.acquire(blocking=False):
        pass


def let(workbench: Any, steps: int, qtbot: Any) -> None:
    """Let it take some steps, and wait for them."""
    plot = workbench.segment_tab.plot
    wanted = len(plot.losses) + steps
    for _ in range(steps):
        LET.release()
    qtbot.waitUntil(lambda: len(plot.losses) == wanted)


def test_labels_are_carried_to_a_folder_first(
    workbench: Any, scan: Any, qtbot: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    from napari_s2dc.engine import finetune
    from napari_s2dc.volumes.phantom import phantom
    from napari_s2dc.volumes.writing import write_volume

    monkeypatch.setattr(finetune, "FinetuneRun", Run)
    folder = tmp_path / "more scans"
    folder.mkdir()
    image, _ = phantom(SHAPE, seed=1)  # the same body, which any encoder matches
    write_volume(folder / "like.nii.gz", image.array, image)
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    painted(workbench, qtbot)
    tab, tuning = workbench.segment_tab, workbench.segmenting.tuning
    assert tab.form.isRowVisible(tab.unlabelled) is False
    tab.mode.setCurrentIndex(tab.mode.findData("finetune"))
    tab.steps.setValue(2000)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    tab.unlabelled.button.click()
    assert tab.unlabelled.button.text() == "more scans"
    assert "and the scans in more scans" in tab.train_button.toolTip()
    tab.train_button.click()
    qtbot.waitUntil(lambda: tuning._tuning.run is not None)
    (carried,) = tuning._tuning.run.carried
    assert carried.image.name == "like"
    assert (carried.labels.array > 0).sum() > 50
    tab.stop_button.click()
    for _ in range(2):
        LET.release()
    settled(workbench, qtbot)
    assert "learned from 1 unlabelled scan too" in tab.models.about.text()
    assert "broken.nii.gz" in tab.models.about.text()
    tab.unlabelled.forget_button.click()
    assert tab.unlabelled.folder is None
    assert workbench.segmenting.choices.unlabelled is None


def test_stopped_while_labels_are_carried_nothing_is_left(
    workbench: Any, scan: Any, qtbot: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.engine import carried_labels
    from napari_s2dc.volumes.phantom import phantom
    from napari_s2dc.volumes.writing import write_volume

    closed = threading.Event()

    def forever(*_: Any) -> Iterator[Progress]:
        try:
            while True:
                time.sleep(0.002)
                yield Progress(1, 5, "scans")
        finally:
            closed.set()

    monkeypatch.setattr(carried_labels, "carry_labels", forever)
    image, _ = phantom(SHAPE, seed=1)
    write_volume(tmp_path / "like.nii.gz", image.array, image)
    painted(workbench, qtbot)
    tab = workbench.segment_tab
    tab.mode.setCurrentIndex(tab.mode.findData("finetune"))
    tab.unlabelled.choose(tmp_path)
    tab.train_button.click()
    qtbot.waitUntil(lambda: "1 of 5 scans" in workbench.task_bar.text.text())
    assert not tab.best_button.isEnabled()
    tab.stop_button.click()
    settled(workbench, qtbot)
    assert closed.is_set()
    assert not tab.continue_button.isEnabled()
    assert workbench.segmenting.training.model is None
    assert tab.train_button.isEnabled()


def test_stopped_it_segments_with_the_best_so_far_and_goes_on(
    tuning: Any, workbench: Any, scan: Any, qtbot: Any
) -> None:
    tab = workbench.segment_tab
    let(workbench, 3, qtbot)
    assert tab.plot.losses[-1] == (3, 1 / 3)
    assert tab.plot.dices[-1] == (3, 0.03)
    tab.stop_button.click()
    LET.release()
    settled(workbench, qtbot)
    run = tuning._tuning.run
    assert run.asked == [4]
    assert workbench.segmenting.layers.found_for(scan) is not None
    assert workbench.segmenting.training.model.metadata["scans"][0]["name"] == scan.name
    assert tab.continue_button.isEnabled()
    assert not tab.stop_button.isEnabled()
    tab.continue_button.click()
    let(workbench, 2, qtbot)
    assert tuning._tuning.run is run
    assert tab.plot.losses[-1][0] == 6
    assert not tab.continue_button.isEnabled()


def test_the_best_is_used_while_it_goes_on(
    tuning: Any, workbench: Any, scan: Any, qtbot: Any
) -> None:
    tab = workbench.segment_tab
    let(workbench, 2, qtbot)
    tab.best_button.click()
    LET.release()
    qtbot.waitUntil(lambda: workbench.segmenting.layers.found_for(scan) is not None)
    assert tuning._tuning.run.asked == [3]
    assert workbench.jobs.is_running("segment training")
    let(workbench, 1, qtbot)


def test_cancelled_it_can_still_be_used(tuning: Any, workbench: Any, scan: Any, qtbot: Any) -> None:
    tab = workbench.segment_tab
    let(workbench, 2, qtbot)
    workbench.task_bar.cancel_button.click()
    LET.release()
    settled(workbench, qtbot)
    assert workbench.segmenting.training.model is None
    tab.best_button.click()
    settled(workbench, qtbot)
    assert workbench.segmenting.layers.found_for(scan) is not None


def test_its_model_is_kept_where_the_scan_was_closed(
    tuning: Any, workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    let(workbench, 2, qtbot)
    viewer.layers.selection.active = scan
    viewer.layers.remove(scan)
    workbench.segment_tab.stop_button.click()
    LET.release()
    settled(workbench, qtbot)
    assert "was removed" in workbench.message.text()
    assert workbench.segmenting.training.model is not None
    assert workbench.segment_tab.models.apply_button.isEnabled()


def test_it_does_not_go_on_while_its_best_is_taken(
    tuning: Any, workbench: Any, qtbot: Any, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, own = workbench.segment_tab, Run.model

    def slowly(run: Run) -> Any:
        assert held.wait(60)
        return own(run)

    let(workbench, 2, qtbot)
    workbench.task_bar.cancel_button.click()
    LET.release()
    settled(workbench, qtbot)
    monkeypatch.setattr(Run, "model", slowly)
    tab.best_button.click()
    assert not tab.continue_button.isEnabled()
    assert "is being taken" in tab.continue_button.toolTip()
    tab.continue_wanted.emit()
    assert not workbench.jobs.is_running("segment training")
    held.set()
    settled(workbench, qtbot)
    assert tab.continue_button.isEnabled()


def test_a_second_training_waits_for_the_user(tuning: Any, workbench: Any, qtbot: Any) -> None:
    let(workbench, 1, qtbot)
    run = tuning._tuning.run
    workbench.segment_tab.train_button.click()
    assert "stop that first" in workbench.message.text()
    assert tuning._tuning.run is run


def test_an_error_keeps_what_was_learned(
    tuning: Any, workbench: Any, scan: Any, qtbot: Any
) -> None:
    tab = workbench.segment_tab
    let(workbench, 2, qtbot)
    tuning._tuning.run.fails = True
    LET.release()
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("segment training"))
    assert "The loss is no number" in workbench.message.text()
    assert tab.continue_button.isEnabled()
    tab.best_button.click()
    settled(workbench, qtbot)
    assert workbench.segmenting.layers.found_for(scan) is not None


def test_nothing_is_used_of_a_training_that_failed_before_its_first_step(
    tuning: Any, workbench: Any, scan: Any, qtbot: Any
) -> None:
    tab, training = workbench.segment_tab, workbench.segmenting.training
    let(workbench, 2, qtbot)
    tab.stop_button.click()
    LET.release()
    settled(workbench, qtbot)
    model = training._model
    assert model is not None
    tab.train_button.click()
    qtbot.waitUntil(lambda: tuning._tuning.run is not None)
    tuning._tuning.run.fails = True
    LET.release()
    settled(workbench, qtbot)
    assert "no number any more" in workbench.message.text()
    assert not tab.best_button.isEnabled()
    assert not tab.continue_button.isEnabled()
    tab.best_wanted.emit()
    settled(workbench, qtbot)
    assert tuning._tuning.run.asked == []
    assert training._model is model
