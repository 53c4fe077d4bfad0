"""The guided tour, end to end with next to no training, and the parts it is made of."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_s2dc.engine import quick_smooth, quick_spread
from napari_s2dc.engine.demo import run_demo
from napari_s2dc.engine.demo_fewshot import label_one_slice, painted_over
from napari_s2dc.engine.demo_scans import HELD_OUT, claim_folder, write_scans
from napari_s2dc.engine.demo_training import train
from napari_s2dc.engine.encoders import bundled_encoder, latest_local_run
from napari_s2dc.engine.measures import label_tokens, match_views, structure_accuracy, two_views
from napari_s2dc.engine.pictures import colours_of, section
from napari_s2dc.engine.report import Figures, Link, Measurement, Section, as_text, write_page
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom


def test_the_slice_with_most_organs_is_labelled() -> None:
    organs = np.zeros((5, 20, 20), np.uint8)
    organs[1, :10], organs[1, 10:12] = 3, 4
    organs[3, :10], organs[3, 10:12, :10] = 3, 5  # too few of 5
    labels = label_one_slice(organs)
    assert set(np.unique(labels)) == {0, 3, 4, 255}
    assert not labels[[0, 2, 3, 4]].any()
    assert (labels[1][organs[1] == 0] == 255).all()


def test_labels_are_coloured_and_the_rest_stays_grey() -> None:
    image = np.full((2, 3, 4), 0.5, np.float32)
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0], labels[1, 0] = 7, 3
    picture = painted_over(image, labels, {7: (1.0, 0.0, 0.0), 9: (0.0, 1.0, 0.0)})
    np.testing.assert_allclose(picture[0, 0, 0], (0.8, 0.2, 0.2), atol=1e-6)
    np.testing.assert_allclose(picture[1], 0.5)  # also where a label has no colour
    np.testing.assert_allclose(painted_over(image, 0 * labels, {7: (1.0, 0.0, 0.0)}), 0.5)


# --- the whole tour --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Folder, figures and console text of a tour without nilearn, through the real trainer.

    Labels of one slice spread in fewer iterations: with the default, they took half of the time.
    """
    out = tmp_path_factory.mktemp("tour") / "demo"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nilearn.datasets", None)
        for module in (quick_spread, quick_smooth):
            patch.setattr(module, "_ITERATIONS", 20)
        patch.setattr("builtins.print", lambda *parts, **options: printed.append(" ".join(parts)))
        figures = run_demo(out, minutes=20.0, shape=(48, 72, 72), steps=3)
    return out, figures, "\n".join(printed)


@pytest.mark.slow
def test_tour_trains_and_measures(tour: tuple[Path, dict[str, Any], str]) -> None:
    out, figures, _ = tour
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["steps"] == 3
    assert figures["scans_used"] == 3
    assert figures["scans_skipped"] == 0
    for name in ("views_accuracy", "organ_accuracy", "one_slice_dice"):
        for whose in ("untrained", "bundled"):
            assert 0 <= figures[f"{name}_{whose}"] <= 1
    # Even untrained features tell places apart better than chance, the bundled encoder's much.
    assert figures["views_accuracy_untrained"] > 2 * figures["match_accuracy_guessing"]
    assert figures["views_accuracy_bundled"] > 1.5 * figures["views_accuracy_untrained"]
    assert figures["organ_accuracy_bundled"] > figures["organ_accuracy_untrained"]
    # Intensities and place alone find a part of the organs.
    assert figures["one_slice_dice_bundled"] > 0.2


@pytest.mark.slow
def test_training_goes_on_from_the_bundled_encoder(
    tour: tuple[Path, dict[str, Any], str],
) -> None:
    bundled = SwinEncoder.from_checkpoint(bundled_encoder())
    trained = SwinEncoder.from_checkpoint(tour[0] / "run" / "encoder.safetensors")
    distance = [
        (one - two).abs().max()
        for one, two in zip(trained.parameters(), bundled.parameters(), strict=True)
    ]
    # Three steps move a weight by no more than about three learning rates; other seeds by 0.1.
    assert 0 < max(distance) < 0.02


@pytest.mark.slow
def test_tour_leaves_its_encoder_to_the_other_tools(
    tour: tuple[Path, dict[str, Any], str],
) -> None:
    assert latest_local_run() == tour[0] / "run" / "encoder.safetensors"


@pytest.mark.slow
def test_tour_writes_a_page_whose_links_and_pictures_exist(
    tour: tuple[Path, dict[str, Any], str],
) -> None:
    from matplotlib.image import imread

    out = tour[0]
    page = (out / "index.html").read_text(encoding="utf-8")
    targets = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert "run/encoder.safetensors" in targets
    assert "run/metrics.csv" in targets
    assert not [target for target in targets if not (out / target).is_file()]
    pictures = sorted(target for target in targets if target.endswith(".png"))
    assert len(pictures) == 6  # three scans, the matches, the organs, the curves
    for picture in pictures:
        pixels = imread(out / picture)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05, f"{picture} is empty"
    assert f"pictures/{HELD_OUT}.png" in targets


@pytest.mark.slow
def test_tour_tells_its_steps_and_figures(tour: tuple[Path, dict[str, Any], str]) -> None:
    _, figures, text = tour
    for number in range(1, 7):
        assert f"{number}/6 " in text
    assert "napari-s2dc[demo]" in text  # how to get the brain scan
    assert f"{100 * figures['match_accuracy_after']:.1f} %" in text
    assert "index.html" in text


# --- its folder ------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(S2DCError, match="that no earlier demo made"):
        run_demo(tmp_path, minutes=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_tour_keeps_what_it_did_not_make(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    claim_folder(out)
    (out / "index.html").write_text("old")
    (out / "run" / "cache").mkdir(parents=True)
    (out / "run" / "notes.txt").write_text("mine")
    claim_folder(out)
    assert not (out / "index.html").exists()
    assert not (out / "run" / "cache").exists()
    assert (out / "run" / "notes.txt").read_text() == "mine"


def test_a_foreign_scan_among_the_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.nii.gz").write_bytes(b"")
    with pytest.raises(S2DCError, match=r"mine\.nii\.gz is not a scan of the demo"):
        write_scans(tmp_path, (16, 16, 16))
    assert (tmp_path / "mine.nii.gz").is_file()


def test_a_failed_training_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(S2DCError, match="Training ended with exit code 2"):
        train(
            tmp_path / "missing",
            tmp_path / "run",
            steps=1,
            minutes=1.0,
            start_from=bundled_encoder(),
        )


# --- measures --------------------------------------------------------------------------------


class _Places:
    """Stands for a perfect encoder: the features of a token are the mean of its own voxels."""

    def __call__(self, crops: torch.Tensor) -> list[torch.Tensor]:
        pooled = torch.nn.functional.avg_pool3d(crops, 8)
        # A fixed random wave makes values that differ little into directions that differ much.
        return [torch.cat([torch.cos(pooled * f + f) for f in range(1, 65)], dim=1)] * 3


def _ramp() -> np.ndarray:
    _, y, x = np.meshgrid(*(np.linspace(0.1, 0.9, n) for n in (32, 96, 96)), indexing="ij")
    return (x + 0.01 * y).astype(np.float32)


def test_features_that_know_the_place_match_every_token() -> None:
    """Without noise, and with a shift by whole tokens, the true partner is the most similar."""
    body = np.ones((32, 96, 96), bool)
    random = np.random.default_rng(0).random((4, 12, 12), dtype=np.float32)
    image = random.repeat(8, 0).repeat(8, 1).repeat(8, 2)
    shifted = Affine3D.in_plane((8.0, -16.0), 0.0, 1.0)
    pair = two_views(image, body, shifted, grid=(1, 3, 3), crop_size=32, stage=2)
    matches = match_views(pair, _Places())  # type: ignore[arg-type]
    assert int(matches.asked.sum()) == 4 * 11 * 10
    assert matches.accuracy > 0.97


def test_features_that_know_nothing_do_not_match() -> None:
    pair = two_views(
        _ramp(),
        np.ones((32, 96, 96), bool),
        Affine3D.in_plane((8.0, -16.0), 0.0, 1.0),
        grid=(1, 3, 3),
        crop_size=32,
        stage=2,
    )

    def constant(crops: torch.Tensor) -> list[torch.Tensor]:
        return [torch.ones(len(crops), 4, 4, 4, 4)] * 3

    assert match_views(pair, constant).accuracy < 0.05  # type: ignore[arg-type]


def test_air_is_not_asked_for() -> None:
    body = np.zeros((32, 96, 96), bool)
    body[:, :48] = True
    pair = two_views(_ramp(), body, Affine3D.identity(), grid=(1, 3, 3), crop_size=32, stage=2)
    asked = pair.true_pairs.any(-1).reshape(4, 12, 12)
    assert asked[:, :6].all()
    assert not asked[:, 6:].any()


def test_organs_are_named_by_like_features() -> None:
    _, labels = phantom((32, 48, 48), seed=1)
    cells = label_tokens(labels.array, 8)
    names = torch.nn.functional.one_hot(cells.long(), 32).float().permute(3, 0, 1, 2)
    assert structure_accuracy([(names, cells)], [(names, cells)], neighbours=1) == 1.0
    blind = torch.ones(4, *cells.shape)
    assert structure_accuracy([(blind, cells)], [(blind, cells)]) < 0.8


def test_a_cell_has_the_label_of_most_of_its_voxels() -> None:
    labels = np.zeros((8, 8, 12), np.uint8)
    labels[:5, :, :8] = 3
    labels[..., 8:] = 7
    assert label_tokens(labels, 8).tolist() == [[[3, 0]]]  # the second is padded to half air


# --- pictures and page -----------------------------------------------------------------------


def test_slices_are_shown_as_radiologists_do() -> None:
    """Superior or anterior on top; patient right, or anterior, on the left."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in (3, 4, 5)), indexing="ij")
    place = 100 * z + 10 * y + x  # grows to superior, posterior and patient left
    assert section(place, "axial", 1)[0, 0] == 100
    assert section(place, "axial", 1).shape == (4, 5)
    assert section(place, "coronal", 1)[0].tolist() == [210, 211, 212, 213, 214]
    assert section(place, "coronal", 1)[-1, 0] == 10
    assert section(place, "sagittal", 2)[0].tolist() == [202, 212, 222, 232]


def test_like_features_have_like_colours_across_scans() -> None:
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(6, 16, generator=random)
    scans = []
    for shift in (0, 3):
        index = (torch.arange(64).reshape(4, 4, 4) + shift) % 6
        scans.append((index, kinds[index].permute(3, 0, 1, 2)))
    masks = [torch.ones(4, 4, 4, dtype=torch.bool)] * 2
    colours = colours_of([tokens for _, tokens in scans], masks, [(4, 4, 4)] * 2, 1)
    for kind in range(6):
        one, two = (
            colour[(index == kind).numpy()]
            for colour, (index, _) in zip(colours, scans, strict=True)
        )
        np.testing.assert_allclose(one, np.broadcast_to(one[0], one.shape), atol=1e-4)
        np.testing.assert_allclose(two, np.broadcast_to(one[0], two.shape), atol=1e-4)
    assert colours[0].std() > 0.1


def test_page_is_escaped_and_text_is_aligned(tmp_path: Path) -> None:
    rows = Figures(
        "one",
        "other",
        [Measurement("a <b>", "1", "22", "x & y"), Measurement("longer name", "", "3", "")],
    )
    section_ = Section("T", ["p < q"], figures=rows, links=[Link("f.txt", "file")])
    write_page(tmp_path / "index.html", "t", ["intro"], rows, [section_], "end")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in page
    assert "x &amp; y" in page
    assert "p &lt; q" in page
    assert 'href="f.txt"' in page
    lines = as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["a", "<b>", "1", "22"]
