from __future__ import annotations

import errno
import gzip
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from s2dc_train.cache import ScanCache, build_cache
from s2dc_train.cached_scan import CachedScan
from s2dc_train.config import DataConfig
from s2dc_train.preflight import preflight
from s2dc_train.sources import ScanEntry, find_scans

from napari_s2dc.errors import ConfigurationError, VolumeError


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def scan(tmp_path, save_scan) -> ScanEntry:
    return ScanEntry(save_scan(tmp_path / "scan.nii.gz"))


@pytest.fixture
def cache(tmp_path) -> ScanCache:
    return ScanCache(tmp_path / "cache", DataConfig(preset="mr"))


def test_entry_holds_the_normalised_scan_its_foreground_and_labels(
    tmp_path, cache, save_scan, ball
):
    array = ball((20, 24, 28))
    labels = (array > 600).astype(np.uint8)
    entry = ScanEntry(
        save_scan(tmp_path / "a.nii.gz", array), save_scan(tmp_path / "b.nii.gz", labels)
    )
    cached = cache.get(entry)
    assert cached.shape == (20, 24, 28)
    assert cached.spacing_mm == pytest.approx((2, 1, 1))
    assert (cached.preset, cached.has_labels, cached.label_problem) == ("mr", True, "")
    assert cached.intensity == pytest.approx((0, array.max()), rel=1e-6)
    cut = cached.open().cut((0, 0, 0), (20, 24, 28))
    low, high = np.percentile(array[array > 0], [0.5, 99.5])
    expected = np.clip((array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(cut["image"], expected, atol=2e-3)
    assert cut["image"].dtype == np.float32
    # Specks at the rim may be removed from the mask, nothing may be added.
    assert (cut["foreground"] <= (array > 0)).all()
    assert cut["foreground"].sum() > 0.8 * (array > 0).sum()
    np.testing.assert_array_equal(cut["labels"], labels)
    assert cut["valid"].all()


def test_padding_is_zero_and_marked(cache, scan):
    arrays = cache.get(scan).open()
    inside = arrays.cut((0, 0, 0), (20, 24, 28))
    cut = arrays.cut((-3, 10, -2), (30, 20, 32))
    expected = np.zeros((30, 20, 32), bool)
    expected[3:23, :14, 2:30] = True
    np.testing.assert_array_equal(cut["valid"], expected)
    for name in ("image", "foreground"):
        assert not cut[name][~expected].any()
        np.testing.assert_array_equal(cut[name][3:23, :14, 2:30], inside[name][:, 10:])


def test_foreground_share_counts_padding_as_background(cache, scan):
    arrays = cache.get(scan).open()
    for start, size in (((0, 0, 0), (16, 16, 16)), ((-4, -4, -4), (28, 32, 36))):
        true_share = arrays.cut(start, size)["foreground"].mean()
        assert arrays.foreground_share(start, size) == pytest.approx(true_share, abs=0.02)


def test_second_run_reads_no_scan(cache, scan, monkeypatch):
    cache.get(scan)
    monkeypatch.setattr("s2dc_train.prepare.read_volume", None)
    assert cache.get(scan).open().image.shape == (20, 24, 28)


def test_another_file_or_setting_is_another_entry(tmp_path, cache, scan, save_scan):
    first = cache.get(scan)
    other = ScanCache(cache.folder, DataConfig(preset="mr", spacing_mm=[2.0, 2.0, 2.0]))
    assert other.load(scan) is None
    assert other.get(scan).shape == (20, 12, 14)
    assert ScanCache(cache.folder, DataConfig(preset="pet")).load(scan) is None
    save_scan(scan.image, seed=7)
    os.utime(scan.image, (1, 1))
    assert cache.load(scan) is None
    assert cache.get(scan).folder != first.folder


def test_labels_follow_the_scan_to_another_spacing(tmp_path, save_scan, ball):
    array = ball()
    labels = (array > 0).astype(np.uint8) * 37
    entry = ScanEntry(
        save_scan(tmp_path / "a.nii.gz", array), save_scan(tmp_path / "b.nii.gz", labels)
    )
    cache = ScanCache(tmp_path / "cache", DataConfig(spacing_mm=[1.0, 1.0, 2.0]))
    cached = cache.get(entry)
    assert cached.shape == (40, 24, 14)
    stored = cached.open().labels
    assert stored is not None
    assert stored.shape == (40, 24, 14)
    assert set(np.unique(stored)) == {0, 37}


def test_label_map_of_nearly_the_same_spacing_gets_the_size_of_its_scan(tmp_path, save_scan, ball):
    array = ball((45, 24, 28))
    labels = (array > 0).astype(np.uint8)
    entry = ScanEntry(
        save_scan(tmp_path / "a.nii.gz", array, spacing_mm=(1.0, 1.0, 1.0)),
        save_scan(tmp_path / "b.nii.gz", labels, spacing_mm=(1.004, 1.0, 1.0)),
    )
    # 22.5 slices are rounded to 22, 22.6 would be rounded to 23.
    cached = ScanCache(tmp_path / "cache", DataConfig(spacing_mm=[2.0, 1.0, 1.0])).get(entry)
    stored = cached.open().labels
    assert stored is not None
    assert stored.shape == cached.shape == (22, 24, 28)


@pytest.mark.parametrize("damage", ["truncate", "zeros", "facts", "missing"])
def test_damaged_entry_is_computed_anew(cache, scan, damage):
    first = cache.get(scan)
    image = first.folder / "image.npy"
    whole = image.read_bytes()
    if damage == "truncate":
        image.write_bytes(whole[:-10])
    elif damage == "zeros":
        image.write_bytes(whole[:128] + bytes(len(whole) - 128))
    elif damage == "facts":
        (first.folder / "entry.json").write_text('{"version": 1, "shape"')
    else:
        image.unlink()
    assert cache.load(scan) is None
    assert cache.get(scan).open().image.shape == first.shape
    assert image.read_bytes() == whole
    assert files_in(cache.folder) == {
        first.folder.name,
        *(f"{first.folder.name}/{name}" for name in ("image.npy", "foreground.npy", "entry.json")),
    }


def test_entry_that_vanishes_while_in_use_is_one_sentence(cache, scan):
    cached = cache.get(scan)
    shutil.rmtree(cached.folder)
    with pytest.raises(VolumeError, match=r"scan\.nii\.gz can no longer be read"):
        cached.open()


def test_no_file_stays_open(cache, scan):
    cached = cache.get(scan)
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        cached.open().cut((0, 0, 0), (4, 4, 4))
    if open_files:
        assert len(os.listdir("/proc/self/fd")) <= open_files


# --- scans that cannot be used ---------------------------------------------------------------


def nan(array):
    array[3, 3, 3] = np.nan
    return array


def infinite(array):
    array[3, 3, 3] = np.inf
    return array


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nan, "NaN or infinite"),
        (infinite, "NaN or infinite"),
        (lambda array: array * 0 + 5, "same value, 5"),
    ],
)
def test_unusable_values_are_skipped_with_their_reason(
    tmp_path, save_scan, ball, small_config, change, why
):
    folder = tmp_path / "data"
    save_scan(folder / "good.nii.gz")
    bad = save_scan(folder / "bad.nii.gz", change(ball()))
    config = small_config(folder)
    report = preflight(find_scans(config), config)
    cached, failed = build_cache(report, tmp_path / "cache", config)
    assert [scan.entry.image.name for scan in cached] == ["good.nii.gz"]
    [(path, reason)] = failed
    assert path == bad
    assert why in reason
    full = report.with_cached(cached, failed)
    assert (len(full.scans), full.skipped) == (1, failed)


def test_truncated_voxels_are_skipped_with_their_reason(tmp_path, save_scan, small_config):
    folder = tmp_path / "data"
    save_scan(folder / "good.nii.gz")
    bad = save_scan(folder / "bad.nii.gz")
    bad.write_bytes(bad.read_bytes()[:-2000])
    config = small_config(folder)
    report = preflight(find_scans(config), config)
    assert len(report.entries) == 2  # the header itself is sound
    cached, failed = build_cache(report, tmp_path / "cache", config)
    assert [scan.entry.image.name for scan in cached] == ["good.nii.gz"]
    assert [path for path, _ in failed] == [bad]
    assert "\n" not in failed[0][1]


def test_window_that_leaves_one_value_is_refused(tmp_path, save_scan, ball):
    entry = ScanEntry(save_scan(tmp_path / "a.nii.gz", 5000 + ball()))
    with pytest.raises(VolumeError, match="one value everywhere under the preset ct_bone"):
        ScanCache(tmp_path / "cache", DataConfig(preset="ct_bone")).get(entry)


def test_bad_label_map_costs_the_label_only(tmp_path, cache, save_scan, ball):
    image = save_scan(tmp_path / "scan.nii.gz")
    fits = np.ones((20, 24, 28), np.uint8)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(gzip.compress(b"no scan"))
    for label, why in (
        (tmp_path / "nowhere.nii.gz", "does not exist"),
        (broken, ""),
        (save_scan(tmp_path / "small.nii.gz", fits[1:]), "its size (19, 24, 28) differs"),
        (save_scan(tmp_path / "off.nii.gz", fits, spacing_mm=(2, 1.2, 1)), "mm off the scan's"),
        (save_scan(tmp_path / "soft.nii.gz", ball() + 0.5), "whole numbers"),
    ):
        cached = cache.get(ScanEntry(image, label))
        assert not cached.has_labels
        assert cached.label_problem
        assert why in cached.label_problem
        assert cached.open().labels is None


# --- disks -----------------------------------------------------------------------------------


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, cache, scan, monkeypatch):
    written: list[int] = []

    def fill_up(descriptor):
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("s2dc_train.cache.os.fsync", fill_up)
    with pytest.raises(ConfigurationError, match=r"disk that holds .*cache is full") as caught:
        cache.get(scan)
    assert "--data.cache_dir" in caught.value.hint
    assert files_in(cache.folder) == set()


def test_full_disk_stops_the_whole_preparation(tmp_path, scan_folder, small_config, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = small_config(scan_folder)
    report = preflight(find_scans(config), config)
    monkeypatch.setattr("s2dc_train.cache.os.fsync", fail)
    with pytest.raises(ConfigurationError, match="is full"):
        build_cache(report, tmp_path / "cache", config)
    assert files_in(tmp_path / "cache") == set()


def test_too_little_space_is_said_before_any_work(tmp_path, scan_folder, small_config, monkeypatch):
    config = small_config(scan_folder)
    report = preflight(find_scans(config), config)
    monkeypatch.setattr(
        "s2dc_train.cache.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000)
    )
    monkeypatch.setattr("s2dc_train.cache.ScanCache.build", None)
    with pytest.raises(ConfigurationError, match=r"Preprocessing 5 scans takes about .* GB left"):
        build_cache(report, tmp_path / "cache", config)


def test_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cache folder .*file.cache cannot be written"):
        ScanCache(tmp_path / "file" / "cache", DataConfig())


def test_remains_of_killed_runs_are_swept(tmp_path, cache):
    old, new = cache.folder / ".part-old", cache.folder / ".part-new"
    for part in (old, new):
        part.mkdir()
        (part / "image.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 200_000,) * 2)
    ScanCache(cache.folder, DataConfig())
    assert (old.exists(), new.exists()) == (False, True)


def build_in_process(folder: Path, entry: ScanEntry, barrier, results) -> None:
    cache = ScanCache(folder, DataConfig(preset="mr"))
    barrier.wait()
    for _ in range(5):
        cached = cache.build(entry)
        results.put(float(cached.open().cut((0, 0, 0), cached.shape)["image"].sum()))


def test_two_processes_build_the_same_scan_at_once(cache, scan):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (cache.folder, scan, barrier, results)
    processes = [context.Process(target=build_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in range(10)}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(sums) == 1
    assert isinstance(cache.load(scan), CachedScan)
    assert not [name for name in files_in(cache.folder) if name.startswith(".part")]
