"""The tab that turns a scan into features and shows them: colours, clusters, scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledSlider

from napari_s2dc.widgets.eliding_button import ElidingButton
from napari_s2dc.widgets.forms import form_layout
from napari_s2dc.widgets.header import enable, narrow
from napari_s2dc.widgets.layer_combo import LayerCombo
from napari_s2dc.widgets.plots import Scatter
from napari_s2dc.widgets.reasons import allow
from napari_s2dc.widgets.save_dialog import ask_where_to_save
from napari_s2dc.widgets.shortcuts import EMBED, key_hint

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.layers import Layer

__all__ = ["EmbedTab"]

BY_ANATOMY, BY_CLUSTER, BY_LABELS = "anatomy", "cluster", "labels"
WHOLE, IN_VIEW, IN_BOX = "whole", "view", "box"
PCA, UMAP = "pca", "umap"


class EmbedTab(QWidget):
    """Controls of the embedding. Emits what the user wants and holds no logic.

    Parameters
    ----------
    is_labels : callable
        Whether a layer can colour the scatter.
    can_bound : callable
        Whether a layer can say which region is embedded.
    """

    embed_wanted = Signal()
    region_changed = Signal()
    layout_changed = Signal(str)
    triple_changed = Signal(int)
    clusters_wanted = Signal(int)
    colouring_changed = Signal(str)
    save_wanted = Signal(str)  # path
    clear_cache_wanted = Signal()

    def __init__(
        self,
        is_labels: Callable[[Layer], bool],
        can_bound: Callable[[Layer], bool],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.region = narrow(QComboBox())
        self.region.addItem("whole volume", WHOLE)
        self.region.addItem("what the view shows, all slices", IN_VIEW)
        self.region.addItem("box round a layer", IN_BOX)
        self.region.setToolTip("Which part of the volume is embedded; less takes less time")
        self.box = LayerCombo(can_bound, "No shapes or labels layer", only_when_empty=True)
        self.region.currentIndexChanged.connect(self._on_region)
        self.box.layer_changed.connect(self._on_region)
        self.embed_button = ElidingButton("Embed volume")
        self.plan = QLabel()
        self.plan.setWordWrap(True)
        self.embed_button.clicked.connect(self.embed_wanted)

        self.triple = QLabeledSlider(Qt.Orientation.Horizontal)
        self.triple.setRange(1, 3)
        self.triple.setToolTip(
            "Which three principal components become red, green and blue:\n"
            "1 shows the first three, 2 the next three, …"
        )
        self.triple.valueChanged.connect(lambda value: self.triple_changed.emit(value - 1))
        self.clusters = QLabeledSlider(Qt.Orientation.Horizontal)
        self.clusters.setRange(2, 40)
        self.clusters.setValue(12)
        self.clusters.setToolTip("How many groups of alike patches")
        self.clusters_button = QPushButton("Show clusters")
        self.clusters_button.setToolTip("Group the patches and show the groups as labels")
        self.clusters_button.clicked.connect(self._want_clusters)
        self.clusters.valueChanged.connect(self._want_clusters_again)
        self._clusters_shown = False

        self.colouring = narrow(QComboBox())
        self.colouring.addItem("anatomy colours", BY_ANATOMY)
        self.colouring.addItem("cluster", BY_CLUSTER)
        self.colouring.addItem("labels layer", BY_LABELS)
        self.colouring.setToolTip("What the colour of a dot means")
        self.labels = LayerCombo(is_labels, "No labels layer", only_when_empty=True)
        self.dots = narrow(QComboBox())
        self.dots.addItem("principal components", PCA)
        self.dots.addItem("UMAP", UMAP)
        self.dots.setToolTip("What puts the dots of alike patches close to each other")
        self.dots.currentIndexChanged.connect(
            lambda _: self.layout_changed.emit(self.dots.currentData())
        )
        self.colouring.currentIndexChanged.connect(self._on_colouring)
        self.labels.layer_changed.connect(self._on_colouring)
        self.scatter = Scatter()

        self.save_button = QPushButton("Save embedding…")
        self.save_button.setToolTip("Write a file that the command line and Python read")
        self.save_button.clicked.connect(self._ask_for_file)
        self.cache = QLabel("Cache: empty")
        self.cache.setToolTip("Embeddings kept on disk, so that a scan opens at once next time")
        self.clear_button = QPushButton("Clear cache")
        self.clear_button.setToolTip("Delete all embeddings kept on disk")
        self.clear_button.clicked.connect(self.clear_cache_wanted)

        where = form_layout()
        where.addRow("Region", self.region)
        where.addRow("", self.box)
        where.setRowVisible(self.box, False)
        form = form_layout()
        form.addRow("Components", self.triple)
        form.addRow("Clusters", self.clusters)
        form.addRow("", self.clusters_button)
        form.addRow("Place dots by", self.dots)
        form.addRow("Colour by", self.colouring)
        form.addRow("", self.labels)
        form.setRowVisible(self.labels, False)
        self._where, self._form = where, form
        bottom = QHBoxLayout()
        bottom.addWidget(self.cache, 1)
        bottom.addWidget(self.clear_button)
        column = QVBoxLayout(self)
        column.addLayout(where)
        column.addWidget(self.embed_button)
        column.addWidget(self.plan)
        column.addLayout(form)
        column.addWidget(self.scatter, 1)
        column.addWidget(self.save_button)
        column.addLayout(bottom)
        self.show_embedded(False)

    def show_ready(self, volume_name: str, problem: str) -> None:
        """Say what the button will do, or why it cannot."""
        words = f"Embed {volume_name}" if volume_name else "Embed volume"
        self.embed_button.setText(words)
        self.embed_button.setEnabled(not problem)
        self.embed_button.setToolTip(
            problem or f"{words}: describe every patch of it by numbers{key_hint(EMBED)}"
        )

    def show_embedded(self, there: bool) -> None:
        """Enable what needs an embedding."""
        why = "" if there else "Embed the volume first"
        for control in (
            self.triple,
            self.clusters,
            self.clusters_button,
            self.dots,
            self.colouring,
            self.save_button,
        ):
            allow(control, why)
        if not there:
            self._clusters_shown = False

    def show_cache(self, size_bytes: int, problem: str) -> None:
        """Show how much is kept on disk, or why nothing can be."""
        megabytes = size_bytes / 1e6
        amount = f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB"
        amount = amount if size_bytes else "empty"
        self.cache.setText("Cache: off" if problem else f"Cache: {amount}")
        self.cache.setToolTip(problem or "Embeddings kept on disk; a known scan opens at once")
        self.clear_button.setEnabled(size_bytes > 0)

    def _want_clusters(self) -> None:
        self._clusters_shown = True
        self.clusters_wanted.emit(self.clusters.value())

    def _want_clusters_again(self) -> None:
        if self._clusters_shown:
            self._want_clusters()

    def show_choices(self, *, slices: bool, boxes: bool, umap: bool) -> None:
        """Enable the choices there are now, and say why others cannot be chosen.

        Parameters
        ----------
        slices : bool
            The viewer shows slices, not the 3D view.
        boxes : bool
            There is a layer that a box can be put round.
        umap : bool
            The extra is installed.
        """
        enable(self.region, IN_VIEW, "" if slices else "Known in slices only: leave the 3D view")
        enable(
            self.region,
            IN_BOX,
            ""
            if boxes
            else "Draw a rectangle in a Shapes layer, or paint in a Labels layer, first",
        )
        enable(
            self.dots,
            UMAP,
            "" if umap else 'Not installed; pip install "napari-s2dc[umap]" adds it',
        )

    def _on_region(self, _: object = None) -> None:
        self._where.setRowVisible(self.box, self.region.currentData() == IN_BOX)
        self.region_changed.emit()

    def _on_colouring(self, _: object = None) -> None:
        what = self.colouring.currentData()
        self._form.setRowVisible(self.labels, what == BY_LABELS)
        self.colouring_changed.emit(what)

    def _ask_for_file(self) -> None:
        path = ask_where_to_save(
            self, "Save embedding", "embedding.safetensors", "Embedding (*.safetensors)"
        )
        if path:
            self.save_wanted.emit(path)
