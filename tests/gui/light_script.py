"""Run a script with a Quick that trains in few steps: ``light_script.py SCRIPT [OPTION ...]``."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

from napari_s2dc.engine import quick_smooth, quick_spread
from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.widgets.segment_choices import SegmentChoices

_settings = SegmentChoices.settings


def _light(choices: SegmentChoices) -> FewshotSettings:
    settings = _settings(choices)
    return replace(settings, quick=replace(settings.quick, steps=30))


if __name__ == "__main__":
    SegmentChoices.settings = _light  # type: ignore[method-assign]
    for module in (quick_spread, quick_smooth):
        module._ITERATIONS = 10
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as if Python ran it
    runpy.run_path(sys.argv[0], run_name="__main__")
