"""The encoder is MONAI's Swin transformer, and its file gives back the same encoder."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from safetensors import safe_open

import napari_s2dc
from napari_s2dc.errors import CheckpointError, ConfigurationError, S2DCError
from napari_s2dc.method.encoder import SIZES, STRIDES, EncoderConfig, SwinEncoder

WINDOW = 4


@pytest.fixture(scope="module")
def encoder() -> SwinEncoder:
    torch.manual_seed(1)
    return SwinEncoder.from_size("tiny", window_size=WINDOW).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 1, 32, 64, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("use_v2", [True, False])
@pytest.mark.parametrize("autograd", [True, False])
def test_forward_equals_monai(image: torch.Tensor, use_v2: bool, autograd: bool) -> None:
    ours = SwinEncoder(EncoderConfig(feature_size=12, window_size=WINDOW, use_v2=use_v2)).eval()
    theirs = SwinTransformer(
        in_chans=1,
        embed_dim=12,
        window_size=(WINDOW,) * 3,
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        use_v2=use_v2,
    ).eval()
    theirs.load_state_dict(ours.swin.state_dict())
    with torch.set_grad_enabled(autograd):
        for mine, reference in zip(ours(image), theirs(image, normalize=True), strict=True):
            assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


def test_stages_have_the_documented_shapes(encoder: SwinEncoder, image: torch.Tensor) -> None:
    stages = encoder(image)
    assert encoder.stage_channels == (12, 24, 48, 96, 192)
    assert len(stages) == len(STRIDES) == 5
    for stage, channels, stride in zip(stages, encoder.stage_channels, STRIDES, strict=True):
        assert stage.shape == (2, channels, 32 // stride, 64 // stride, 32 // stride)


def test_gradient_checkpointing_changes_no_gradient(
    encoder: SwinEncoder, image: torch.Tensor
) -> None:
    lean = SwinEncoder(encoder.config, gradient_checkpointing=True).eval()
    lean.load_state_dict(encoder.state_dict())
    gradients = []
    for network in (encoder, lean):
        network.zero_grad()
        network(image[:1])[-1].square().sum().backward()
        gradients.append(network.swin.patch_embed.proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes(size: str) -> None:
    config = SwinEncoder.from_size(size, window_size=2, in_channels=2).config
    assert (config.feature_size, config.window_size, config.in_channels) == (SIZES[size], 2, 2)
    assert config.use_v2
    assert config.size_name == size


def test_window_is_seven_unless_told() -> None:
    assert SwinEncoder.from_size("tiny").config.window_size == 7


def test_unknown_size_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"'huge'.*tiny, small, base"):
        SwinEncoder.from_size("huge")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"feature_size": 20}, "multiple of 12"),
        ({"feature_size": 0}, "at least 1"),
        ({"window_size": -1}, "at least 1"),
        ({"depths": (2, 2)}, "4 depths"),
        ({"num_heads": (5, 6, 12, 24)}, "cannot be shared among 5"),
        ({"feature_sice": 12}, "Unknown encoder setting: feature_sice"),
        ({"depths": 3}, "cannot be read"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        EncoderConfig.from_dict(settings)


def test_config_survives_json() -> None:
    config = EncoderConfig(feature_size=24, window_size=6, use_v2=False)
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_saved_encoder_comes_back_equal(
    encoder: SwinEncoder, image: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "encoder.safetensors"
    encoder.save(path, {"steps": 615, "spacing_mm": [1.0, 1.0, 1.0], "preset": "mr"})
    loaded = SwinEncoder.from_checkpoint(path).eval()
    assert loaded.config == encoder.config
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        for mine, reference in zip(loaded(image), encoder(image), strict=True):
            assert torch.equal(mine, reference)
    assert loaded.report is not None
    assert loaded.report.fraction == 1
    assert loaded.metadata == {
        "steps": 615,
        "spacing_mm": [1.0, 1.0, 1.0],
        "preset": "mr",
        "version": napari_s2dc.__version__,
        "architecture": encoder.config.as_dict(),
    }


def test_metadata_is_json_under_our_key(encoder: SwinEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder.save(path)
    with safe_open(path, framework="pt") as stream:
        header = json.loads(stream.metadata()["napari_s2dc"])
        names = set(stream.keys())
    assert EncoderConfig.from_dict(header["architecture"]) == encoder.config
    assert "patch_embed.proj.weight" in names
    assert not [name for name in names if name.endswith("relative_position_index")]


def test_resaving_a_loaded_encoder_keeps_what_the_caller_passes(
    encoder: SwinEncoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path / "first.safetensors", {"steps": 3})
    first = SwinEncoder.from_checkpoint(tmp_path / "first.safetensors")
    first.save(tmp_path / "second.safetensors", first.metadata)
    second = SwinEncoder.from_checkpoint(tmp_path / "second.safetensors")
    assert second.metadata == first.metadata


def test_metadata_that_is_not_json_is_refused(encoder: SwinEncoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="JSON"):
        encoder.save(tmp_path / "encoder.safetensors", {"when": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_save_leaves_the_old_file_whole(
    encoder: SwinEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder.save(path, {"steps": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(S2DCError, match=r"Cannot write .*encoder\.safetensors: No space"):
        encoder.save(path, {"steps": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_saved_file_follows_the_umask(encoder: SwinEncoder, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        encoder.save(tmp_path / "encoder.safetensors")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "encoder.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("use_v2", [True, False])
def test_swin_unetr_holds_copies_of_the_weights(image: torch.Tensor, use_v2: bool) -> None:
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=WINDOW, use_v2=use_v2)).eval()
    network = encoder.to_swin_unetr(3).eval()
    assert isinstance(network, SwinUNETR)
    with torch.no_grad():
        assert network(image[:1]).shape == (1, 3, 32, 64, 32)
        for mine, reference in zip(encoder(image), network.swinViT(image), strict=True):
            assert torch.equal(mine, reference)
        before = encoder(image)[0]
        network.swinViT.patch_embed.proj.weight.zero_()
        assert torch.equal(encoder(image)[0], before)


def test_borders_are_kept_and_leave_other_files_as_they_were(tmp_path: Path) -> None:
    config = EncoderConfig(feature_size=12, window_size=2, borders=True)
    SwinEncoder(config).save(tmp_path / "encoder.safetensors")
    found = SwinEncoder.from_checkpoint(tmp_path / "encoder.safetensors")
    assert found.config == config
    assert found.to_swin_unetr(2).swinViT.borders
    assert "borders" not in EncoderConfig().as_dict()
