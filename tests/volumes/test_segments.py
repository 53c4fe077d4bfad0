"""Names and colours of classes survive a NRRD file; other formats have none."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np
import pytest

from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.segments import segment_fields, segment_fields_of, segments_in
from napari_s2dc.volumes.volume import Volume
from napari_s2dc.volumes.writing import write_volume

CLASSES = [(1, "left  lung\n", (1.0, 0.5, 0.0)), (300, "Bauchspeicheldrüse β", (0.0, 0.0, 1.0))]


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_names_and_colours_come_back_from_nrrd_only(ending: str, tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.uint16)
    volume = Volume(array, np.eye(4))
    path = write_volume(tmp_path / f"x{ending}", array, volume, segments=segment_fields(CLASSES))
    labels = read_volume(path, labels=True)
    found = {1: ("left lung", (1.0, 0.5, 0.0)), 300: ("Bauchspeicheldruse ?", (0.0, 0.0, 1.0))}
    assert segments_in(labels) == (found if ending == ".nrrd" else {})
    again = write_volume(tmp_path / f"y{ending}", array, volume, segments=segment_fields_of(labels))
    assert segments_in(read_volume(again, labels=True)) == segments_in(labels)


def test_incomplete_fields_are_left_out(tmp_path: Path) -> None:
    fields = {
        "Segment0_LabelValue": "1",  # without a name
        "Segment1_LabelValue": "one",
        "Segment1_Name": "word for a number",
        "Segment2_LabelValue": "2",
        "Segment2_Name": "colour of four",
        "Segment2_Color": "1 0 0 1",
        "Segment3_LabelValue": "3",
        "Segment3_Name": "colour beyond",
        "Segment3_Color": "255 0 0",
    }
    nrrd.write(str(tmp_path / "x.nrrd"), np.zeros((3, 4, 5), np.uint8), header=fields)
    header = nrrd.read_header(str(tmp_path / "x.nrrd"))
    header |= {"space": "left-posterior-superior", "space directions": np.eye(3)}
    nrrd.write(str(tmp_path / "x.nrrd"), np.zeros((3, 4, 5), np.uint8), header=header)
    found = segments_in(read_volume(tmp_path / "x.nrrd", labels=True))
    assert found == {2: ("colour of four", None), 3: ("colour beyond", None)}
