"""The Triton kernels give what torch's operations give; here interpreted, on the CPU."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_s2dc.method import kernels, residual, swin
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder
from napari_s2dc.method.window_attention import window_attention

GPU = torch.device("cuda")


@pytest.fixture
def interpreted() -> None:
    pytest.importorskip("triton")  # not to be had on every system
    for name in ("window_attention_gpu", "norms_gpu"):
        importlib.import_module(f"napari_s2dc.method.{name}")


def compare(
    mine: Callable[[], Tensor],
    reference: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    allowed: float = 2e-5,
) -> None:
    """Compare results and all gradients."""
    results = mine(), reference()
    weights = torch.randn(results[1].shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((one * weights).sum(), leaves) for one in results]
    pairs = [results, *zip(*gradients, strict=True)]
    for one, other in pairs:
        assert (one - other).norm() <= allowed * other.norm()


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("images", "side", "heads", "features"),
    [
        ((1, 4, 6, 9), 4, 3, 4),  # boxes of several tiles, with padding, few features
        ((2, 3, 3, 7), 3, 2, 16),
        ((1, 5, 2, 4), 7, 1, 24),  # smaller than a window, odd features
    ],
)
def test_attention(
    interpreted: None,
    images: tuple[int, int, int, int],
    side: int,
    heads: int,
    features: int,
    shifted: bool,
) -> None:
    torch.manual_seed(0)
    channels = heads * features
    qkv, same = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
    with torch.no_grad():
        same.weight.copy_(torch.eye(channels))
        same.bias.zero_()
    table = torch.randn((2 * side - 1) ** 3, heads, requires_grad=True)
    tokens = torch.randn(*images, channels, requires_grad=True)

    def mine() -> Tensor:
        rows = qkv(F.pad(tokens.flatten(0, 3), (0, 0, 0, 1)))
        mixed = kernels.tiled_attention(rows, table, list(images), side, shifted)
        return mixed.view(tokens.shape)

    compare(
        mine,
        lambda: window_attention(tokens, qkv, same, table, side, shifted),
        [tokens, table, *qkv.parameters()],
    )


def test_many_boxes_share_the_gradient_of_biases(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("napari_s2dc.method.window_attention_gpu")
    monkeypatch.setattr(module, "_BOXES_AT_ONCE", 3)
    module._tiles.cache_clear()
    test_attention(None, (1, 2, 4, 6), 2, 2, 4, True)
    module._tiles.cache_clear()


@pytest.mark.parametrize("channels", [12, 48, 100])
def test_layer_norm(interpreted: None, channels: int) -> None:
    torch.manual_seed(0)
    tokens = (3 * torch.randn(70, channels) + 5).requires_grad_()
    weight, bias = (torch.randn(channels, requires_grad=True) for _ in range(2))
    compare(
        lambda: kernels.layer_norm(tokens, weight, bias, 1e-5, torch.float32, spare=2),
        lambda: F.pad(F.layer_norm(tokens, (channels,), weight, bias), (0, 0, 0, 2)),
        [tokens, weight, bias],
    )
    compare(
        lambda: kernels.layer_norm(tokens, None, None, 1e-5, torch.float32),
        lambda: F.layer_norm(tokens, (channels,)),
        [tokens],
    )
    assert kernels.layer_norm(tokens, None, None, 1e-5, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("with_residual", [False, True])
def test_instance_norm_far_from_zero(interpreted: None, with_residual: bool) -> None:
    torch.manual_seed(0)
    tokens = (2 * torch.randn(2, 5, 6, 7, 20) + 300).requires_grad_()
    other = torch.randn_like(tokens).requires_grad_()

    def reference() -> Tensor:
        normalised = F.instance_norm(tokens.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        return F.leaky_relu(normalised + other if with_residual else normalised, 0.01)

    compare(
        lambda: kernels.normalise_and_rectify(tokens, other if with_residual else None, 1e-5, 0.01),
        reference,
        [tokens, other] if with_residual else [tokens],
    )


def test_encoder(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=3))
    for parameter in encoder.parameters():
        # Tables of biases and shifts are nearly 0 at the start
        parameter.data += 0.1 * torch.randn_like(parameter)
    image = torch.rand(2, 1, 12, 8, 16)
    # Behind these, a norm of one or two values makes much of every rounding
    parts = ("patch_embed", "layers1", "layers2")
    leaves = [value for name, value in encoder.swin.named_parameters() if name.startswith(parts)]

    def stages() -> Tensor:
        return torch.cat([stage.flatten() for stage in encoder.stages(image, (0, 1, 2))])

    def by_kernels() -> Tensor:
        with monkeypatch.context() as patch:
            for module in (swin, residual):
                patch.setattr(module, "have_kernels", lambda x: True)
            return stages()

    compare(by_kernels, stages, leaves, allowed=1e-4)


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_asked", False)
    monkeypatch.setattr(kernels, "_usable", False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_kernels_are_tried_before_they_are_used(
    interpreted: None, asked_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = kernels._works
    monkeypatch.setattr(kernels, "_works", lambda device: works(torch.device("cpu")))
    kernels.load_kernels(GPU)
    assert kernels._usable
    assert not kernels.have_kernels(torch.zeros(1))


@pytest.mark.parametrize("fault", ["no compiler", "wrong results"])
def test_a_gpu_without_a_compiler_goes_on_without_kernels(
    interpreted: None,
    asked_anew: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    def works(device: torch.device) -> bool:
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")
        return False

    monkeypatch.setattr(kernels, "_works", works)
    with caplog.at_level(logging.WARNING):
        kernels.load_kernels(GPU)
        kernels.load_kernels(GPU)
    assert not kernels._usable
    [record] = caplog.records
    told = "Failed to find C compiler." if fault == "no compiler" else "other results"
    assert told in record.message
    assert "\n" not in record.message


def test_older_gpus_are_left_alone(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kernels.load_kernels(GPU)
    assert not kernels._usable
