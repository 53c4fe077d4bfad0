from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.gui.pictures import read, share_that_differs

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_match_screenshots.py"


@pytest.mark.slow
def test_the_pictures_of_matching_can_be_made(tmp_path: Path) -> None:
    # By the bundled encoder, with the settings that users get.
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--small", "--themes", "dark"),
            *("--out", tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    steps = ["matched", "row", "carried", "self_check"]
    pictures = read(tmp_path, [f"{step}_dark" for step in steps])
    for one, other in combinations(pictures, 2):
        assert one.shape == other.shape == (800, 1280, 4)
        assert share_that_differs(one, other) > 0.05
