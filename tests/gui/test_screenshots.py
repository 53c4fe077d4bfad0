from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.gui.pictures import read, share_that_differs

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_screenshots.py"


@pytest.mark.slow
def test_the_pictures_of_the_docs_can_be_made(tmp_path: Path, checkpoint: Path) -> None:
    theme, width, height = "light", 1920, 1080  # the pictures of matching: dark, 1280 x 800
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--small", "--themes", theme),
            *("--size", str(width), str(height)),
            *("--out", tmp_path, "--encoder", checkpoint),
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    steps = ["opened", "embedded", "clusters", "probed", "structure", "consistency"]
    pictures = read(tmp_path, [f"{step}_{theme}" for step in steps])
    for before, after in pairwise(pictures):
        assert before.shape == after.shape == (height, width, 4)
        assert share_that_differs(before, after) > 0.05
