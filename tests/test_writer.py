from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_s2dc._reader import read_path
from napari_s2dc._writer import volume_of, write_layer
from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.segments import segments_in
from tests.volumes.files import AFFINES, content, write_nifti


def as_saved(keywords: dict[str, Any]) -> dict[str, Any]:
    """Fill in a layer's state as napari gives it to a writer."""
    return {"rotate": np.eye(3), "shear": np.zeros(3), "affine": np.eye(4), **keywords}


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_labels_drawn_on_a_scan_come_back_on_its_grid(
    tmp_path: Path, orientation: str, ending: str
) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", content("int16"), AFFINES[orientation])
    [(data, keywords, _)] = read_path(str(path))
    labels = np.zeros(data.shape, np.uint16)
    labels[1:3, 2:4, 1:3] = 300
    [written] = write_layer(str(tmp_path / f"out{ending}"), labels, as_saved(keywords))
    again = read_volume(written, labels=True)
    scan = read_volume(path)
    np.testing.assert_array_equal(again.array, labels)
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-4)
    assert again.original is not None
    assert scan.original is not None
    assert again.original.shape == scan.original.shape
    np.testing.assert_allclose(again.original.affine, scan.original.affine, atol=1e-4)


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_names_and_colours_of_classes_go_along_where_the_format_has_them(
    tmp_path: Path, ending: str
) -> None:
    from napari.layers import Labels

    array = np.zeros((3, 4, 5), np.uint16)
    array[0, 0, :2] = 2, 300
    layer = Labels(
        array,
        features={"index": [0, 2, 7], "name": ["background", "liver", "not painted"]},
        colormap={2: "red", 7: "lime", 300: "blue", None: "gray"},
        metadata={"s2dc": {"path": None}},
    )
    data, state, _ = layer.as_layer_data_tuple()
    [written] = write_layer(str(tmp_path / f"out{ending}"), data, state)
    found = {
        2: ("liver", (1.0, 0.0, 0.0)),
        7: ("not painted", (0.0, 1.0, 0.0)),
        300: ("class 300", (0.0, 0.0, 1.0)),
    }
    assert segments_in(read_volume(written, labels=True)) == (found if ending == ".nrrd" else {})
    if ending == ".nrrd":  # another time, with fewer classes
        named = Path(written).rename(tmp_path / "out_seg.nrrd")
        [(data, keywords, kind)] = read_path(str(named))
        assert kind == "labels"
        assert keywords["features"]["name"] == ["background", "liver", "not painted", "class 300"]
        # As it was read, its header says what it said, whatever colours napari gave.
        data, state, _ = Labels(data, **keywords).as_layer_data_tuple()
        [written] = write_layer(str(tmp_path / "same.nrrd"), data, state)
        assert segments_in(read_volume(written, labels=True)) == found
        layer = Labels(data, **{**keywords, "features": {"index": [2], "name": ["spleen"]}})
        data, state, _ = layer.as_layer_data_tuple()
        [written] = write_layer(str(tmp_path / "again.nrrd"), data, state)
        names = {label: name for label, (name, _) in segments_in(read_volume(written)).items()}
        assert names == {2: "spleen", 300: "class 300"}


def test_a_layer_without_a_file_gets_its_own_geometry(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    state = as_saved({"scale": (3, 1, 2), "translate": (5, 6, 7), "rotate": turn, "name": "new"})
    volume = volume_of(data, state)
    wanted = np.array([5, 6, 7]) + turn @ (np.array([3, 1, 2]) * [1, 2, 3])
    np.testing.assert_allclose(volume.to_mm(np.array([1, 2, 3])), wanted)
    [written] = write_layer(str(tmp_path / "new.nii"), data, state)
    place = read_volume(written).to_vox(wanted)
    assert read_volume(written).array[tuple(np.rint(place).astype(int))] == data[1, 2, 3]


def test_micrometres_are_written_as_mm() -> None:
    state = as_saved({"scale": (300, 100, 200), "units": ("micrometer",) * 3})
    assert volume_of(np.zeros((2, 3, 4)), state).spacing_mm == pytest.approx((0.3, 0.1, 0.2))


def test_a_layer_that_was_moved_is_not_put_back(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", content("int16"), np.eye(4))
    [(data, keywords, _)] = read_path(str(path))
    moved = as_saved({**keywords, "translate": tuple(np.add(keywords["translate"], 10))})
    assert volume_of(data, moved).original is None
    assert volume_of(data, moved).origin_mm == pytest.approx(moved["translate"])


def test_the_finest_level_is_written() -> None:
    levels = [np.ones((4, 6, 8)), np.ones((2, 3, 4))]
    assert volume_of(levels, as_saved({"multiscale": True})).shape == (4, 6, 8)


@pytest.mark.parametrize(
    ("data", "state", "sentence"),
    [
        (np.zeros((4, 5, 3)), {"rgb": True}, "colour"),
        (np.zeros((4, 5)), {}, "2 dimensions"),
        (np.zeros((2, 4, 5, 6)), {}, "4 dimensions"),
    ],
)
def test_what_is_no_scan_is_refused(data: Any, state: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VolumeError, match=sentence):
        write_layer("out.nii", data, as_saved(state))


def test_sample_without_nilearn_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from napari_s2dc._sample import mni152
    from napari_s2dc.errors import S2DCError

    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(S2DCError, match="pip install nilearn"):
        mni152()
