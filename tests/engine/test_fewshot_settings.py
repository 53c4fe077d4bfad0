"""Settings of few-shot segmentation as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from napari_s2dc.engine.fewshot_settings import (
    FewshotSettings,
    note_on_background,
    note_on_spacings,
    settings_from,
    write_settings,
)
from napari_s2dc.errors import ConfigurationError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    settings = FewshotSettings(mode="finetune", spacing_mm=(3.0, 1.5, 1.5), background=4)
    path = tmp_path / "settings.yaml"
    write_settings(settings, path)
    assert settings_from(yaml.safe_load(path.read_text()), "The file") == settings


def test_what_is_left_out_has_its_default() -> None:
    settings = settings_from({"seed": 7, "quick": {"hidden": 8}}, "The file")
    assert (settings.seed, settings.quick.hidden) == (7, 8)
    for seed in (-1, 10**23):
        with pytest.raises(ConfigurationError, match="The file: seed must be at least 0 and below"):
            settings_from({"seed": seed}, "The file")
    assert settings.finetune == FewshotSettings().finetune


@pytest.mark.parametrize(
    "content",
    [{"mode": "fast"}, {"sead": 3}, {"quick": {"hidden": "x"}}, {"quick": {"foo": 3}}, [3]],
)
def test_what_cannot_be_used_is_one_sentence(content: Any) -> None:
    with pytest.raises(ConfigurationError, match="The file"):
        settings_from(content, "The file")


@pytest.mark.parametrize("overlap", [-1.5, 1.0, 1.5, float("nan")])
def test_windows_that_leave_gaps_are_refused(overlap: float) -> None:
    with pytest.raises(ConfigurationError, match="at least 0 and below 1") as error:
        settings_from({"segment": {"overlap": overlap}}, "The file")
    assert error.value.sentence.startswith(f"segment.overlap is {overlap:g},")
    assert settings_from({"segment": {"overlap": 0.0}}, "The file").segment.overlap == 0.0


def test_where_nothing_is_background_a_sentence_says_what_follows() -> None:
    strokes = FewshotSettings()
    assert "may become background" in note_on_background(strokes)
    assert "one of the classes" in note_on_background(replace(strokes, mode="finetune"))
    assert note_on_background(replace(strokes, zero="background")) == ""
    assert note_on_background(replace(strokes, background=0)) == ""


def test_voxels_of_another_size_are_said_unless_all_are_brought_to_one() -> None:
    settings = FewshotSettings()
    scans = [("a", (1.0, 1.0, 1.0)), ("b", (1.4, 1.0, 1.0)), ("c", (2.0, 1.0, 1.0))]
    assert "c has voxels of 2 × 1 × 1 mm and a of 1 × 1 × 1 mm" in note_on_spacings(scans, settings)
    assert note_on_spacings(scans[:2], settings) == note_on_spacings([], settings) == ""
    assert note_on_spacings(scans, replace(settings, spacing_mm=(1.0, 1.0, 1.0))) == ""
