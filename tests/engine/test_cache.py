"""The cache gives back what was made from the same things, and never stands in the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from napari_s2dc.engine.cache import EmbeddingCache, embed_cached, embedding_key
from napari_s2dc.engine.embed import Embedding, EmbedSettings
from napari_s2dc.engine.progress import finish
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume


def _encoder(seed: int) -> SwinEncoder:
    torch.manual_seed(seed)
    return SwinEncoder.from_size("tiny", window_size=4)


def test_the_key_follows_what_decides_the_features(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    key = embedding_key(torso, tiny, settings)
    changed = torso.array.copy()
    changed[3, 4, 5] += 1
    lung = _encoder(0)
    lung.metadata = {"preprocessing": {"preset": "ct_lung"}}
    others = {
        "voxel": embedding_key(torso.with_array(changed), tiny, settings),
        "weights": embedding_key(torso, _encoder(1), settings),
        "trained preset": embedding_key(torso, lung, settings),
        "preset": embedding_key(torso, tiny, replace(settings, preset="ct_bone")),
        "stage": embedding_key(torso, tiny, replace(settings, stage=1)),
        "window": embedding_key(torso, tiny, replace(settings, window_vox=48)),
        "overlap": embedding_key(torso, tiny, replace(settings, overlap=0.5)),
        "region": embedding_key(torso, tiny, replace(settings, roi=((0, 32), (0, 48), (0, 40)))),
    }
    assert len({key, *others.values()}) == 1 + len(others)


def test_the_key_ignores_what_does_not(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings
) -> None:
    key = embedding_key(torso, tiny, settings)
    assert embedding_key(torso, _encoder(0), settings) == key
    assert embedding_key(torso.with_array(torso.array.copy(), name="b"), tiny, settings) == key
    assert embedding_key(torso, tiny, replace(settings, device="auto", preset="auto")) == key
    everything = ((0, 32), (0, 48), (0, 48))
    assert embedding_key(torso, tiny, replace(settings, stage=2, roi=everything)) == key


def test_the_second_time_nothing_is_computed(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, tmp_path: Path
) -> None:
    cache = EmbeddingCache(tmp_path)
    made = finish(embed_cached(torso, tiny, settings, cache))
    moved = replace(torso, name="again", affine=torso.affine * 1.0)
    moved.affine[0, 3] = 400.0
    steps = embed_cached(moved, tiny, settings, cache)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    found = stop.value.value
    assert torch.equal(found.features, made.features)
    assert found.name == "again"
    assert found.mm_of_token((0, 0, 0))[0] == pytest.approx(414.0)


def test_a_damaged_entry_is_made_anew(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, tmp_path: Path
) -> None:
    cache = EmbeddingCache(tmp_path)
    made = finish(embed_cached(torso, tiny, settings, cache))
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-7])
    assert cache.get(entry.name.partition(".")[0]) is None
    assert not entry.exists()
    again = finish(embed_cached(torso, tiny, settings, cache))
    assert torch.equal(again.features, made.features)
    assert entry.exists()


def test_cancelling_keeps_nothing(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, tmp_path: Path
) -> None:
    cache = EmbeddingCache(tmp_path)
    steps = embed_cached(torso, tiny, settings, cache)
    for _ in range(3):
        next(steps)
    steps.close()
    assert list(tmp_path.iterdir()) == []


def test_smaller_windows_than_asked_for_are_not_kept(
    torso: Volume,
    tiny: SwinEncoder,
    settings: EmbedSettings,
    embedding: Embedding,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def embed_in_little_memory(*_: object):
        yield from ()
        return replace(embedding, metadata=embedding.metadata | {"window_vox": 16})

    monkeypatch.setattr("napari_s2dc.engine.cache.embed_volume", embed_in_little_memory)
    cache = EmbeddingCache(tmp_path)
    finish(embed_cached(torso, tiny, settings, cache))
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(embedding: Embedding, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    for number, key in enumerate("abc"):
        cache.put(key, embedding)
        os.utime(tmp_path / f"{key}.cached.safetensors", (1000 + number, 1000 + number))
    one = cache.size_bytes() // 3
    cache.get("a")  # now the latest used
    cache.limit_bytes = int(3.5 * one)
    cache.put("d", embedding)
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert cache.size_bytes() == 3 * one
    cache.clear()
    assert cache.size_bytes() == 0
    assert cache.get("a") is None


def test_an_embedding_beyond_the_limit_is_not_kept(embedding: Embedding, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, limit_bytes=100)
    cache.put("a", embedding)
    assert list(tmp_path.iterdir()) == []
    assert "more than the cache may hold" in cache.problem
    cache.limit_bytes = 10**9
    cache.put("a", embedding)
    assert cache.problem == ""


def test_a_folder_that_cannot_be_written_is_told_once_and_never_raises(
    torso: Volume, tiny: SwinEncoder, settings: EmbedSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = EmbeddingCache(tmp_path / "file" / "cache")
    found = finish(embed_cached(torso, tiny, settings, cache))
    assert found.grid == (4, 6, 6)
    assert cache.problem.startswith("Embeddings are not kept: Cannot write")
    assert cache.problem.count(".") >= 1
    assert cache.get("a") is None
    assert cache.size_bytes() == 0
    cache.clear()


def test_leftovers_of_killed_processes_go_and_those_at_work_stay(
    embedding: Embedding, tmp_path: Path
) -> None:
    old, new = (tmp_path / f".part-{name}.cached.safetensors" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    cache = EmbeddingCache(tmp_path)
    cache.put("a", embedding)
    assert not old.exists()
    assert new.exists()


def test_the_users_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = EmbeddingCache().folder
    assert tmp_path in folder.parents
    assert not folder.exists()


def test_files_of_others_in_the_same_folder_are_left_alone(
    tmp_path: Path, embedding: Embedding
) -> None:
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(bytes(1000))
    cache = EmbeddingCache(tmp_path)
    cache.put("a", embedding)
    one = cache.size_bytes()
    cache.limit_bytes = int(1.5 * one)
    cache.put("b", embedding)
    assert cache.get("a") is None  # made room
    assert cache.size_bytes() == one
    cache.clear()
    assert cache.size_bytes() == 0
    assert weights.read_bytes() == bytes(1000)
