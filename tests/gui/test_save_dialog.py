"""What is typed gets its ending before anyone looks whether the file is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

from napari_s2dc.widgets.save_dialog import ask_where_to_save
from napari_s2dc.widgets.segment_model_box import ModelBox


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answer the dialog with the path in it, None for Cancel; gives what it suggested."""
    given: list[Any] = []

    def answer(dialog: QFileDialog) -> bool:
        path = given.pop()
        given.append(Path(dialog.selectedFiles()[0]).name)
        if path is not None:
            dialog.selectFile(str(path))
        return path is not None

    monkeypatch.setattr(QFileDialog, "exec", answer)
    return given


def test_the_dialog_itself_adds_the_ending(qtbot: Any, tmp_path: Path, typed: list[Any]) -> None:
    box = ModelBox()
    qtbot.addWidget(box)
    asks = ((box.save_wanted, box._ask_save, "model.safetensors"),)
    asks += ((box.export_wanted, box._ask_export, "finetune.yaml"),)
    for wanted, ask, suggested in asks:
        ending = Path(suggested).suffix
        heard: list[str] = []
        wanted.connect(heard.append)
        for path in (None, tmp_path / "keep", tmp_path / f"own{ending}"):
            typed[:] = [path]
            ask()
            assert typed == [suggested]
        assert heard == [str(tmp_path / f"keep{ending}"), str(tmp_path / f"own{ending}")]


def test_another_ending_does_not_hide_the_file_that_is_there(
    qtbot: Any, tmp_path: Path, typed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    buttons, asked = QMessageBox.StandardButton, []

    def save(path: Path, agree: bool) -> str:
        def answer(_: QWidget, title: str, question: str) -> Any:
            asked.append(question)
            return buttons.Yes if agree else buttons.No

        monkeypatch.setattr(QMessageBox, "question", answer)
        typed[:] = [path]
        return ask_where_to_save(parent, "Save model", "model.safetensors", "Model (*.safetensors)")

    there = tmp_path / "liver.v2.safetensors"
    assert save(tmp_path / "liver.v2", agree=True) == str(there)
    assert asked == []
    there.write_text("precious")
    assert save(tmp_path / "liver.v2", agree=False) == ""
    assert "liver.v2.safetensors already exists" in asked[0]
    assert save(tmp_path / "liver.v2", agree=True) == str(there)
