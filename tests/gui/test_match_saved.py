"""Copies shown side by side: saved as what they show, and with looks of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from napari_s2dc._writer import volume_of
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import SHAPE, add_labels, named


def as_saved(layer: Any) -> Volume:
    """The volume that napari's Save would write."""
    data, attributes, _ = layer.as_layer_data_tuple()
    return volume_of(data, attributes)


def carry(workbench: Workbench, viewer: Any, scan: Any, other: Any) -> tuple[Any, Any]:
    """The user's labels, and what is kept of them on the reference as after a transfer."""
    labels = add_labels(viewer, scan)
    carried = workbench.session.overlays.keep_labels(
        other,
        "labels from torso 1",
        labels.data.copy(),
        geometry_of(other),
        labels,
        complete=True,
    )
    workbench.matching.layers.keep_carried(carried)
    return labels, carried


def test_what_is_seen_beside_is_saved_as_what_it_shows(
    matched: Workbench, scan: Any, other: Any, viewer: Any
) -> None:
    original = SimpleNamespace(spatial_shape=SHAPE)
    other.metadata["s2dc"] = {"affine": as_saved(other).affine, "original": original}
    matched.match_tab.beside.click()
    matched.match_tab.beside.click()
    _, carried = carry(matched, viewer, scan, other)
    for shown, real in (("– side by side", other), ("carried labels", carried)):
        copy = named(viewer, shown)
        assert not np.allclose(copy.translate, real.translate)  # or this would show nothing
        saved = as_saved(copy)
        np.testing.assert_allclose(saved.affine, as_saved(real).affine, atol=1e-9)
        assert saved.original is as_saved(real).original is original
        np.testing.assert_array_equal(saved.array, real.data)
    other.translate = np.add(other.translate, (0, 3, 5))
    saved = as_saved(named(viewer, "– side by side"))
    np.testing.assert_allclose(saved.affine, as_saved(other).affine, atol=1e-9)
    assert saved.original is None  # moved since it was read


def test_maps_beside_are_saved_over_the_reference(
    matched: Workbench, other: Any, viewer: Any
) -> None:
    layers = matched.matching.layers
    matched.match_tab.unmatched.click()
    layers.show_row((2, 3, 3))
    own = matched.matching.scans.second(None)
    for end, count in (("without a partner", 2), ("where it goes", 1)):
        found = [layer for layer in viewer.layers if layer.name.endswith(end)]
        assert len(found) == count
        (shown,) = (layer for layer in found if "side by side" in layer.name)
        assert not np.allclose(shown.translate, own.geometry["translate"])
        np.testing.assert_allclose(as_saved(shown).affine, own.matrix, atol=1e-6)
        other.translate = np.add(other.translate, (0, 3, 5))
        np.testing.assert_allclose(as_saved(shown).affine, own.matrix, atol=1e-6)


def test_carried_labels_have_colours_of_their_own(
    matched: Workbench, scan: Any, other: Any, viewer: Any
) -> None:
    labels, carried = carry(matched, viewer, scan, other)
    shown = named(viewer, "carried labels")
    np.testing.assert_array_equal(carried.get_color(1), labels.get_color(1))
    np.testing.assert_array_equal(shown.get_color(1), labels.get_color(1))
    before = np.array(labels.get_color(1))
    assert len({id(layer.colormap) for layer in (labels, carried, shown)}) == 3
    carried.colormap.color_dict[1] = np.array([0.5, 0.25, 0.0, 1.0], np.float32)
    np.testing.assert_array_equal(labels.colormap.color_dict[1], before)
    np.testing.assert_array_equal(shown.colormap.color_dict[1], before)
