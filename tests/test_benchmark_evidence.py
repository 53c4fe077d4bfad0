"""Parts of the evidence benchmark that can be checked without training anything."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from s2dc_train import cli, views
from s2dc_train.config import RunConfig, ViewConfig
from s2dc_train.views import draw

from benchmarks import evidence_tasks, released_geometry
from benchmarks.ablations import COMMON, PAIRS_AS_RELEASED, VARIANTS, run_of
from benchmarks.descriptors import mind, raw_patches
from benchmarks.evidence import ablation_rows
from benchmarks.evidence_tables import Figures
from benchmarks.evidence_tasks import (
    Candidate,
    alternate_slabs,
    linear_probe,
    matching_accuracy,
    structure_figures,
)
from benchmarks.fewshot_splits import SEEDS
from benchmarks.masked_modelling import BLOCK_VOX, HIDDEN_SHARE, hide
from benchmarks.matching_truth import RAW_MATCHING
from benchmarks.released_geometry import released_partners
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.phantom import phantom

GOLDEN_PAIRS = np.load(Path(__file__).parent / "data" / "correspondences_12x12.npz")


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(0)
    return SwinEncoder.from_size("tiny", window_size=4).eval()


def test_slabs_part_a_scan_into_known_and_asked() -> None:
    labels = torch.arange(12).reshape(12, 1, 1).expand(12, 2, 3)
    features = labels[None].float()
    known, asked = alternate_slabs((features, labels))
    assert known[1].unique().tolist() == [0, 1, 6, 7]
    assert asked[1].unique().tolist() == [3, 4, 9, 10]
    assert torch.equal(known[0][0], known[1].float())


def test_a_linear_probe_reads_what_the_features_say_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 6, 6, 6), generator=generator)
    telling = torch.nn.functional.one_hot(labels, 4).permute(0, 4, 1, 2, 3).float()
    silent = torch.rand(telling.shape, generator=generator)
    for features, least, most in ((telling, 0.99, 1.0), (silent, 0.0, 0.6)):
        found = linear_probe([(features[0], labels[0])], [(features[1], labels[1])])
        assert least <= found <= most


def test_one_scan_is_named_from_its_own_slabs(encoder: SwinEncoder) -> None:
    image, labels = phantom((48, 64, 64), seed=3)
    nearest, linear = structure_figures(Candidate(encoder), [(image, labels)], 0, 0)
    assert 0.1 < nearest <= 1
    assert 0.1 < linear <= 1


def test_features_and_descriptors_are_asked_the_same(encoder: SwinEncoder) -> None:
    image, _ = phantom((48, 64, 64), seed=3)
    for candidate in (Candidate(encoder), Candidate(encoder, mind)):
        assert candidate.embed(image).grid == (6, 8, 8)
        assert 0 < matching_accuracy(candidate, [image], range(2)) < 1
    assert Candidate(encoder, mind).embed(image).features.shape[0] == 96


def test_figures_are_measured_once_for_each_encoder(tmp_path: Path, encoder: SwinEncoder) -> None:
    calls = []

    def measure() -> list[float]:
        calls.append(1)
        return [0.25]

    file = tmp_path / "figures.json"
    for _ in range(2):
        assert Figures(file)(Candidate(encoder), "x", measure) == [0.25]
    assert len(calls) == 1
    Figures(file)(Candidate(encoder, mind), "x", measure)
    torch.manual_seed(1)
    other = SwinEncoder.from_size("tiny", window_size=4)
    Figures(file)(Candidate(other), "x", measure)
    assert len(calls) == 3
    Figures(file)(Candidate(other, mind), "x", measure)  # does not depend on weights
    assert len(calls) == 3


def test_hidden_blocks_are_black_and_the_rest_is_seen() -> None:
    crops = torch.rand(4, 1, 48, 48, 48) + 0.1
    seen, hidden = hide(crops, torch.Generator().manual_seed(0))
    assert abs(float(hidden.mean()) - HIDDEN_SHARE) < 0.05
    assert not seen[hidden > 0].any()
    assert torch.equal(seen[hidden == 0], crops[hidden == 0])
    blocks = hidden.unfold(2, BLOCK_VOX, BLOCK_VOX).unfold(3, BLOCK_VOX, BLOCK_VOX)
    blocks = blocks.unfold(4, BLOCK_VOX, BLOCK_VOX)
    assert (blocks.amax((-3, -2, -1)) == blocks.amin((-3, -2, -1))).all()


def test_every_ablation_changes_a_setting_that_exists() -> None:
    config = asdict(RunConfig())
    for settings in (COMMON, *VARIANTS.values()):
        for name in set(settings) - {"config"}:
            section, field = name.split(".")
            assert field in config[section], name
    kinds = {(*items.items(), name in PAIRS_AS_RELEASED) for name, items in VARIANTS.items()}
    assert len(kinds) == len(VARIANTS)


@pytest.mark.parametrize("number", range(len(GOLDEN_PAIRS["settings"])))
def test_pairs_as_released_are_those_of_the_released_code(number: int) -> None:
    first, second, angle, scale = GOLDEN_PAIRS["settings"][number].tolist()
    affine = Affine3D.in_plane([first, second], angle, scale, plane=(0, 1))
    partner = released_partners(affine, (12, 12, 1), 32)
    found = {(source, int(other)) for source, other in enumerate(partner) if other >= 0}
    assert found == set(map(tuple, GOLDEN_PAIRS[f"released_code_pairs_{number}"].tolist()))


def test_training_with_pairs_as_released_labels_other_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ViewConfig(matching="3d")
    draws = draw(config, 32, [0, 1], 0)
    image, mask = torch.rand(2, 1, 32, 32, 32), torch.ones(2, 32, 32, 32, dtype=torch.bool)

    def pairs() -> torch.Tensor:
        # By its name in the trainer's module, which is what is replaced
        made = views.build_views(image, mask, mask, draws, config, crop_size=32, token_size_vox=4)
        return made.true_pairs

    found: list[torch.Tensor] = []
    monkeypatch.setattr(cli, "main", lambda: found.append(pairs()))
    exact = pairs()
    released_geometry.main()
    assert found[0].any()
    assert not torch.equal(found[0], exact)
    assert torch.equal(exact, pairs())


def test_ablations_have_an_encoder_for_each_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(name: str, seed: int, steps: int = 200) -> None:
        torch.manual_seed(seed)
        encoder = SwinEncoder.from_size("tiny", window_size=4)
        path = run_of(tmp_path, name, seed) / "encoder.safetensors"
        encoder.save(path, {"training": {"steps": steps, "volumes": 3}})

    for seed in SEEDS:
        save("all of it", seed)
    save("scans alone", SEEDS[0])
    (row,) = ablation_rows(tmp_path)
    assert "scans alone, not trained with seed 1, 2" in capsys.readouterr().out
    first, second = (row.candidate("mouse_brain", seed).encoder.swin for seed in SEEDS[:2])
    assert not torch.equal(first.patch_embed.proj.weight, second.patch_embed.proj.weight)
    save("all of it", SEEDS[2], steps=100)
    with pytest.raises(ValueError, match="several lengths"):
        ablation_rows(tmp_path)


def test_structures_are_named_across_contrasts_and_by_place(
    encoder: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(phantom, (48, 64, 64), 6.0)
    monkeypatch.setattr(evidence_tasks, "phantom", small)
    raw = Candidate(encoder, raw_patches)
    ct, t2, t2_from_ct, ct_from_t2 = evidence_tasks.structures_across(raw)
    # Brightness tells much within a contrast and misleads between them
    assert min(ct, t2) > max(t2_from_ct, ct_from_t2)
    assert evidence_tasks.structures_by_place() > max(t2_from_ct, ct_from_t2)
    assert 0 < evidence_tasks.pet_accuracy(raw, range(1)) < 1


def test_places_and_labels_across_contrasts_by_plans(
    encoder: SwinEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_map(*_: object) -> None:
        raise S2DCError("no map")

    monkeypatch.setattr(evidence_tasks, "phantom", partial(phantom, (48, 64, 64), 6.0))
    monkeypatch.setattr(evidence_tasks, "PHANTOM_SEEDS", (201, 202))
    monkeypatch.setattr(evidence_tasks, "transfer_labels", no_map)
    raw = Candidate(encoder, raw_patches, RAW_MATCHING)
    by_plan = evidence_tasks.by_plan(raw)
    ((same, cross),) = evidence_tasks.contrast_accuracy(raw, range(1), by_plan)
    ((alone, alone_cross),) = evidence_tasks.contrast_accuracy(raw, range(1))
    # The prior of places helps where brightness misleads
    assert same > cross > alone_cross
    assert alone > alone_cross
    plan, registered = evidence_tasks.transfer_across(raw)
    assert 0 < plan < 0.9
    assert registered == 0
