from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from s2dc_train.cache import ScanCache
from s2dc_train.cached_scan import CachedScan
from s2dc_train.config import DataConfig
from s2dc_train.sources import ScanEntry
from s2dc_train.subvolumes import CounterSampler, SubVolumeDataset

from napari_s2dc.errors import ConfigurationError

SIZE = (16, 16, 32)


@pytest.fixture
def scans(tmp_path, save_scan, ball) -> list[CachedScan]:
    cache = ScanCache(tmp_path / "cache", DataConfig(preset="mr"))
    return [
        cache.get(ScanEntry(save_scan(tmp_path / f"{n}.nii.gz", ball((20 + n, 24, 28), seed=n))))
        for n in range(3)
    ]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name])
        if isinstance(one[name], torch.Tensor)
        else one[name] == other[name]
        for name in one
    )


def test_item_has_the_shapes_and_types_of_the_contract(scans):
    item = SubVolumeDataset(scans, SIZE)[5]
    assert item["image"].shape == (1, *SIZE)
    assert item["image"].dtype == torch.float32
    assert 0 <= item["image"].min() < item["image"].max() <= 1
    for name in ("valid", "foreground"):
        assert item[name].shape == SIZE
        assert item[name].dtype == torch.bool
    assert item["sample"] == 5
    assert item["start"].dtype == torch.long
    # The scan is 28 voxels wide, the sub-volume 32.
    start = int(item["start"][2])
    assert -4 <= start <= 0
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[:, :, -start : 28 - start] = True
    assert torch.equal(item["valid"], expected)
    assert not (item["foreground"] & ~item["valid"]).any()
    assert not item["image"][0][~item["valid"]].any()


def test_sample_depends_on_seed_and_number_alone(scans):
    dataset = SubVolumeDataset(scans, SIZE, seed=3, foreground_fraction=0.2)
    forward = [dataset[k] for k in range(12)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - shows that global generators do not matter
    again = SubVolumeDataset(scans, SIZE, seed=3, foreground_fraction=0.2)
    assert all(equal(again[k], forward[k]) for k in reversed(range(12)))
    other = SubVolumeDataset(scans, SIZE, seed=4, foreground_fraction=0.2)
    assert not all(torch.equal(other[k]["start"], forward[k]["start"]) for k in range(12))


def test_every_pass_visits_each_volume_once_in_its_own_order(scans):
    dataset = SubVolumeDataset(scans, SIZE, seed=1)
    passes = [tuple(dataset[3 * p + i]["volume"] for i in range(3)) for p in range(8)]
    assert all(sorted(order) == [0, 1, 2] for order in passes)
    assert len(set(passes)) > 1


def test_places_differ_and_cover_the_room_there_is(scans):
    dataset = SubVolumeDataset(scans[:1], SIZE, seed=0)
    starts = torch.stack([dataset[k]["start"] for k in range(300)])
    # 20 x 24 x 28 voxels; sub-volume 16 x 16 x 32.
    assert starts.amin(0).tolist() == [0, 0, -4]
    assert starts.amax(0).tolist() == [4, 8, 0]


def test_foreground_is_sought(tmp_path, save_scan):
    array = np.zeros((48, 48, 48), np.float32)
    array[2:18, 4:20, 28:44] = np.random.default_rng(0).uniform(1, 2, (16, 16, 16))
    cache = ScanCache(tmp_path / "cache", DataConfig(preset="mr"))
    scan = cache.get(ScanEntry(save_scan(tmp_path / "corner.nii.gz", array)))

    def share(wanted: float) -> list[float]:
        dataset = SubVolumeDataset([scan], (16, 16, 16), foreground_fraction=wanted)
        return [float(dataset[k]["foreground"].float().mean()) for k in range(40)]

    assert np.mean(np.array(share(0.0)) < 0.05) > 0.5
    assert np.mean(np.array(share(0.05)) < 0.05) < 0.1
    # More than any place has: the best candidate is taken, not none.
    assert np.median(share(1.0)) > 0.2


def test_centred_item_pads_evenly_and_looks_at_the_foreground(scans, tmp_path, save_scan):
    item = SubVolumeDataset(scans, SIZE).centred(0)
    assert item["start"].tolist() == [2, 4, -2]
    assert (item["volume"], item["sample"]) == (0, 0)
    array = np.zeros((48, 48, 48), np.float32)
    array[2:18, 4:20, 28:44] = np.random.default_rng(0).uniform(1, 2, (16, 16, 16))
    cache = ScanCache(tmp_path / "cache", DataConfig(preset="mr"))
    corner = cache.get(ScanEntry(save_scan(tmp_path / "corner.nii.gz", array)))
    item = SubVolumeDataset([corner], (20, 20, 20)).centred(0)
    assert item["start"].tolist() == [0, 2, 26]


def test_negative_seed_is_refused(scans):
    with pytest.raises(ConfigurationError, match="-1 is negative"):
        SubVolumeDataset(scans, SIZE, seed=-1)


def take(sampler: CounterSampler, number: int) -> list[int]:
    return list(islice(iter(sampler), number))


def test_ranks_share_the_samples_without_overlap():
    ranks = [take(CounterSampler(100, rank=r, world_size=3, batch_size=2), 8) for r in range(3)]
    assert ranks[0] == [100, 101, 106, 107, 112, 113, 118, 119]
    assert sorted(sample for rank in ranks for sample in rank) == list(range(100, 124))
    # What all ranks use in one step is one unbroken stretch.
    assert sorted(sample for rank in ranks for sample in rank[:2]) == list(range(100, 106))


def test_sampler_continues_from_any_sample():
    straight = take(CounterSampler(0, rank=1, world_size=2, batch_size=2), 12)
    resumed = take(CounterSampler(3 * 4, rank=1, world_size=2, batch_size=2), 6)
    assert resumed == straight[6:]


def test_sampler_has_no_length_and_no_epochs():
    sampler = CounterSampler(7)
    with pytest.raises(TypeError):
        len(sampler)
    sampler.set_epoch(3)
    assert take(sampler, 2) == [7, 8]
