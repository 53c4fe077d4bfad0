"""Asking for the file that is to be written, in one way everywhere."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

__all__ = ["ask_where_to_save"]


def ask_where_to_save(parent: QWidget, title: str, name: str, kinds: str) -> str:
    """Ask for a file to write; no other one is replaced than the user has agreed to.

    Parameters
    ----------
    parent : QWidget
        Window that asks.
    title : str
        Of the dialog.
    name : str
        Suggested. Whatever is typed gets its ending before the dialog looks whether the file is
        there.
    kinds : str
        Filter of the dialog.

    Returns
    -------
    str
        Path with that ending; empty when nothing is to be written.
    """
    ending = Path(name).suffix
    dialog = QFileDialog(parent, title, "", kinds)
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setDefaultSuffix(ending)
    dialog.selectFile(name)
    path = dialog.selectedFiles()[0] if dialog.exec() else ""
    dialog.deleteLater()
    if not path or path.lower().endswith(ending):
        return path
    path += ending  # it was typed with another one
    question = f"{Path(path).name} already exists. Do you want to replace it?"
    agreed = not Path(path).exists() or (
        QMessageBox.question(parent, title, question) == QMessageBox.StandardButton.Yes
    )
    return path if agreed else ""
