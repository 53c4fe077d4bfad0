"""Forms and sentences as every tab has them."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QLabel, QWidget

__all__ = ["form_layout", "sentence_label"]


def form_layout(parent: QWidget | None = None) -> QFormLayout:
    """Make a form whose fields take the width there is, on every system.

    Parameters
    ----------
    parent : QWidget, optional
        Widget that it lays out.
    """
    form = QFormLayout() if parent is None else QFormLayout(parent)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def sentence_label() -> QLabel:
    """Make an empty label for sentences: they wrap, and can be selected and copied."""
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
