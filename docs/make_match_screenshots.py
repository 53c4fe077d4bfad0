"""Make the pictures of matching and carried labels from the running program.

    xvfb-run -a -s "-screen 0 1920x1200x24" .venv/bin/python docs/make_match_screenshots.py

Embeds the two sample torsos, matches them, points at a patch with the real mouse, carries the
labels, and matches one torso with a random view of itself. Options as for make_screenshots.py,
whose pictures show the rest of the workbench.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import make_screenshots as base
import numpy as np

from napari_s2dc.widgets.commands import open_match
from napari_s2dc.widgets.workbench import Workbench


def make_pictures(
    out: Path,
    theme: str,
    size: tuple[int, int],
    encoder: Path | None = None,
    *,
    small: bool = False,
) -> list[Path]:
    """Walk through the Match tab once and photograph it.

    Parameters
    ----------
    out : Path
        Folder for the pictures.
    theme : str
        napari's theme.
    size : tuple of int
        Width and height of the window in pixels.
    encoder : Path, optional
        Checkpoint to open.
    small : bool
        Use small scans.

    Returns
    -------
    list of Path
        What was written.
    """
    with base.window(out, theme, size) as (viewer, shoot, written):
        one, two, labels = open_pair(viewer, small)
        viewer.layers.selection.active = one
        open_match()
        workbench = with_encoder(viewer, encoder)
        for layer in (two, one):
            workbench.header.volume.choose(layer)
            base._embed(workbench, layer)
        tab, matching = workbench.match_tab, workbench.matching
        tab.moving.choose(one)
        tab.reference.choose(two)
        _match(workbench)
        tab.pairs.number.setValue(200)
        viewer.reset_view()
        shoot("matched")
        tab.pointing.click()
        base._click(viewer, one, _telling_place(matching), tab.jump_button.isEnabled)
        find(viewer, "matched patches").visible = False
        shoot("row")
        tab.pointing.click()
        matching.layers.clear_row()
        tab.labels.choose(labels)
        tab.transfer_button.click()
        base._until(lambda: find(viewer, "labels from") is not None, 300, "labels are carried")
        labels.visible = True
        shoot("carried")
        labels.visible = False
        tab.reference.choose(None)
        _match(workbench)
        viewer.reset_view()
        shoot("self_check")
    return written


def open_pair(viewer: Any, small: bool) -> tuple[Any, Any, Any]:
    """Open two torsos; gives both images and the labels of the first."""
    if not small:
        viewer.open_sample(base.PLUGIN, "phantom_pair_ct")
    else:
        from napari.layers import Layer

        from napari_s2dc._reader import layer_data
        from napari_s2dc.volumes.phantom import phantom

        for subject in (1, 2):
            image, labels = phantom((32, 48, 48), seed=subject)
            image.name, labels.name = f"torso {subject} CT", f"torso {subject} labels"
            viewer.add_layer(Layer.create(*layer_data(image)))
            viewer.add_layer(Layer.create(*layer_data(labels, labels=True)))
    for layer in viewer.layers:
        layer.visible = layer.name == "torso 1 CT"
    return viewer.layers["torso 1 CT"], viewer.layers["torso 2 CT"], viewer.layers["torso 1 labels"]


def with_encoder(viewer: Any, encoder: Path | None) -> Workbench:
    """Wait until the workbench has read its encoder, or the one that is wanted."""
    workbench = base.workbench_of(viewer)
    base._settle(1.0)  # the workbench first reads the encoder at hand, if there is one
    base._until(lambda: not workbench.jobs.is_running("encoder"), 120, "an encoder was read")
    if encoder is not None:
        workbench.encoders.load_encoder(encoder.parent.name, str(encoder))
    base._until(lambda: _has_encoder(workbench, encoder), 120, "the encoder was read")
    return workbench


def _has_encoder(workbench: Workbench, wanted: Path | None) -> bool:
    """Whether the encoder is in memory, and the one that was asked for."""
    encoder = workbench.session.encoder
    return encoder is not None and wanted in (None, encoder.path)


def _match(workbench: Workbench) -> None:
    workbench.match_tab.match_button.click()
    base._until(lambda: not workbench.jobs.is_running("match"), 300, "the match is there")
    base._until(lambda: workbench.matching.scans is not None, 60, "the match is shown")
    base._until(lambda: not workbench.jobs.is_running("mirror"), 300, "left and right are checked")


def _telling_place(matching: Any) -> tuple[int, int, int]:
    """Voxel of a patch in soft tissue that spreads half of its mass, its partner in sight."""
    scans = matching.scans
    pairs, values = scans.pairs, np.asarray(scans.moving.data)
    places = np.rint(pairs.voxel_a).astype(int)
    level = pairs.token_a[:, 0] == pairs.token_b[:, 0]
    found = values[tuple(places.T)]
    fit = np.flatnonzero(level & pairs.mutual & (found > 0) & (found < 150))
    best = fit[np.abs(pairs.confidence[fit] - 0.5).argmin()] if len(fit) else 0
    z, y, x = (int(place) for place in places[best])
    return z, y, x


def find(viewer: Any, title: str) -> Any | None:
    """Give the layer with some words in its name."""
    return next((layer for layer in viewer.layers if title in layer.name), None)


if __name__ == "__main__":
    sys.exit(base.main(__doc__, make_pictures))
