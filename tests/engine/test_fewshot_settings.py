"""Settings of few-shot segmentation as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_s2dc.engine.fewshot_settings import FewshotSettings, read_settings, write_settings
from napari_s2dc.errors import ConfigurationError


def test_what_was_written_is_read(tmp_path: Path) -> None:
    settings = FewshotSettings(mode="finetune", spacing_mm=(3.0, 1.5, 1.5), background=4)
    write_settings(settings, tmp_path / "settings.yaml")
    assert read_settings(tmp_path / "settings.yaml") == settings


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 7\nquick: {hidden: 8}\n")
    settings = read_settings(path)
    assert (settings.seed, settings.quick.hidden) == (7, 8)
    assert settings.finetune == FewshotSettings().finetune


@pytest.mark.parametrize(
    "text", ["mode: fast", "sead: 3", "quick: {hidden: x}", "quick: {foo: 3}", "- 3", "a: ["]
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"settings\.yaml"):
        read_settings(path)
