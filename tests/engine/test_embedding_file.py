"""Embeddings survive the disk whole, or one sentence says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_s2dc.engine.embed import Embedding
from napari_s2dc.engine.embedding_file import EmbeddingFileError, load_embedding, save_embedding
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder


def same(one: Embedding, two: Embedding) -> bool:
    return (
        torch.equal(one.features, two.features)
        and torch.equal(one.foreground, two.foreground)
        and np.array_equal(one.affine, two.affine)
        and (one.stride, one.shape, one.offset_vox, one.spacing_mm, one.name)
        == (two.stride, two.shape, two.offset_vox, two.spacing_mm, two.name)
    )


def test_what_is_read_is_what_was_written(embedding: Embedding, tmp_path: Path) -> None:
    region = replace(embedding, offset_vox=(8, 0, 3), name="a — b")
    path = save_embedding(region, tmp_path / "new" / "scan.safetensors")
    found = load_embedding(path)
    assert same(found, region)
    assert found.metadata["settings"]["window_vox"] == 32
    assert found.features.dtype == torch.float16
    assert found.token_of_voxel((8, 0, 3)) == (0, 0, 0)
    assert [file.name for file in path.parent.iterdir()] == ["scan.safetensors"]


def test_the_tensors_can_be_read_without_us(embedding: Embedding, tmp_path: Path) -> None:
    tensors = load_file(save_embedding(embedding, tmp_path / "scan.safetensors"))
    assert torch.equal(tensors["features"], embedding.features)
    assert torch.equal(tensors["foreground"], embedding.foreground)


def _truncate(content: bytes) -> bytes:
    return content[:-100]


def _flip_a_bit(content: bytes) -> bytes:
    middle = len(content) - 500
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def _empty(_: bytes) -> bytes:
    return b""


def _page(_: bytes) -> bytes:
    return b"<html>Not found</html>"


def _other_facts(content: bytes) -> bytes:
    return content.replace(b'\\"stride\\": 8', b'\\"strade\\": 8')


@pytest.mark.parametrize("harm", [_truncate, _flip_a_bit, _empty, _page, _other_facts])
def test_a_damaged_file_is_one_sentence(embedding: Embedding, tmp_path: Path, harm) -> None:
    path = save_embedding(embedding, tmp_path / "scan.safetensors")
    content = path.read_bytes()
    harmed = harm(content)
    assert harmed != content
    path.write_bytes(harmed)
    with pytest.raises(EmbeddingFileError, match="damaged or holds no embedding"):
        load_embedding(path)


def test_other_files_are_named(tiny: SwinEncoder, tmp_path: Path) -> None:
    tiny.save(tmp_path / "encoder.safetensors")
    with pytest.raises(EmbeddingFileError, match="holds no embedding"):
        load_embedding(tmp_path / "encoder.safetensors")
    with pytest.raises(EmbeddingFileError, match="No such file"):
        load_embedding(tmp_path / "missing.safetensors")
    with pytest.raises(EmbeddingFileError, match="Cannot read"):
        load_embedding(tmp_path)


def test_a_later_format_is_told(
    embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr("napari_s2dc.engine.embedding_file._FORMAT", 2)
        save_embedding(embedding, tmp_path / "scan.safetensors")
    with pytest.raises(EmbeddingFileError, match="later version"):
        load_embedding(tmp_path / "scan.safetensors")


def test_an_old_file_stays_when_writing_fails(
    embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_embedding(embedding, tmp_path / "scan.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(S2DCError, match="No space left"):
        save_embedding(replace(embedding, name="other"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scan.safetensors"]
