from __future__ import annotations

import numpy as np
import pytest
import torch
from s2dc_train.cache import ScanCache
from s2dc_train.config import DataConfig, ViewConfig
from s2dc_train.data_settings import check_settings
from s2dc_train.sources import ScanEntry
from s2dc_train.subvolumes import SubVolumeDataset
from s2dc_train.synthetic import Synthesis
from s2dc_train.views import build_views, draw

from napari_s2dc.errors import ConfigurationError

SIZE = (16, 32, 32)


@pytest.fixture
def scans(tmp_path, save_scan, ball):
    cache = ScanCache(tmp_path / "cache", DataConfig(preset="mr"))
    return [
        cache.get(ScanEntry(save_scan(tmp_path / f"{n}.nii.gz", ball((20 + n, 36, 36), seed=n))))
        for n in range(3)
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_made_up_samples_are_spread_evenly_but_without_a_rhythm(share):
    synthesis = Synthesis(share)
    held = [synthesis.holds(k) for k in range(200)]
    assert sum(held) == round(200 * share)
    assert [sum(held[:k]) for k in range(200)] == [synthesis.before(k) for k in range(200)]
    if 0 < share < 1:  # every second worker and every tenth step sees both kinds
        for step in (2, 5, 10):
            assert 0 < sum(held[step - 1 :: step]) < len(held[step - 1 :: step])


def test_scans_are_still_visited_once_in_a_pass(scans):
    dataset = SubVolumeDataset(scans, SIZE, synthesis=Synthesis(0.5))
    volumes = [dataset[k]["volume"] for k in range(20)]
    real = [volume for volume in volumes if volume >= 0]
    assert len(real) == 10
    assert sorted(real[:3]) == sorted(real[3:6]) == [0, 1, 2]


@pytest.mark.parametrize(("cross_contrast", "channels"), [(False, 1), (True, 3)])
def test_every_item_fits_into_one_batch(scans, cross_contrast, channels):
    dataset = SubVolumeDataset(scans, SIZE, synthesis=Synthesis(0.5, cross_contrast))
    batch = torch.utils.data.default_collate([dataset[k] for k in range(4)])
    assert batch["image"].shape == (4, channels, *SIZE)
    assert batch["image"].dtype == torch.float32


def test_a_made_up_item_repeats_and_keeps_its_promises():
    for index in range(8):
        item = Synthesis(1.0, seed=3).item(SIZE, index)
        again = Synthesis(1.0, seed=3).item(SIZE, index)
        assert torch.equal(item["image"], again["image"])
        assert not (item["foreground"] & ~item["valid"]).any()
        assert not item["image"][:, ~item["valid"]].any()
        assert item["image"].min() >= 0
        assert item["image"].max() <= 1
    assert not torch.equal(item["image"], Synthesis(1.0, seed=4).item(SIZE, 7)["image"])


def test_contrast_is_that_of_each_view_or_the_same():
    several = Synthesis(1.0, cross_contrast=True).item(SIZE, 0)["image"]
    one = Synthesis(1.0, cross_contrast=False).item(SIZE, 0)["image"]
    assert not torch.equal(several[0], several[1])
    assert len(one) == 1
    assert torch.equal(one[0], several[0])


def test_each_view_shows_its_own_channel():
    size = 16
    image = torch.stack([torch.full((size,) * 3, value) for value in (0.2, 0.5, 0.8)])[None]
    everywhere = torch.ones(1, size, size, size, dtype=torch.bool)
    config = ViewConfig(
        intensity_scale=0, intensity_shift=0, translation=0, rotation_deg=0, scale_min=1,
        scale_max=1, crop_translation=0, crop_rotation_deg=0, crop_scale=0,
    )  # fmt: skip
    views = build_views(
        image,
        everywhere,
        everywhere,
        draw(config, size, [0], 0),
        config,
        crop_size=size,
        token_size_vox=8,
    )
    for crops, value in ((views.first, 0.2), (views.second, 0.5), (views.contrast, 0.8)):
        np.testing.assert_allclose(crops.numpy(), value, atol=1e-5)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="synthetic_share"):
        check_settings(DataConfig(synthetic_share=1.5))
