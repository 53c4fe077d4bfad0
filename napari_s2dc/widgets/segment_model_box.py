"""What is done with a trained model: apply it to other scans, keep it in a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.widgets.layers import plain
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.save_dialog import ask_where_to_save

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = ["ModelBox"]

_MODELS = "Segmentation model (*.safetensors)"
_SETTINGS = "Settings (*.yaml)"


class ModelBox(QGroupBox):
    """Controls of the model. Emits what the user wants and holds no logic."""

    apply_wanted = Signal(object)  # layer
    folder_wanted = Signal(str, str)  # of scans, of results
    save_wanted = Signal(str)  # path
    load_wanted = Signal(str)  # path
    export_wanted = Signal(str)  # path

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Model", parent)
        self._targets: list[ref[Any]] = []
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.apply_button = QPushButton("Apply to")
        self.apply_button.setToolTip("Segment other scans with the model")
        self.menu = QMenu(self.apply_button)
        self.menu.aboutToShow.connect(self._fill)
        self.apply_button.setMenu(self.menu)
        self.file_button = QPushButton("File")
        self.file_button.setToolTip("Save or load the model; export the settings")
        menu = QMenu(self.file_button)
        menu.setToolTipsVisible(True)
        self._save = menu.addAction("Save model…")
        self._save.triggered.connect(lambda: self._ask_save())
        load = menu.addAction("Load model…")
        load.setToolTip("Of the Segment tab, or of the command s2dc finetune")
        load.triggered.connect(lambda: self._ask_load())
        export = menu.addAction("Export config…")
        export.setToolTip("Write the settings for the command s2dc finetune --config")
        export.triggered.connect(lambda: self._ask_export())
        self.file_button.setMenu(menu)
        row = QHBoxLayout()
        row.addWidget(self.apply_button, 1)
        row.addWidget(self.file_button)
        column = QVBoxLayout(self)
        column.addWidget(self.about)
        column.addLayout(row)
        self.show_model("")

    def show_model(self, words: str) -> None:
        """Say what the model knows; "" for none."""
        why = "" if words else "Train or load a model first"
        self.about.setText(words or "No model yet.")
        allow(self.apply_button, why)
        self._save.setEnabled(not why)
        self._save.setToolTip(why or "One file, which the command s2dc segment uses too")

    def offer_targets(self, layers: Iterable[Layer]) -> None:
        """Renew the layers that the model can be applied to."""
        self._targets = [ref(plain(layer)) for layer in layers]

    def _fill(self) -> None:
        self.menu.clear()
        for target in self._targets:
            layer = target()
            if layer is not None:
                action = self.menu.addAction(str(layer.name))
                action.triggered.connect(
                    lambda _=False, target=target: self.apply_wanted.emit(target())
                )
        self.menu.addSeparator()
        self.menu.addAction("Folder…").triggered.connect(lambda: self._ask_folder())

    def _ask_folder(self) -> None:
        scans = QFileDialog.getExistingDirectory(self, "Folder with scans")
        results = QFileDialog.getExistingDirectory(self, "Folder for the results") if scans else ""
        if results:
            self.folder_wanted.emit(scans, results)

    def _ask_save(self) -> None:
        path = ask_where_to_save(self, "Save model", "model.safetensors", _MODELS)
        if path:
            self.save_wanted.emit(path)

    def _ask_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load model", "", f"{_MODELS};;All files (*)")
        if path:
            self.load_wanted.emit(path)

    def _ask_export(self) -> None:
        path = ask_where_to_save(self, "Export config", "finetune.yaml", _SETTINGS)
        if path:
            self.export_wanted.emit(path)
