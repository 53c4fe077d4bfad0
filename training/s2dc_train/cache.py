"""Preprocessed scans on disk, cut through memory maps.

A scan is preprocessed once: read, checked, resampled, masked, normalised. The results lie as plain
``.npy`` files, so that a sub-volume is cut without reading or decoding the rest and the memory in
use is the operating system's page cache. (MONAI's ``PersistentDataset`` unpickles the whole scan
for every sub-volume.) Intensities are kept as 16-bit steps of [0, 1]: half of float32, and finer
than float16.

An entry is a folder written under another name and renamed when complete, so a reader, a second
process that builds the same scan, or a kill never meets half an entry.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from napari_s2dc.errors import ConfigurationError
from napari_s2dc.files import take_place
from s2dc_train.cached_scan import CachedScan
from s2dc_train.config import DataConfig
from s2dc_train.data_settings import spacing_of
from s2dc_train.preflight import PreflightReport, in_threads
from s2dc_train.prepare import READ_ERRORS, prepare_scan, reason
from s2dc_train.sources import ScanEntry

VERSION = 2
_STALE_SECONDS = 24 * 3600
_CHECKED_BLOCKS = 16
_BLOCK_BYTES = 4096
# Voxels preprocessed at the same time: about 1 GB as float32, a few times that while at work.
_VOXELS_AT_ONCE = 2**28


class ScanCache:
    """Folder of preprocessed scans, keyed by file identity and preprocessing settings.

    Parameters
    ----------
    folder : pathlib.Path
        Where entries lie; made when missing. It may be deleted whenever no run uses it.
    config : DataConfig
        ``preset`` and ``spacing_mm`` are used.

    Raises
    ------
    ConfigurationError
        When the folder cannot be made.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.folder = folder
        self.preset = config.preset
        self.spacing_mm = spacing_of(config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise _write_error(folder, error) from error

    def get(self, entry: ScanEntry) -> CachedScan:
        """Return the cached scan, preprocessing it when the cache has no sound entry.

        Raises
        ------
        VolumeError
            The scan cannot be used; the sentence says why.
        ConfigurationError
            The cache cannot be written, for instance because the disk is full.
        """
        return self.load(entry) or self.build(entry)

    def load(self, entry: ScanEntry) -> CachedScan | None:
        """Return the entry when it is there and sound, else None."""
        try:
            return self._read(entry, self._place(entry))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def build(self, entry: ScanEntry) -> CachedScan:
        """Preprocess a scan and put it into the cache; raises as :meth:`get` does."""
        place = self._place(entry)
        arrays, facts = prepare_scan(entry, self.preset, self.spacing_mm)
        draft = self.folder / f".part-{place.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            draft.mkdir()
            facts["files"] = {
                name: _write_array(draft / f"{name}.npy", array) for name, array in arrays.items()
            }
            _write_synced(draft / "entry.json", [json.dumps(facts, indent=1).encode()])
            self._publish(entry, draft, place)
            return self._read(entry, place)
        except OSError as error:
            raise _write_error(self.folder, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _publish(self, entry: ScanEntry, draft: Path, place: Path) -> None:
        if place.exists():
            if self.load(entry) is not None:  # another process was quicker
                return
            broken = draft.with_name(draft.name + "-broken")
            os.rename(place, broken)
            shutil.rmtree(broken, ignore_errors=True)
        try:
            take_place(draft, place)
        except OSError:
            if self.load(entry) is None:
                raise

    def _place(self, entry: ScanEntry) -> Path:
        identity = [
            VERSION,
            self.preset,
            self.spacing_mm,
            _identity(entry.image),
            _identity(entry.label) if entry.label else None,
        ]
        return self.folder / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def _read(self, entry: ScanEntry, place: Path) -> CachedScan:
        facts = json.loads((place / "entry.json").read_text(encoding="utf-8"))
        for name, expected in facts["files"].items():
            if _checksum(place / f"{name}.npy") != expected:
                raise ValueError(f"{name}.npy is damaged")
        low, high = facts["foreground_box"]
        return CachedScan(
            entry=entry,
            folder=place,
            shape=tuple(facts["shape"]),
            spacing_mm=tuple(facts["spacing_mm"]),
            preset=facts["preset"],
            intensity=tuple(facts["intensity"]),
            foreground_box=(tuple(low), tuple(high)),
            has_labels="labels" in facts["files"],
            label_problem=facts["label_problem"],
        )

    def _sweep(self) -> None:
        """Remove what killed runs left half-written."""
        for part in self.folder.glob(".part-*"):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def _identity(path: Path) -> list[Any]:
    """Name, size and time of every file that makes up a scan."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.suffix.lower() in ("", ".dcm", ".ima"):
        # A DICOM series; a label folder that is missing has no files.
        files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    elif path.suffix.lower() in (".mhd", ".nhdr"):  # the voxels lie in a file of the same stem
        files = list(folder.glob(f"{glob.escape(path.stem)}.*"))
    else:
        files = [path]
    # A file that is missing is reported, with its reason, when it is read.
    facts = sorted(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()
    )
    return [str(path.resolve()), *facts]


def _write_array(path: Path, array: np.ndarray) -> list[Any]:
    array = np.ascontiguousarray(array)
    # Not numpy.save: its short write on a full disk raises without an error number.
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return _checksum(path)


def _write_synced(path: Path, parts: Sequence[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def _checksum(path: Path) -> list[Any]:
    """Size, and checksum of blocks spread over the file: cheap even for a large archive."""
    size = path.stat().st_size
    total = 0
    with open(path, "rb") as file:
        for offset in np.linspace(0, max(0, size - _BLOCK_BYTES), _CHECKED_BLOCKS).astype(np.int64):
            file.seek(int(offset))
            total = zlib.crc32(file.read(_BLOCK_BYTES), total)
    return [size, total]


def _write_error(folder: Path, error: OSError) -> ConfigurationError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigurationError(
            f"The disk that holds the cache folder {folder} is full.",
            "Free some space or name another folder with --data.cache_dir.",
        )
    return ConfigurationError(
        f"The cache folder {folder} cannot be written: {error.strerror or error}.",
        "Name another folder with --data.cache_dir.",
    )


def build_cache(
    report: PreflightReport, folder: Path, config: DataConfig
) -> tuple[list[CachedScan], list[tuple[Path, str]]]:
    """Preprocess the scans that the cache does not hold yet, with a progress bar.

    Parameters
    ----------
    report : PreflightReport
        Scans to use.
    folder : pathlib.Path
        Cache folder.
    config : DataConfig
        Preprocessing settings.

    Returns
    -------
    cached : list of CachedScan
        In the order of ``report.entries``.
    failed : list of tuple
        (path, reason) of scans whose voxels cannot be used.

    Raises
    ------
    ConfigurationError
        The cache cannot be written or the disk has too little space.
    """
    cache = ScanCache(folder, config)

    def load(entry: ScanEntry) -> CachedScan | None:
        return cache.load(entry)

    found: list[CachedScan | str | None] = list(in_threads(load, report.entries))
    missing = [index for index, scan in enumerate(found) if scan is None]
    if missing:
        voxels = [int(np.prod(report.scans[index].shape)) for index in missing]
        _check_space(report, missing, folder)
        _build_missing(cache, report, missing, found, max(voxels))
    cached = [scan for scan in found if isinstance(scan, CachedScan)]
    failed = [
        (entry.image, why)
        for entry, why in zip(report.entries, found, strict=True)
        if isinstance(why, str)
    ]
    return cached, failed


def _build_missing(
    cache: ScanCache,
    report: PreflightReport,
    missing: list[int],
    found: list[CachedScan | str | None],
    largest_voxels: int,
) -> None:
    def build(index: int) -> CachedScan | str:
        try:
            return cache.build(report.entries[index])
        except READ_ERRORS as error:
            return reason(error, report.entries[index].image)

    threads = max(1, min(4, os.cpu_count() or 1, _VOXELS_AT_ONCE // max(1, largest_voxels)))
    pool = ThreadPoolExecutor(threads)
    try:
        results = zip(missing, pool.map(build, missing), strict=True)
        for index, scan in tqdm(
            results,
            total=len(missing),
            desc="Preprocessing scans",
            unit="scan",
            disable=bool(getattr(rank_zero_only, "rank", 0)),
        ):
            found[index] = scan
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_space(report: PreflightReport, missing: list[int], folder: Path) -> None:
    share = sum(int(np.prod(report.scans[index].shape)) for index in missing)
    all_voxels = sum(int(np.prod(scan.shape)) for scan in report.scans)
    needed = report.cache_bytes * share // max(1, all_voxels)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"Preprocessing {len(missing)} scans takes about {needed / 1e9:.3g} GB, but the disk "
            f"of the cache folder {folder} has {free / 1e9:.3g} GB left.",
            "Free some space or name another folder with --data.cache_dir.",
        )
