from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.gui.pictures import read, share_that_differs

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_segment_screenshots.py"
LIGHT = Path(__file__).with_name("light_script.py")


@pytest.mark.slow
def test_the_pictures_of_segmenting_can_be_made(tmp_path: Path, checkpoint: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, LIGHT, SCRIPT, "--small", "--themes", "dark"),
            *("--out", tmp_path, "--encoder", checkpoint),
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    # The figures of the tutorial: by class and in the mean, four times.
    assert done.stdout.count("left kidney\t") == done.stdout.count("mean\t") == 4
    steps = ["strokes", "segmented", "corrected", "uncertain", "compared"]
    pictures = read(tmp_path, [f"{step}_dark" for step in steps])
    for one, other in combinations(pictures, 2):
        assert one.shape == other.shape == (800, 1280, 4)
        assert share_that_differs(one, other) > 0.01
