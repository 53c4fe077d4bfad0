"""Files where the system is another one: what Windows does with them, acted out here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from napari_s2dc import files
from napari_s2dc.errors import S2DCError
from napari_s2dc.files import reading_tensors, replace_atomically, why_not_writable, write_tensors

MAPS = Path("/proc/self/maps")


def denied(*args: Any, **kwargs: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")


def test_a_folder_that_refuses_new_files_is_known_before(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)  # as it is on Windows, whoever asks
    assert why_not_writable(tmp_path / "new" / "a.nii") == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "touch", denied)
    assert why_not_writable(tmp_path / "new" / "a.nii") == f"{tmp_path} may not be written to"


def test_a_folder_that_refuses_new_files_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's tempfile takes this for a name that is taken, on Windows, and tries others."""
    tries = []

    def refused(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        denied()

    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "open", refused)
        with (
            pytest.raises(S2DCError, match="Permission denied"),
            replace_atomically(tmp_path / "a.csv"),
        ):
            raise AssertionError("nothing can be written")
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("system", "hint"),
    [("win32", "Close other programs that have it open"), ("linux", "Free some space")],
)
def test_a_file_that_may_not_be_replaced_stays_whole(
    system: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"before")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(files, "_WAITS_SECONDS", ())
    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(S2DCError, match=hint), replace_atomically(path) as temporary:
        temporary.write_bytes(b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_a_scanner_looks_at_is_waited_for(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waits = tmp_path / "last.ckpt", []
    path.write_bytes(b"before")
    replace = os.replace
    monkeypatch.setattr(files.time, "sleep", waits.append)
    monkeypatch.setattr(os, "replace", lambda *paths: (replace if waits[1:] else denied)(*paths))
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b"after")
    assert path.read_bytes() == b"after"
    assert len(waits) == 2
    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(S2DCError, match="that have it open"), replace_atomically(path):
        pass
    assert 5 < len(waits) < 10
    assert path.read_bytes() == b"after"


def read(path: Path) -> torch.Tensor:
    with reading_tensors(path, "key", 1, "number", "nobody", S2DCError) as (_, tensors):
        return tensors["number"]


@pytest.mark.skipif(not MAPS.is_file(), reason="asks Linux what is mapped into memory")
def test_a_file_that_was_read_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "number.safetensors"
    write_tensors(path, {"number": torch.arange(10_000)}, {"key": '{"format": 1}'})
    mapped = read(path)
    assert str(path) in MAPS.read_text(encoding="utf-8")
    del mapped
    monkeypatch.setattr(files.sys, "platform", "win32")
    kept = read(path)
    assert str(path) not in MAPS.read_text(encoding="utf-8")
    assert torch.equal(kept, torch.arange(10_000))


def test_a_folder_is_no_file_where_permission_is_denied_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(S2DCError, match="it is a folder"):
        read(tmp_path)
