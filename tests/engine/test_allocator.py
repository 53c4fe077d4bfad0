"""The setting is accepted by the C library here, and made before torch can have allocated."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_freed_buffer_stays_in_the_process_until_released() -> None:
    code = """
from pathlib import Path
from napari_s2dc.engine import allocator
import numpy
assert allocator.keep_large_buffers()
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
numpy.ones(25_000_000)  # 200 MB, freed at once
print((pages() - before) * 4096 > 150_000_000)
assert allocator.release_free_buffers()
print((pages() - before) * 4096 < 50_000_000)
"""
    assert _python(code).split() == ["True", "True"]


@pytest.mark.parametrize("command", ["embed", "consistency", "probe", "info"])
def test_commands_set_it_before_torch_is_loaded(command: str, tmp_path: Path) -> None:
    code = """
import sys
from napari_s2dc.engine import allocator, cli
cli.keep_large_buffers = lambda: print("torch" in sys.modules)
assert cli.main(sys.argv[1:]) == 2
"""
    more = {"probe": ["--point", "1,2,3"]}.get(command, [])
    more += ["--out", str(tmp_path / "out")] if command != "info" else []
    assert _python(code, command, str(tmp_path / "absent.nii"), *more) == "False"
