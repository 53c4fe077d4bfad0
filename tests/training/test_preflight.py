from __future__ import annotations

import gzip
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from s2dc_train.config import DataConfig
from s2dc_train.preflight import preflight
from s2dc_train.sources import ScanEntry, find_scans

from napari_s2dc.errors import ConfigurationError, S2DCError


def test_ranges_fit_and_padding(tmp_path, save_scan, ball, small_config):
    save_scan(tmp_path / "data" / "a.nii.gz", ball((34, 35, 65)), spacing_mm=(2, 1, 1))
    save_scan(tmp_path / "data" / "b.nii.gz", ball((16, 16, 31)), spacing_mm=(3, 1, 0.5))
    config = small_config(tmp_path / "data")
    report = preflight(find_scans(config), config)
    # 16 x 16 x 32 voxels: 2 * 2 * 2 in the first, none in the second.
    assert [scan.subvolumes for scan in report.scans] == [8, 0]
    assert report.padded == 1
    assert report.presets == {"mr": 2}
    text = str(report)
    assert "2 usable, 0 skipped" in text
    assert "z 2 to 3, y 1, x 0.5 to 1" in text
    assert "z 16 to 34, y 16 to 35, x 31 to 65" in text
    assert "16 x 16 x 32 voxels: 8 fit side by side, 1 scan is padded" in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["usable"] == 2
    assert plain["scans"][0]["shape"] == [34, 35, 65]
    low, high = plain["scans"][0]["intensity"]
    assert low == 0
    assert 900 < high <= 1000


def test_sizes_are_those_after_resampling(tmp_path, save_scan, ball, small_config):
    save_scan(tmp_path / "data" / "a.nii.gz", ball((20, 24, 28)), spacing_mm=(2, 1, 1))
    config = small_config(tmp_path / "data", spacing_mm=[1.0, 1.0, 2.0])
    assert preflight(find_scans(config), config).scans[0].shape == (40, 24, 14)


def test_ct_is_told_from_its_values(tmp_path, save_scan, ball, small_config):
    save_scan(tmp_path / "data" / "a.nii.gz", ball() / 5 - 1000 * (ball() == 0))
    config = small_config(tmp_path / "data")
    assert preflight(find_scans(config), config).presets == {"ct": 1}


def bad_file(folder, kind):
    path = folder / f"{kind}.nii.gz"
    if kind == "missing":
        return path
    if kind == "text":
        path.write_text("this is not a scan")
    elif kind == "truncated_header":
        whole = gzip.compress(bytes(500))
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "wrong_extension":
        path = folder / "scan.xyz"
        path.write_bytes(b"1234")
    else:
        shape = {"2d": (20, 20), "4d": (8, 8, 8, 3)}.get(kind, (8, 8, 8))
        values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        if kind == "rgb":
            colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
            values = np.zeros(shape, colour)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    if kind == "zero_spacing":  # nibabel would not write it
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[80:92] = bytes(12)  # pixdim[1:4]
        raw[252:256] = bytes(4)  # qform_code, sform_code
        path.write_bytes(gzip.compress(raw))
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "does not exist"),
        ("text", "."),
        ("truncated_header", "."),
        ("empty", "."),
        ("wrong_extension", "not a format"),
        ("2d", "2D"),
        ("4d", "4 dimensions"),
        ("rgb", "colour"),
        ("zero_spacing", "spacing"),
    ],
)
def test_bad_scan_is_skipped_with_its_reason(tmp_path, save_scan, kind, why):
    good = save_scan(tmp_path / "good.nii.gz")
    bad = bad_file(tmp_path, kind)
    report = preflight([ScanEntry(bad), ScanEntry(good)], DataConfig())
    assert [entry.image for entry in report.entries] == [good]
    [(path, reason)] = report.skipped
    assert path == bad
    assert why in reason
    assert "\n" not in reason
    assert bad.name not in reason  # it stands after the path
    assert "Traceback" not in reason
    assert str(bad) in str(report)
    assert report.to_dict()["skipped"] == [{"path": str(bad), "reason": reason}]

    with pytest.raises(S2DCError, match=bad.name) as caught:
        preflight([ScanEntry(bad)], DataConfig())
    assert "only scan" in caught.value.sentence


WHILE_ITK_LOADS = """
import os, threading, time
from pathlib import Path
from s2dc_train import preflight
from s2dc_train.config import DataConfig
from s2dc_train.sources import find_scans
from napari_s2dc.volumes.metaimage import load_mha

away, change, read = threading.Event(), os.chdir, preflight.read_header

def chdir(folder):
    change(folder)
    if not away.is_set():
        away.set()
        time.sleep(1)

def read_header(path):
    if path.suffix == ".gz":
        assert away.wait(60)
    return read(path)

os.chdir, preflight.read_header = chdir, read_header
preflight._with_voxels = lambda facts, config: facts
config = DataConfig(path="scans")
report = preflight.preflight(find_scans(config), config)
print(len(report.scans), report.skipped)
os.chdir = None  # what reading voxels needs was loaded with the rest
load_mha(Path("scans/0.mha"))
"""


def test_relative_paths_are_found_while_itk_loads(tmp_path, save_scan):
    for number in range(1, 4):
        save_scan(tmp_path / "scans" / f"{number}.nii.gz")
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 8 8 8\n"
        "ElementSpacing = 1 1 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "scans" / "0.mha").write_bytes(header.encode() + bytes(range(256)) * 2)
    finished = subprocess.run(
        [sys.executable, "-c", WHILE_ITK_LOADS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "4 []\n"


def test_scan_with_nan_does_not_spoil_the_ranges(tmp_path, save_scan, ball, small_config):
    broken = ball()
    broken[3, 4, 5] = np.nan
    for number, array in enumerate((broken, ball(seed=1), ball(seed=2))):
        save_scan(tmp_path / "scans" / f"{number}.nii.gz", array)
    config = small_config(tmp_path / "scans")
    shown = str(preflight(find_scans(config), config))
    assert "nan" not in shown
    assert "mr (2) (of 2 scans looked at)" in shown


def test_scan_without_permission_is_skipped(tmp_path, save_scan, monkeypatch):
    good, locked = save_scan(tmp_path / "good.nii.gz"), save_scan(tmp_path / "locked.nii.gz")
    from napari_s2dc.volumes.io import read_header

    def guarded(path):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return read_header(path)

    monkeypatch.setattr("s2dc_train.preflight.read_header", guarded)
    report = preflight([ScanEntry(good), ScanEntry(locked)], DataConfig())
    assert report.skipped == [(locked, "Permission denied")]


def test_nothing_usable_counts_the_scans(tmp_path):
    entries = [ScanEntry(tmp_path / f"{number}.nii.gz") for number in range(3)]
    with pytest.raises(S2DCError, match=r"None of the 3 scans.*0\.nii\.gz: .*does not exist"):
        preflight(entries, DataConfig())


def test_long_list_of_skipped_scans_is_cut_in_the_table_only(tmp_path, save_scan):
    entries = [ScanEntry(save_scan(tmp_path / "good.nii.gz"))]
    entries += [ScanEntry(tmp_path / f"{number}.nii.gz") for number in range(30)]
    report = preflight(entries, DataConfig())
    assert "... and 10 more" in str(report)
    assert len(report.to_dict()["skipped"]) == 30


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"preset": "xray"}, "data.preset"),
        ({"spacing_mm": [1.0]}, "data.spacing_mm"),
        ({"spacing_mm": [1.0, 0.0, 1.0]}, "data.spacing_mm"),
        ({"grid": [2, 2]}, "data.grid"),
        ({"crop_size": 0}, "data.crop_size"),
        ({"foreground_fraction": 1.5}, "data.foreground_fraction"),
        ({"validation_volumes": 0}, "data.validation_volumes"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"workers": -1}, "data.workers"),
    ],
)
def test_settings_out_of_range_name_the_field(tmp_path, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        preflight([ScanEntry(tmp_path / "a.nii.gz")], DataConfig(**settings))
