"""The part of the workbench that is always in sight: encoder, values, device, volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_s2dc.volumes.preprocess import PRESETS
from napari_s2dc.widgets.forms import form_layout
from napari_s2dc.widgets.layer_combo import LayerCombo

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer

__all__ = ["Header", "enable", "narrow"]

_OPEN = "Open checkpoint…"
_NO_ENCODER = "No encoder yet"
_FILES = "Weights (*.safetensors *.pt *.pth *.ckpt *.bin);;All files (*)"


class Header(QWidget):
    """Choices that all tabs share. Emits what the user wants and holds no logic.

    Parameters
    ----------
    usable : callable
        Whether a layer is a scan that can be chosen.
    """

    encoder_chosen = Signal(str, str)  # name, path
    settings_changed = Signal()
    volume_changed = Signal(object)  # layer or None
    details_wanted = Signal()

    def __init__(self, usable: Callable[[Layer], bool], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._paths: list[str] = []
        self._chosen = -1
        self.encoder = narrow(QComboBox())
        self.encoder.setToolTip("The network that describes patches by numbers")
        self.encoder.activated.connect(self._on_encoder)
        self.details = QToolButton()
        self.details.setText("Details")
        self.details.setToolTip("What the encoder was trained on, and how its file fitted")
        self.details.setEnabled(False)
        self.details.clicked.connect(self.details_wanted)
        row = QHBoxLayout()
        row.addWidget(self.encoder, 1)
        row.addWidget(self.details)
        self.about = QLabel("Looking for encoders…")
        self.about.setWordWrap(True)

        self.preset = narrow(QComboBox())
        self.preset.setToolTip("How the scan's values become what the encoder was trained on")
        self.preset.addItem("As the encoder was trained", "checkpoint")
        self.preset.addItem("Guess from the scan", "auto")
        for name, preset in PRESETS.items():
            self.preset.addItem(preset.title, name)
        self.preset.currentIndexChanged.connect(self.settings_changed)
        self.device = narrow(QComboBox())
        self.device.setToolTip("Where the encoder runs")
        self.show_devices([("auto", "Automatic"), ("cpu", "Processor")])
        self.device.currentIndexChanged.connect(self.settings_changed)

        self.volume = LayerCombo(usable, "Open a 3D image first", only_when_empty=True)
        self.volume.layer_changed.connect(self.volume_changed)
        self.level = narrow(QComboBox())
        self.level.setToolTip(
            "Resolution that is worked at, in voxels: a level of a multi-resolution image; or a "
            "coarser grid for embedding a large scan, where the encoder sees farther and matches "
            "are surer (Segment keeps the scan's own voxels)"
        )
        self.level.currentIndexChanged.connect(self.settings_changed)

        self.warning = QLabel()
        self.warning.setWordWrap(True)
        self.warning.setStyleSheet(
            "QLabel { border: 1px solid #ff8c00; border-radius: 4px; padding: 4px; }"
        )
        self.warning.hide()

        self.form = form_layout(self)
        self.form.setContentsMargins(0, 0, 0, 0)
        self.form.addRow("Volume", self.volume)
        self.form.addRow("Resolution", self.level)
        self.form.addRow("Encoder", row)
        self.form.addRow("", self.about)
        self.form.addRow("Values", self.preset)
        self.form.addRow("Device", self.device)
        self.form.addRow(self.warning)
        self.show_levels([], made=False)

    def show_encoders(self, choices: Sequence[tuple[str, str, str]]) -> None:
        """List encoders as (name, path, description); the first becomes the chosen one."""
        self.encoder.clear()
        self._paths = []
        for name, path, description in choices:
            self._append(name, path, description)
        if not choices:
            self.encoder.addItem(_NO_ENCODER)
            self._paths.append("")
            self.about.setText(
                "The bundled encoder is missing: install napari-s2dc again, or open a checkpoint."
            )
        self.encoder.addItem(_OPEN)
        self.encoder.setCurrentIndex(0)
        self._chosen = 0

    def add_encoder(self, name: str, path: str) -> None:
        """Choose an encoder that was opened from a file, listing it first if it is new."""
        if path not in self._paths:
            if self._paths == [""]:
                self._paths.clear()
                self.encoder.removeItem(0)
            self.encoder.insertItem(0, name)
            self._paths.insert(0, path)
        self._chosen = self._paths.index(path)
        self.encoder.setCurrentIndex(self._chosen)

    @property
    def chosen_path(self) -> str:
        """File of the chosen encoder, empty when there is none."""
        return self._paths[self._chosen] if 0 <= self._chosen < len(self._paths) else ""

    def show_devices(self, devices: Sequence[tuple[str, str]]) -> None:
        """List devices as (name in settings, words), keeping the choice."""
        before = self.device.currentData()
        blocked = self.device.blockSignals(True)
        self.device.clear()
        for name, words in devices:
            self.device.addItem(words, name)
        self.device.setCurrentIndex(max(0, self.device.findData(before)))
        self.device.blockSignals(blocked)

    def show_levels(self, shapes: Sequence[Sequence[int]], *, made: bool, first: int = 0) -> None:
        """Offer the resolutions of a scan, (z, y, x) voxels each; a single one hides the row.

        The choice is the number of a level of the layer, or the voxels of a grid that is `made`;
        to begin with it is the entry `first`.
        """
        blocked = self.level.blockSignals(True)
        self.level.clear()
        for number, shape in enumerate(shapes):
            choice = tuple(shape) if made and number else number
            self.level.addItem(" × ".join(str(int(size)) for size in shape), choice)
        if shapes:
            self.level.setCurrentIndex(first)
        self.level.blockSignals(blocked)
        self.form.setRowVisible(self.level, len(shapes) > 1)

    def show_warning(self, sentence: str) -> None:
        """Show the chip that says a scan is far from what the encoder knows; "" hides it."""
        self.warning.setText(sentence)
        self.warning.setVisible(bool(sentence))

    def show_details(self, title: str, text: str) -> None:
        """Open a window with a report in it, which can be copied."""
        dialog = QDialog(self)
        dialog.setWindowTitle(title)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        page = QPlainTextEdit(text)
        page.setReadOnly(True)
        page.setMinimumSize(520, 320)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(dialog.close)
        column = QVBoxLayout(dialog)
        column.addWidget(page)
        column.addWidget(buttons)
        dialog.show()

    def _append(self, name: str, path: str, description: str) -> None:
        self.encoder.addItem(name)
        self.encoder.setItemData(self.encoder.count() - 1, description, Qt.ItemDataRole.ToolTipRole)
        self._paths.append(path)

    def _on_encoder(self, index: int) -> None:
        if index < len(self._paths):
            self._chosen = index
            if self._paths[index]:
                self.encoder_chosen.emit(self.encoder.itemText(index), self._paths[index])
            return
        self.encoder.setCurrentIndex(self._chosen)  # until the file has been read
        path, _ = QFileDialog.getOpenFileName(self, "Open checkpoint", "", _FILES)
        if path:
            self.encoder_chosen.emit(Path(path).stem, path)


def narrow(combo: QComboBox) -> QComboBox:
    """Let a list box shrink to the dock instead of widening it to its longest entry."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return combo


def enable(combo: QComboBox, data: object, why_not: str) -> None:
    """Let an entry of a list box be chosen, or say in its tooltip why it cannot be."""
    index, entries = combo.findData(data), combo.model()
    assert isinstance(entries, QStandardItemModel)  # what a list box has unless given another
    entries.item(index).setEnabled(not why_not)
    entries.item(index).setToolTip(why_not)
    if why_not and combo.currentIndex() == index:
        combo.setCurrentIndex(0)
