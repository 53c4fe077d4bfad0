"""Scans and label maps find each other by name; a choice of scans is nested and repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_s2dc.engine.cli_labels import (
    LabelledFile,
    class_names_beside,
    in_order_of,
    label_maps_in,
    labelled_files,
    unlabelled_files,
)
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.volumes.writing import write_volume
from tests.volumes.files import write_dicom


def write(path: Path, result: str = "") -> Path:
    array = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    return write_volume(path, array, Volume(array, np.eye(4)), result=result)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTr/sub/a.nii.gz", "labelsTr/sub/a.nrrd"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTr/a.nii.gz", "labelsTr/a.labels.nii.gz"),
        ("scans/a.nrrd", "scans/a.seg.nrrd"),
        ("scans/a.nii.gz", "scans/a.labels.nii.gz"),
    ],
)
def test_label_maps_are_found_by_name(image: str, labels: str, tmp_path: Path) -> None:
    scan, truth = write(tmp_path / image), write(tmp_path / labels)
    other = write(tmp_path / Path(image).parts[0] / "unlabelled.nii.gz")
    folders = [str(tmp_path / Path(one).parts[0]) for one in (image, labels)]
    (found,), missing = labelled_files(*folders)
    assert (found.scan, found.labels, missing) == (scan, truth, [other])


def test_two_files_are_a_pair(tmp_path: Path) -> None:
    scan, truth = write(tmp_path / "a.nii"), write(tmp_path / "strokes.nii")
    (found,), missing = labelled_files(str(scan), str(truth))
    assert not missing
    assert (found.scan, found.labels, found.name) == (scan, truth, Path("a"))


def test_what_has_no_pair_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.nii")
    truth = write(tmp_path / "labels" / "b.nii")
    images = str(tmp_path / "images")
    with pytest.raises(S2DCError, match="has the name of a scan"):
        labelled_files(images, str(tmp_path / "labels"))
    write(tmp_path / "images" / "b.nii")
    with pytest.raises(S2DCError, match="holds 2 scans"):
        labelled_files(images, str(truth))
    for pair in ((str(tmp_path / "none"), str(truth)), (images, str(tmp_path / "none"))):
        with pytest.raises(S2DCError, match="none does not exist"):
            labelled_files(*pair)


def test_a_label_map_is_told_from_another_file_of_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a.nii")
    marked = write(tmp_path / "a.labels.nii", result="label map")
    write(tmp_path / "a.heat.nii", result="similarity map")
    assert label_maps_in(tmp_path) == {Path("a"): marked}
    write(tmp_path / "a.seg.nii")
    write(tmp_path / "a.seg.nrrd", result="label map")
    with pytest.raises(S2DCError, match="the same name"):
        label_maps_in(tmp_path)


def test_choices_are_nested_and_depend_on_seed_and_names_only() -> None:
    files = [LabelledFile(Path(f"{n}.nii"), Path(f"{n}.nii"), Path(f"{n}")) for n in range(20)]
    order = in_order_of(files, 1)
    assert order == in_order_of(files[::-1], 1)
    assert set(order) == set(files)
    assert order not in (files, in_order_of(files, 2))
    # A scan fewer leaves the order of the others.
    assert in_order_of(files[1:], 1) == [one for one in order if one != files[0]]


@pytest.mark.parametrize(
    "named", [{"0": "background", "1": "anterior"}, {"background": 0, "anterior": 1}]
)
def test_names_come_from_dataset_json(named: dict[str, object], tmp_path: Path) -> None:
    labels = write(tmp_path / "labelsTr" / "a.nii")
    assert class_names_beside(labels) == {}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": named}))
    assert class_names_beside(labels) == class_names_beside(labels.parent) == {1: "anterior"}
    for content in ('{"labels": "see the list"}', '{"labels": {"all": [1, 2]}}', "[1]", "{"):
        (tmp_path / "dataset.json").write_text(content)
        assert class_names_beside(labels) == {}


def test_unlabelled_scans_are_neither_label_maps_nor_other_channels(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    names = ("a_0000", "a_0001", "b_0000", "b_0001", "map", "p_0000", "p_0001", "q_0001", "q_0002")
    files = {name: write(scans / f"{name}.nii.gz") for name in names}
    maps = [write(tmp_path / "maps" / f"{name}.nii.gz") for name in ("a", "p_0000", "q_0001")]
    known = [files[name] for name in ("a_0000", "map", "p_0000", "q_0001")]
    found = unlabelled_files([str(scans)], [*known, *maps])
    left = [path.name.partition(".")[0] for path in found]
    assert left == ["b_0000", "b_0001", "p_0001", "q_0002"]  # people have numbers too


def test_a_dicom_series_is_known_by_one_of_its_files(tmp_path: Path) -> None:
    for series in ("one", "two"):
        (tmp_path / series).mkdir()
        write_dicom(tmp_path / series, np.zeros((3, 4, 4), np.int16), np.eye(4))
    known = [next((tmp_path / "one").iterdir())]
    assert unlabelled_files([str(tmp_path)], known) == [tmp_path / "two"]
    beside = write(tmp_path / "two" / "map.nrrd")
    assert tmp_path / "two" in unlabelled_files([str(tmp_path)], [beside])
