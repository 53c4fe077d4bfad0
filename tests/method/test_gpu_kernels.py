"""The Triton kernels give what torch's operations give; interpreted where there is no GPU."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_s2dc.method import kernels, residual, swin
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder
from napari_s2dc.method.window_attention import window_attention

GPU = torch.device("cuda")
HERE = GPU if torch.cuda.is_available() else torch.device("cpu")
HALF = [torch.float16, *([torch.bfloat16] if HERE == GPU else [])]  # not interpreted rightly


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.device(HERE):
        yield


@pytest.fixture
def operators() -> None:
    pytest.importorskip("triton")  # see test_in_a_process_of_its_own
    for name in ("window_attention_gpu", "norms_gpu"):
        importlib.import_module(f"napari_s2dc.method.{name}")


def test_in_a_process_of_its_own() -> None:
    """All tests here, where Triton is not in the environment but beside it."""
    beside = Path(sys.prefix) / "kernels"
    if importlib.util.find_spec("triton") or not beside.is_dir():
        pytest.skip("Triton is in the environment, or nowhere.")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        env={k: v for k, v in os.environ.items() if "PYTEST" not in k}
        | {"PYTHONPATH": str(beside)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout  # and this is the one


def compare(
    mine: Callable[[], Tensor],
    reference: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    allowed: float = 2e-5,
) -> None:
    """Compare results and all gradients."""
    results = mine(), reference()
    weights = torch.randn(results[1].shape)
    gradients = [torch.autograd.grad((one * weights).sum(), leaves) for one in results]
    for one, other in (results, *zip(*gradients, strict=True)):
        assert (one - other).norm() <= allowed * other.norm()


Case = tuple[tuple[int, int, int, int], int, int, int, bool]
CASES: list[Case] = [
    ((1, 7, 8, 9), 7, 1, 16, False),  # boxes of several tiles, and with padding
    ((1, 9, 5, 6), 5, 2, 4, True),  # few features
    ((2, 3, 3, 7), 3, 2, 16, True),
    ((1, 5, 2, 4), 7, 1, 24, False),  # smaller than a window, odd features
]


def attention_of(case: Case) -> tuple[list[Tensor], Callable[..., Tensor], Callable[[], Tensor]]:
    """What goes into attention within windows; by kernels, of some precision; and by torch."""
    images, side, heads, features, shifted = case
    torch.manual_seed(0)
    channels = heads * features
    qkv, same = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels, bias=False)
    same.weight.data = torch.eye(channels)
    table = torch.randn((2 * side - 1) ** 3, heads, requires_grad=True)
    tokens = torch.randn(*images, channels, requires_grad=True)

    def mine(dtype: torch.dtype = torch.float32) -> Tensor:
        rows = qkv(F.pad(tokens.flatten(0, 3), (0, 0, 0, 1))).to(dtype)
        mixed = kernels.tiled_attention(rows, table, list(images), side, shifted)
        return mixed.float().view(tokens.shape)

    def reference() -> Tensor:
        return window_attention(tokens, qkv, same, table, side, shifted)

    return [tokens, table, *qkv.parameters()], mine, reference


@pytest.mark.parametrize("case", CASES)
def test_attention(operators: None, case: Case) -> None:
    leaves, mine, reference = attention_of(case)
    compare(mine, reference, leaves)


@pytest.mark.parametrize("dtype", HALF)
def test_attention_in_half_precision(operators: None, dtype: torch.dtype) -> None:
    leaves, mine, reference = attention_of(CASES[1])
    compare(lambda: mine(dtype), reference, leaves, allowed=2e-3 if dtype == HALF[0] else 2e-2)


def test_many_boxes_share_the_gradient_of_biases(
    operators: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("napari_s2dc.method.window_attention_gpu")
    leaves, mine, reference = attention_of(((5, 2, 4, 2), 2, 1, 4, False))
    module._tiles.cache_clear()
    # Ten boxes of one kind
    monkeypatch.setattr(module, "_BOXES_AT_ONCE", 4)
    compare(mine, reference, leaves)
    assert module._tiles((5, 2, 4, 2), 2, False, HERE).pairs[:, 2].tolist() == [4, 4, 2]
    module._tiles.cache_clear()


@pytest.mark.parametrize("channels", [12, 48, 100, 400])
def test_layer_norm(operators: None, channels: int) -> None:
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
def test_instance_norm_far_from_zero(operators: None, with_residual: bool) -> None:
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
        allowed=1e-4,  # a digit in the last place of 300 is a hundred-thousandth of the deviation
    )


def test_what_a_compiler_is_told_holds(operators: None) -> None:
    """Shapes and strides of tensors without values, also for inputs that are not contiguous."""
    torch.manual_seed(0)
    ops = torch.ops.napari_s2dc
    across = torch.randn(2, 20, 30).mT.requires_grad_()
    qkv, rows = (torch.randn(n, 19).T.requires_grad_() for n in (24, 20))
    table = torch.randn(27, 2, requires_grad=True)
    calls = [
        (ops.normalise_and_rectify, (across, across, 1e-5, 0.01)),
        (ops.normalise_and_rectify, (across, None, 1e-5, 0.01)),
        (ops.layer_norm, (torch.randn(8, 30).T, None, None, 1e-5, torch.float16, 1)),
        (ops.layer_norm, (rows, torch.ones(20), torch.ones(20), 1e-5, torch.float32, 0)),
        (ops.tiled_attention, (qkv, table, [1, 2, 3, 3], 2, True)),
    ]
    for call, given in calls:
        torch.library.opcheck(
            call.default,
            given,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static"),
        )


def as_on_a_gpu(norm: nn.LayerNorm, perceptron: nn.Module, tokens: Tensor) -> Tensor:
    added: Tensor = tokens + perceptron(swin._normalised(norm, tokens))
    return added


def test_encoder(operators: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = SwinEncoder(EncoderConfig(feature_size=12, window_size=3))
    for parameter in encoder.parameters():
        # Tables of biases and shifts are nearly 0 at the start
        parameter.data += 0.1 * torch.randn_like(parameter)
    image = torch.rand(2, 1, 12, 8, 16)
    # Behind these, a norm of one or two values makes much of every rounding
    parts = ("patch_embed", "layers1", "layers2")
    leaves = [value for name, value in encoder.swin.named_parameters() if name.startswith(parts)]

    def stages(kernels_or_not: bool) -> Tensor:
        with monkeypatch.context() as patch:
            for module in (swin, residual):
                patch.setattr(module, "have_kernels", lambda *_: kernels_or_not)
            patch.setattr(swin, "add_perceptron", as_on_a_gpu)
            return torch.cat([stage.flatten() for stage in encoder.stages(image, (0, 1, 2))])

    compare(lambda: stages(True), lambda: stages(False), leaves, allowed=1e-4)


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_asked", False)
    monkeypatch.setattr(kernels, "_usable", False)
    monkeypatch.setattr(kernels, "_would_crash", lambda: False)
    if HERE != GPU:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_kernels_are_tried_before_they_are_used(
    operators: None,
    asked_anew: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    works = kernels._works
    monkeypatch.setattr(kernels, "_works", lambda device: works(HERE))
    kernels.load_kernels(GPU)
    assert kernels._usable
    assert not caplog.records
    assert not kernels.have_kernels(torch.zeros(1, device="cpu"))


@pytest.mark.parametrize("fault", ["no compiler", "wrong results"])
def test_a_gpu_without_a_compiler_goes_on_without_kernels(
    operators: None,
    asked_anew: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    def normalise_and_rectify(tokens: Tensor, residual: Tensor, *_: object) -> Tensor:
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")
        return tokens + residual

    works = kernels._works
    monkeypatch.setattr(kernels, "_works", lambda device: works(HERE))
    monkeypatch.setattr(kernels, "normalise_and_rectify", normalise_and_rectify)
    with caplog.at_level(logging.WARNING):
        kernels.load_kernels(GPU)
        kernels.load_kernels(GPU)
    assert not kernels._usable
    [record] = caplog.records
    told = "Failed to find C compiler." if fault == "no compiler" else "other results"
    assert told in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("reason", ["an old GPU", "software OpenGL"])
def test_where_kernels_are_not_even_tried(
    operators: None,
    asked_anew: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    monkeypatch.setattr(kernels, "_works", lambda device: True)
    if reason == "an old GPU":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    else:
        monkeypatch.setattr(kernels, "_would_crash", lambda: True)
    kernels.load_kernels(GPU)
    assert not kernels._usable
    told = [record.message for record in caplog.records]
    assert [reason in message for message in told] == [True] * (reason == "software OpenGL")


@pytest.mark.parametrize("loaded", ["/usr/lib/libLLVM-15.so.1", "/usr/lib/libGL.so.1"])
def test_software_opengl_is_known_by_its_llvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    (tmp_path / "maps").write_text(f"7f00-7f01 r-xp 00000000 08:01 7 {loaded}\n")
    monkeypatch.setattr(kernels, "_MAPS", tmp_path / "maps")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert kernels._would_crash() == ("LLVM" in loaded)
    monkeypatch.setitem(sys.modules, "triton", object())  # its LLVM is there already
    assert not kernels._would_crash()
    kernels.hide_triton()
    assert sys.modules["triton"]


@pytest.mark.parametrize("loaded", ["/usr/lib/libLLVM-15.so.1", "/usr/lib/libGL.so.1"])
def test_beside_software_opengl_torch_does_without_triton(tmp_path: Path, loaded: str) -> None:
    """In a process of its own: an optimiser imports Triton, and here a stand-in that tells."""
    (tmp_path / "maps").write_text(f"7f00-7f01 r-xp 00000000 08:01 7 {loaded}\n")
    (tmp_path / "triton.py").write_text("raise ImportError(print('imported'))\n")
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from napari_s2dc.method import kernels
kernels._MAPS = Path(sys.argv[1]) / "maps"
from napari_s2dc.engine.loading import load_optimisers
load_optimisers()
import torch
torch.optim.AdamW([torch.ones(1, requires_grad=True)])
print(kernels._would_crash())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert ("imported" in done.stdout) != ("LLVM" in loaded)
    assert done.stdout.endswith("True\n") == ("LLVM" in loaded)


def test_only_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_usable", True)

    class OnGpu:
        device, dtype = GPU, torch.bfloat16

    assert kernels.have_kernels(OnGpu(), 16)  # type: ignore[arg-type]
    assert not kernels.have_kernels(OnGpu(), 64)  # type: ignore[arg-type]
    OnGpu.dtype = torch.float64
    assert not kernels.have_kernels(OnGpu())  # type: ignore[arg-type]
