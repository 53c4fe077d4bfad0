"""The site builds without a warning, and what its pages take from the code is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=source,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = _build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("reference/commands", "s2dc consistency [--views VIEWS]"),
        ("reference/preferences", "Window size in voxels"),
        ("reference/training", "data.crop_size"),
        ("reference/training", "# A laptop without a GPU"),
        ("reference/api", "embed_volume"),
        ("tutorial/see-what-your-encoder-knows", "../../pictures/probed_dark.png"),
        ("tutorial/segment-from-five-strokes", "../../pictures/corrected_dark.png"),
    ],
)
def test_pages_hold_what_they_take_from_elsewhere(site: Path, page: str, words: str) -> None:
    text = (site / page / "index.html").read_text()
    assert words in text
    assert "generated:" not in text
    assert ":func:" not in text


def test_no_tools_of_ours_are_published(site: Path) -> None:
    assert not list(site.rglob("*.py"))
    assert (site / "pictures" / "probed_dark.png").is_file()


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("mkdocs.yml", "napari.yaml", "napari_s2dc", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("[nowhere](tutorial/see-what-your-encoder-knows.md#no-such-heading)")
    done = _build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-heading" in done.stderr
