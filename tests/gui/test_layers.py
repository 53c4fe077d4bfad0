from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.layers import Overlays, geometry_of, token_geometry
from tests.gui.conftest import add_phantom

PLACES: dict[str, dict[str, Any]] = {
    "isotropic": {"scale": (2, 2, 2)},
    "anisotropic": {"scale": (5, 0.7, 0.9), "translate": (-30, 12, 40)},
    "turned": {"scale": (3, 1, 2), "translate": (4, 5, 6), "rotate": 25},
    "sheared": {"scale": (3, 1, 2), "shear": (0.1, 0.0, 0.2)},
    "affine": {
        "scale": (3, 1, 2),
        "affine": np.array([[1, 0.1, 0, 5], [0, 0.9, 0, 6], [0.2, 0, 1, 7], [0, 0, 0, 1.0]]),
    },
}


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("stride", "offset"), [(8, (0, 0, 0)), (4, (8, 0, 16))])
def test_a_hot_token_lies_where_its_voxels_are(
    viewer: Any, place: dict[str, Any], stride: int, offset: tuple[int, ...]
) -> None:
    source = viewer.add_image(np.zeros((32, 40, 48), np.float32), name="scan", **place)
    heat = np.zeros((3, 4, 4), np.float32)
    heat[1, 2, 3] = 1
    overlay = Overlays(viewer).show_heat(source, heat, token_geometry(source, stride, offset))
    hottest = np.unravel_index(int(overlay.data.argmax()), overlay.data.shape)
    voxel = (np.array([1, 2, 3]) + 0.5) * stride - 0.5 + offset
    np.testing.assert_allclose(
        overlay.data_to_world(hottest), source.data_to_world(voxel), atol=1e-6
    )
    # and the corner of the grid is the corner of the voxels
    np.testing.assert_allclose(
        overlay.data_to_world((-0.5,) * 3),
        source.data_to_world(np.asarray(offset) - 0.5),
        atol=1e-6,
    )


def test_a_coarse_level_lies_over_the_fine_one(viewer: Any) -> None:
    levels = [np.zeros((32, 32, 32), np.float32), np.zeros((16, 16, 16), np.float32)]
    source = viewer.add_image(levels, multiscale=True, scale=(3, 1, 2), contrast_limits=(0, 1))
    heat = np.zeros((4, 4, 4), np.float32)
    geometry = token_geometry(source, 4, (0, 0, 0), (2, 2, 2))
    overlay = Overlays(viewer).show_heat(source, heat, geometry)
    np.testing.assert_allclose(
        overlay.data_to_world((-0.5,) * 3), source.data_to_world((-0.5,) * 3), atol=1e-6
    )
    np.testing.assert_allclose(
        overlay.data_to_world((3.5,) * 3), source.data_to_world((31.5,) * 3), atol=1e-6
    )


def test_everything_of_the_geometry_is_copied_and_the_source_is_left_alone(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    before = {name: np.array(value) for name, value in geometry_of(source).items()}
    data = source.data.copy()
    overlay = Overlays(viewer).show_labels(
        source, "structure", "structure", np.ones(data.shape, np.uint8), geometry_of(source)
    )
    for name, value in geometry_of(overlay).items():
        np.testing.assert_array_equal(np.array(value), before[name])
        np.testing.assert_array_equal(np.array(geometry_of(source)[name]), before[name])
    np.testing.assert_array_equal(source.data, data)
    assert [str(unit) for unit in viewer.layers.extent.units] == ["millimeter"] * 3


def test_a_result_is_overwritten_and_not_added_again(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    overlays = Overlays(viewer)
    first = overlays.show_heat(source, np.zeros((4, 6, 6), np.float32), token_geometry(source, 8))
    count = len(viewer.layers)
    second = overlays.show_heat(source, np.ones((4, 6, 6), np.float32), token_geometry(source, 8))
    assert first == second
    assert len(viewer.layers) == count
    assert float(second.data.min()) == 1
    # moved by the user since
    source.translate = (10, 20, 30)
    overlays.show_heat(source, np.ones((4, 6, 6), np.float32), token_geometry(source, 8))
    np.testing.assert_allclose(
        second.data_to_world((-0.5,) * 3), source.data_to_world((-0.5,) * 3), atol=1e-6
    )
    # removed by the user: comes again
    viewer.layers.remove(second)
    assert overlays.find(source, "similarity") is None
    overlays.show_heat(source, np.ones((4, 6, 6), np.float32), token_geometry(source, 8))
    assert len(viewer.layers) == count


def test_a_new_layer_leaves_the_selected_one_selected(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    viewer.layers.selection.active = source
    Overlays(viewer).show_heat(source, np.zeros((4, 6, 6), np.float32), token_geometry(source, 8))
    assert viewer.layers.selection.active == source


def test_written_labels_can_be_undone(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    overlays = Overlays(viewer)
    labels = overlays.new_labels(source, "structures")
    assert labels.metadata["s2dc"] == source.metadata["s2dc"]
    voxels = (np.array([1, 2]), np.array([3, 4]), np.array([5, 6]))
    overlays.write_labels(labels, voxels, 7)
    assert (labels.data[voxels] == 7).all()
    labels.undo()
    assert not labels.data.any()


def test_jumping_puts_the_place_into_the_slice(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    Overlays(viewer).jump_to(source.data_to_world((20, 11, 31)))
    np.testing.assert_allclose(
        viewer.dims.point[0], source.data_to_world((20, 11, 31))[0], atol=0.5 * source.scale[0]
    )
    np.testing.assert_allclose(
        viewer.scene.camera.center[-2:], source.data_to_world((20, 11, 31))[1:]
    )


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"scale": (4, 1.5, 1)},
        {"translate": (7, -8, 9)},
        {"rotate": 30},
        {"shear": (0.2, 0.0, 0.1)},
        {"affine": PLACES["affine"]["affine"]},
        {"units": ("mm", "mm", "mm")},
        {"axis_labels": ("up", "back", "left")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_results_follow_a_source_that_is_moved(viewer: Any, change: dict[str, Any]) -> None:
    source = viewer.add_image(np.zeros((32, 40, 48), np.float32), name="scan", scale=(3, 1, 2))
    overlays = Overlays(viewer)
    offset = np.array([8, 0, 16])
    heat = overlays.show_heat(source, np.zeros((3, 4, 4)), token_geometry(source, 8, offset))
    marks = overlays.show_points(source, np.array([[9.0, 8, 7]]), 8)
    for name, value in change.items():
        setattr(source, name, value)
    for token in [(0, 0, 0), (2, 1, 3)]:
        voxel = (np.array(token) + 0.5) * 8 - 0.5 + offset
        np.testing.assert_allclose(
            heat.data_to_world(token), source.data_to_world(voxel), atol=1e-6
        )
    np.testing.assert_allclose(
        marks.data_to_world(marks.data[0]), source.data_to_world((9, 8, 7)), atol=1e-6
    )
    for result in (heat, marks):
        assert result.units == source.units
        assert result.axis_labels == source.axis_labels


def test_a_result_of_another_region_follows_its_source_from_there(viewer: Any) -> None:
    source = viewer.add_image(np.zeros((32, 40, 48), np.float32), name="scan", scale=(3, 1, 2))
    overlays = Overlays(viewer)
    values = np.zeros((3, 4, 4), np.float32)
    heat = overlays.show_heat(source, values, token_geometry(source, 8, (0, 0, 0)))
    assert overlays.show_heat(source, values, token_geometry(source, 8, (8, 0, 16))) is heat
    source.translate = (5, 6, 7)
    np.testing.assert_allclose(
        heat.data_to_world((0, 0, 0)), source.data_to_world((11.5, 3.5, 19.5)), atol=1e-6
    )


def test_a_copy_of_a_result_and_labels_on_it_are_the_users_own(viewer: Any) -> None:
    from napari.layers import Layer

    source = add_phantom(viewer, 1)
    overlays = Overlays(viewer)
    heat = overlays.show_heat(
        source, np.zeros((3, 4, 4), np.float32), token_geometry(source, 8, (0, 0, 0))
    )
    copy = viewer.add_layer(Layer.create(*heat.as_layer_data_tuple()))
    offered = []
    viewer.layers.events.inserted.connect(
        lambda event: offered.append([overlays.is_overlay(one) for one in (event.value, copy)])
    )
    drawn = overlays.new_labels(copy, "strokes")
    overlays.keep_labels(copy, "kept", drawn.data, geometry_of(copy), drawn, complete=False)
    overlays.show_labels(copy, "clusters", "clusters", drawn.data, geometry_of(copy))
    assert offered == [[False, False], [False, False], [True, False]]


def test_only_heat_maps_asked_to_have_a_colour_bar(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    overlays = Overlays(viewer)
    place = token_geometry(source, 8)
    values = np.zeros((4, 6, 6), np.float32)
    assert overlays.show_heat(source, values, place).colorbar.visible
    other = add_phantom(viewer, 2)
    assert not overlays.show_heat(other, values, place, colour_bar=False).colorbar.visible


def test_marks_say_what_belongs_and_what_does_not(viewer: Any) -> None:
    source = add_phantom(viewer, 1)
    overlays = Overlays(viewer)
    marks = overlays.show_marks(source, np.array([[1.0, 2, 3], [4, 5, 6]]), np.zeros((0, 3)), 4)
    again = overlays.show_marks(source, np.array([[1.0, 2, 3]]), np.array([[4.0, 5, 6]]), 4)
    np.testing.assert_array_equal(again.data, [[1, 2, 3], [4, 5, 6]])
    assert [str(symbol) for symbol in again.symbol] == ["cross", "x"]
    assert not np.array_equal(*again.face_color)
    assert overlays.show_marks(source, np.array([[1.0, 2, 3]]), [], 4) is not marks


def test_axes_that_napari_only_counts_are_named(viewer: Any) -> None:
    from napari_s2dc.widgets.placement import axis_names

    assert axis_names(viewer.add_image(np.zeros((4, 5, 6)))) == ("z", "y", "x")
    named = viewer.add_image(np.zeros((4, 5, 6)), axis_labels=("up", "back", "left"))
    assert axis_names(named) == ("up", "back", "left")


def test_places_of_small_voxels_have_decimals(viewer: Any) -> None:
    from napari_s2dc.widgets.placement import words_of

    place = (-0.06, -1.26, 7.4)
    for side, words in ((2.0, "z 0, y -1, x 7 mm"), (0.15, "z -0.1, y -1.3, x 7.4 mm")):
        scan = viewer.add_image(np.zeros((4, 5, 6)), scale=(side,) * 3, units=("mm",) * 3)
        assert words_of(scan, place) == words
    metres = viewer.add_image(np.zeros((4, 5, 6)), scale=(-0.002, 1, 1), units=("m", "mm", "mm"))
    assert words_of(metres, place) == "z -0.060, y -1, x 7"
