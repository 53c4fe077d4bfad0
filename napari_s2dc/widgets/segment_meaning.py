"""What the labels of a layer mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_s2dc.volumes.io import is_label_path
from napari_s2dc.widgets.layers import COMPLETE
from napari_s2dc.widgets.segment_layers import names_of

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["BACKGROUND", "UNLABELLED", "Meaning", "likely_meaning"]

UNLABELLED, BACKGROUND = "unlabelled", "background"
"""What 0 may mean."""


@dataclass(frozen=True)
class Meaning:
    """What labels mean.

    Parameters
    ----------
    zero : str
        What 0 means: ``unlabelled`` or ``background``.
    background : int or None
        Label of the background where 0 is unlabelled.
    """

    zero: str = UNLABELLED
    background: int | None = None


def likely_meaning(layer: Labels) -> Meaning:
    """Say what labels mean as their origin and the names of their classes suggest."""
    named = {name.casefold(): label for label, name in names_of(layer).items() if label}
    path = layer.metadata.get("s2dc", {}).get("path")
    # Files hold complete masks more often than strokes.
    complete = COMPLETE in layer.metadata or bool(path and is_label_path(Path(path)))
    if "background" not in named and complete:
        return Meaning(BACKGROUND)
    return Meaning(UNLABELLED, named.get("background"))
