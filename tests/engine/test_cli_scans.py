"""Names of results where capitals make no difference, as on Windows and macOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_s2dc.engine.cli_scans import refuse_to_replace, scans_in
from napari_s2dc.errors import ConfigurationError


def test_names_that_differ_in_capitals_only_are_told_apart() -> None:
    found = scans_in(["a/Liver.nii", "b/liver.nii.gz", "c/spleen.nii"])
    assert [str(scan.name) for scan in found] == ["Liver", "liver-2", "spleen"]


def test_a_file_that_is_read_is_known_by_another_name(tmp_path: Path) -> None:
    scan, same, other = (tmp_path / name for name in ("scan.nii", "SCAN.nii", "other.nii"))
    scan.touch()
    same.hardlink_to(scan)  # one file by two names, as it is there
    with pytest.raises(ConfigurationError, match=r"SCAN\.nii is read here"):
        refuse_to_replace([same], [scan])
    refuse_to_replace([other], [scan])
    other.touch()
    refuse_to_replace([other], [scan])
