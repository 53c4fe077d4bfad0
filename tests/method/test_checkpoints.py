"""Weights in every supported layout load equal; everything else is refused in a sentence."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from safetensors.torch import save_file

from napari_s2dc.errors import CheckpointError
from napari_s2dc.method import checkpoint_layouts as layouts
from napari_s2dc.method.checkpoint_files import looks_like_checkpoint, read_tensors
from napari_s2dc.method.checkpoint_layouts import read_checkpoint
from napari_s2dc.method.checkpoints import compare
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder

WINDOW = 4
Tensors = dict[str, torch.Tensor]


def monai_swin(use_v2: bool = True, feature_size: int = 12, **options: Any) -> SwinTransformer:
    settings: dict[str, Any] = {
        "window_size": (WINDOW,) * 3,
        "patch_size": (2, 2, 2),
        "depths": (2, 2, 2, 2),
        "num_heads": (3, 6, 12, 24),
        "in_chans": 1,
    }
    torch.manual_seed(3)
    return SwinTransformer(
        embed_dim=feature_size, use_v2=use_v2, use_flash_attention=True, **{**settings, **options}
    ).eval()


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def other(tensors: Tensors) -> Tensors:
    """Same names and shapes, other values: what must not be taken."""
    return {
        name: tensor + 1 if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def old_names(tensors: Tensors) -> Tensors:
    return {
        name.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2"): tensor
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def v2() -> SwinTransformer:
    return monai_swin()


@pytest.fixture(scope="module")
def v1() -> SwinTransformer:
    return monai_swin(use_v2=False)


@pytest.fixture(scope="module")
def decoder() -> Tensors:
    network = SwinUNETR(1, 2, feature_size=12, window_size=WINDOW, use_v2=True)
    return {k: v for k, v in network.state_dict().items() if not k.startswith("swinViT.")}


HEAD = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}


def lightning(swin: Tensors, _: Tensors) -> Any:
    state = {
        # the teacher stands first on purpose
        **prefixed("teacher.encoder.swin.", other(swin)),
        **prefixed("student.encoder.swin.", swin),
        **prefixed("student.token_head.", HEAD),
        "queue": torch.ones(8, 4),
    }
    return {
        "state_dict": state,
        "epoch": 0,
        "global_step": 120,
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"encoder": {"feature_size": 12, "window_size": WINDOW}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
    }


def authors(swin: Tensors, _: Tensors) -> Any:
    return {
        **prefixed("teacher.swinViT.", other(swin)),
        **prefixed("student.swinViT.", swin),
        **prefixed("student.proj_head.", HEAD),
        "queue": torch.ones(4, 8),
    }


def voco(swin: Tensors, decoder: Tensors) -> Any:
    convolutions = {name: value for name, value in decoder.items() if name.startswith("encoder")}
    return {
        **prefixed("module.backbone.swinViT.", swin),
        **prefixed("module.backbone.", convolutions),
        **prefixed("module.student.", HEAD),
        **prefixed("module.teacher.", HEAD),
    }


WRITERS: dict[str, tuple[str, bool, Callable[[Tensors, Tensors], Any]]] = {
    "lightning": (layouts.OUR_TRAINING, True, lightning),
    "authors": (layouts.AUTHORS, True, authors),
    "authors nested": (layouts.AUTHORS, True, lambda s, d: {"state_dict": authors(s, d)}),
    "authors in module": (layouts.AUTHORS, True, lambda s, d: prefixed("module.", authors(s, d))),
    "authors, student dict": (
        layouts.AUTHORS,
        True,
        lambda s, d: {
            "teacher": prefixed("module.swinViT.", other(s)),
            "student": prefixed("module.swinViT.", s),
        },
    ),
    "voco": (layouts.VOCO, True, lambda s, d: {"state_dict": voco(s, d), "epoch": 9}),
    "voco net": (layouts.VOCO, True, lambda s, d: {"net": voco(s, d)}),
    "voco bare": (layouts.VOCO, True, lambda s, d: prefixed("backbone.swin_vit.", s)),
    "model_swinvit": (
        layouts.MONAI_PRETRAINED,
        False,
        lambda s, d: {
            "state_dict": {
                **prefixed("module.", old_names(s)),
                **prefixed("module.norm.", HEAD),
                **prefixed("module.rotation_head.", HEAD),
            }
        },
    ),
    "swin_vit": (
        layouts.SWIN_UNETR,
        False,
        lambda s, d: {"state_dict": prefixed("module.swin_vit.", old_names(s))},
    ),
    "swin unetr": (layouts.SWIN_UNETR, True, lambda s, d: {**prefixed("swinViT.", s), **d}),
    "swin unetr v1": (layouts.SWIN_UNETR, False, lambda s, d: {**prefixed("swinViT.", s), **d}),
    "swin unetr in lightning": (
        layouts.SWIN_UNETR,
        True,
        lambda s, d: {"state_dict": prefixed("model.", {**prefixed("swinViT.", s), **d})},
    ),
    "swin unetr under model": (
        layouts.SWIN_UNETR,
        True,
        lambda s, d: {"model": {**prefixed("module.swinViT.", s), **d}},
    ),
    "bare": (layouts.SWIN, True, lambda s, d: s),
}


@pytest.mark.parametrize("case", WRITERS)
def test_every_layout_loads_equal(
    case: str, v1: SwinTransformer, v2: SwinTransformer, decoder: Tensors, tmp_path: Path
) -> None:
    layout, use_v2, write = WRITERS[case]
    swin = v2 if use_v2 else v1
    path = tmp_path / "weights.pt"
    torch.save(write(swin.state_dict(), decoder), path)

    encoder = SwinEncoder.from_checkpoint(path).eval()

    assert encoder.config == EncoderConfig(feature_size=12, window_size=WINDOW, use_v2=use_v2)
    assert encoder.report is not None
    assert encoder.report.layout == layout
    assert encoder.report.fraction == 1
    assert not encoder.report.unexpected
    loaded = encoder.swin.state_dict()
    for name, tensor in swin.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for mine, reference in zip(encoder(image), swin(image, normalize=True), strict=True):
            assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


def test_foreign_safetensors_are_read(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(prefixed("swinViT.", v2.state_dict()), path, metadata={"format": "pt"})
    encoder = SwinEncoder.from_checkpoint(path)
    assert encoder.report is not None
    assert encoder.report.layout == layouts.SWIN_UNETR
    assert torch.equal(encoder.swin.patch_embed.proj.weight, v2.patch_embed.proj.weight)


def test_content_decides_not_the_ending(v2: SwinTransformer, tmp_path: Path) -> None:
    torch.save(v2.state_dict(), tmp_path / "named.safetensors")
    encoder = SwinEncoder.from_checkpoint(tmp_path / "named.safetensors")
    encoder.save(tmp_path / "named.pt")
    assert SwinEncoder.from_checkpoint(tmp_path / "named.pt").config == encoder.config


def test_files_before_pytorch_zip_are_read(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(v2.state_dict(), path, _use_new_zipfile_serialization=False)
    assert SwinEncoder.from_checkpoint(path).config.feature_size == 12


def test_plain_values_beside_the_weights_are_allowed(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    content = {
        "state_dict": v2.state_dict(),
        "epoch": 7,
        "best_acc": np.float64(0.5),
        "curve": np.arange(3, dtype=np.float32),
        "args": argparse.Namespace(lr=1e-3),
    }
    torch.save(content, path)
    assert SwinEncoder.from_checkpoint(path).metadata["epoch"] == 7


def test_lightning_facts_become_metadata(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(lightning(v2.state_dict(), {}), path)
    metadata = SwinEncoder.from_checkpoint(path).metadata
    assert metadata["steps"] == 120
    assert metadata["hyper_parameters"]["encoder"]["window_size"] == WINDOW


def test_a_training_checkpoint_says_that_its_encoder_looks_at_borders(
    v2: SwinTransformer, tmp_path: Path
) -> None:
    content = lightning(v2.state_dict(), {})
    config = EncoderConfig(feature_size=12, window_size=WINDOW, borders=True)
    content["hyper_parameters"]["encoder"] = config.as_dict()
    torch.save(content, tmp_path / "last.ckpt")
    assert SwinEncoder.from_checkpoint(tmp_path / "last.ckpt").swin.borders
    with pytest.raises(CheckpointError, match="borders True instead of False"):
        SwinEncoder.from_checkpoint(
            tmp_path / "last.ckpt", expected=EncoderConfig(feature_size=12, window_size=WINDOW)
        )


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"feature_size": 24}, EncoderConfig(24, WINDOW)),
        ({"window_size": (6, 6, 6)}, EncoderConfig(12, 6)),
        ({"window_size": (7, 7, 7)}, EncoderConfig(12, 7)),
        ({"in_chans": 4}, EncoderConfig(12, WINDOW, in_channels=4)),
        ({"depths": (1, 2, 3, 2)}, EncoderConfig(12, WINDOW, depths=(1, 2, 3, 2))),
        ({"num_heads": (2, 4, 8, 16)}, EncoderConfig(12, WINDOW, num_heads=(2, 4, 8, 16))),
        ({"use_v2": False}, EncoderConfig(12, WINDOW, use_v2=False)),
    ],
)
def test_architecture_is_read_off_the_tensors(
    options: dict[str, Any], config: EncoderConfig, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    state = monai_swin(**options).state_dict()
    torch.save(prefixed("swinViT.", state), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == config
    assert compare(checkpoint, SwinEncoder(config)).fraction == 1


def test_half_precision_weights_become_float32(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in v2.state_dict().items()}, path
    )
    weight = SwinEncoder.from_checkpoint(path).swin.patch_embed.proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, v2.patch_embed.proj.weight.half().float())


def names_without_index(state: Tensors) -> list[str]:
    return [name for name in state if not name.endswith("relative_position_index")]


def test_absent_index_buffers_do_not_count(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = v2.state_dict()
    torch.save({name: state[name] for name in names_without_index(state)}, path)
    report = SwinEncoder.from_checkpoint(path).report
    assert report is not None
    assert (report.fraction, report.missing) == (1, ())


def test_another_order_of_window_positions_is_refused(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(
        {k: v.flip(0) if k.endswith("position_index") else v for k, v in v2.state_dict().items()},
        path,
    )
    with pytest.raises(CheckpointError, match="another order of window positions"):
        SwinEncoder.from_checkpoint(path)


def test_a_few_missing_tensors_load_with_a_warning(
    v2: SwinTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pt"
    state = dict(v2.state_dict())
    del state["layers4c.0.layer.conv2.conv.weight"]
    state["layers9_typo"] = torch.ones(1)
    state["patch_embed.norm.weight"] = torch.ones(12)
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        report = SwinEncoder.from_checkpoint(path).report
    assert report is not None
    assert report.missing == ("layers4c.0.layer.conv2.conv.weight",)
    assert report.unexpected == ("patch_embed.norm.weight",)
    assert report.outside == ("layers9_typo",)
    assert 0.95 < report.fraction < 1
    assert str(report) in caplog.text
    assert json.loads(json.dumps(report.as_dict()))["missing"] == list(report.missing)


@pytest.mark.parametrize(("share", "accepted"), [(0.96, True), (0.94, False)])
def test_the_bound_is_95_percent(
    v2: SwinTransformer, tmp_path: Path, share: float, accepted: bool
) -> None:
    path = tmp_path / "weights.pt"
    state = v2.state_dict()
    names = names_without_index(state)
    # norms only, so that the architecture stays readable
    spare = [name for name in names if "norm2.bias" in name or "proj.bias" in name][1:]
    dropped = spare[: len(names) - round(share * len(names))]
    torch.save({name: state[name] for name in names if name not in dropped}, path)
    if accepted:
        SwinEncoder.from_checkpoint(path)
        return
    with pytest.raises(CheckpointError) as caught:
        SwinEncoder.from_checkpoint(path)
    assert str(path) in str(caught.value)
    assert f"{dropped[0]} (missing)" in str(caught.value)


def test_wrong_shapes_are_refused_by_name(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = {
        name: tensor[..., :-1] if "qkv" in name or "linear" in name else tensor
        for name, tensor in v2.state_dict().items()
    }
    torch.save(state, path)
    with pytest.raises(
        CheckpointError,
        match=r"layers1\.0\.blocks\.0\.attn\.qkv\.weight \(needs \[36, 12\], has \[36, 11\]\)",
    ):
        SwinEncoder.from_checkpoint(path)
    checkpoint = read_checkpoint(path)
    text = str(compare(checkpoint, SwinEncoder(checkpoint.config)))
    assert "mismatched  48" in text
    assert "layers4.0.blocks.1.mlp.linear2.bias" in text


def test_weights_that_are_not_finite_are_refused(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = {name: tensor.clone() for name, tensor in v2.state_dict().items()}
    state["patch_embed.proj.weight"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight.*NaN"):
        SwinEncoder.from_checkpoint(path)


def test_another_architecture_than_demanded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    SwinEncoder.from_size("tiny", window_size=WINDOW).save(path)
    demanded = EncoderConfig(feature_size=24, window_size=7)
    with pytest.raises(
        CheckpointError, match=r"feature_size 12 instead of 24, window_size 4 instead of 7"
    ):
        SwinEncoder.from_checkpoint(path, expected=demanded)
    found = SwinEncoder.from_checkpoint(path, expected=EncoderConfig(12, WINDOW))
    assert found.config.feature_size == 12


def test_stated_architecture_must_be_true(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    header = {"architecture": EncoderConfig(24, WINDOW).as_dict()}
    save_file(v2.state_dict(), path, metadata={"napari_s2dc": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"Only .* % of the encoder's tensors match"):
        SwinEncoder.from_checkpoint(path)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def _write_missing(path: Path, _: Tensors) -> None:
    pass


def _write_folder(path: Path, _: Tensors) -> None:
    path.mkdir()


def _write_empty(path: Path, _: Tensors) -> None:
    path.touch()


def _write_text(path: Path, _: Tensors) -> None:
    path.write_text("<!DOCTYPE html><html>Not found</html>", encoding="utf-8")


def _write_archive(path: Path, _: Tensors) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights here")


def _write_truncated_torch(path: Path, state: Tensors) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_truncated_pickle(path: Path, state: Tensors) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_truncated_safetensors(path: Path, state: Tensors) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_code(path: Path, state: Tensors) -> None:
    torch.save({"state_dict": state, "code": _Code()}, path)


def _write_pickled_code(path: Path, _: Tensors) -> None:
    path.write_bytes(pickle.dumps(_Code(), protocol=2))


def _write_new_pickle(path: Path, _: Tensors) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0], "code": _Code()}, protocol=4))


def _write_module(path: Path, _: Tensors) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def _write_list(path: Path, _: Tensors) -> None:
    torch.save([torch.ones(2)], path)


def _write_other_network(path: Path, _: Tensors) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def _write_two_dimensional(path: Path, state: Tensors) -> None:
    torch.save({**state, "patch_embed.proj.weight": torch.ones(12, 1, 2, 2)}, path)


def _write_large_patches(path: Path, state: Tensors) -> None:
    torch.save({**state, "patch_embed.proj.weight": torch.ones(12, 1, 4, 4, 4)}, path)


def _write_flat_windows(path: Path, state: Tensors) -> None:
    table = "layers1.0.blocks.0.attn.relative_position_bias_table"
    torch.save({**state, table: torch.ones(7 * 7 * 3, 3)}, path)


def _write_odd_size(path: Path, _: Tensors) -> None:
    torch.save({"patch_embed.proj.weight": torch.ones(10, 1, 2, 2, 2)}, path)


def _write_bad_metadata(path: Path, state: Tensors) -> None:
    save_file(state, path, metadata={"napari_s2dc": "{"})


def _write_newer_metadata(path: Path, state: Tensors) -> None:
    header = {"architecture": {"feature_size": 12, "attention": "new"}}
    save_file(state, path, metadata={"napari_s2dc": json.dumps(header)})


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (_write_missing, "There is no checkpoint file"),
        (_write_folder, "is a folder"),
        (_write_empty, "is empty"),
        (_write_text, "is not a checkpoint"),
        (_write_archive, "another kind of archive"),
        (_write_truncated_torch, "truncated or damaged"),
        (_write_truncated_pickle, "truncated or damaged"),
        (_write_truncated_safetensors, "truncated or damaged"),
        (_write_code, r"holds Python code or objects \((posix|nt)\.mkdir\)"),
        (_write_pickled_code, r"holds Python code or objects \((posix|nt)\.mkdir\)"),
        (_write_new_pickle, "holds Python code or objects, not only tensors"),
        (_write_module, r"holds Python code or objects \(torch\.nn\.modules\.linear\.Linear\)"),
        (_write_list, "holds a list"),
        (_write_other_network, r"holds no Swin encoder \(it starts with weight, bias\)"),
        (_write_two_dimensional, r"patches of \[2, 2\] voxels"),
        (_write_large_patches, r"patches of \[4, 4, 4\] voxels"),
        (_write_flat_windows, "not cubes"),
        (_write_odd_size, "multiple of 12"),
        (_write_bad_metadata, "not valid JSON"),
        (_write_newer_metadata, "Unknown encoder setting: attention"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(
    write: Callable[[Path, Tensors], None],
    sentence: str,
    v2: SwinTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    write(path, v2.state_dict())
    with pytest.raises(CheckpointError, match=sentence) as caught:
        SwinEncoder.from_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(v2: SwinTransformer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(v2.state_dict(), path)
    path.chmod(0)
    with pytest.raises(CheckpointError, match=r"Cannot read .*: Permission denied"):
        SwinEncoder.from_checkpoint(path)


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_safetensors_are_known_whatever_their_header_length(padding: int, tmp_path: Path) -> None:
    # the file's first byte is the lowest of that length: 0x80 there is also how a pickle starts
    path = tmp_path / "weights"
    save_file({"a": torch.ones(1)}, path, metadata={"note": "x" * padding})
    assert torch.equal(read_tensors(path).tensors["a"], torch.ones(1))


def test_first_bytes_tell_checkpoints_from_scans(v2: SwinTransformer, tmp_path: Path) -> None:
    torch.save(v2.state_dict(), tmp_path / "a.pt")
    save_file(v2.state_dict(), tmp_path / "b.safetensors")
    (tmp_path / "c.nii").write_bytes((348).to_bytes(4, "little") + bytes(344))
    (tmp_path / "d.nii.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    (tmp_path / "e.nrrd").write_bytes(b"NRRD0004\n# comment")
    found = [looks_like_checkpoint(path) for path in sorted(tmp_path.iterdir())]
    assert found == [True, True, False, False, False]
    assert not looks_like_checkpoint(tmp_path / "missing")
