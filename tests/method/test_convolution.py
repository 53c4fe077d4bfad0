"""Convolutions with half of the multiplications: torch's results and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor

from napari_s2dc.method import convolution
from napari_s2dc.method.convolution import convolve, is_quicker
from napari_s2dc.method.residual import residual_block


def _tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def _kernel(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def _plain(tokens: Tensor, kernel: Tensor) -> Tensor:
    return F.conv3d(tokens.permute(0, 4, 1, 2, 3), kernel, padding=1).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("values", [1, 1 << 22], ids=["tile by tile", "all at once"])
@pytest.mark.parametrize("depth", [1, 3, 4, 5, 8, 13])
def test_equals_torch(depth: int, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_VALUES_AT_ONCE", values)
    tokens, kernel = _tokens(2, depth, 3, 5, 2).requires_grad_(), _kernel(3, 2, 3, 3, 3)
    kernel.requires_grad_()
    found = []
    for result in (convolve(tokens, kernel), _plain(tokens, kernel)):
        weights = _tokens(*result.shape)
        found.append([result, *torch.autograd.grad((result * weights).sum(), [tokens, kernel])])
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)


def test_tokens_that_lie_otherwise_and_a_frozen_kernel() -> None:
    features, kernel = _tokens(2, 3, 6, 4, 5).requires_grad_(), _kernel(2, 3, 3, 3, 3)
    tokens = features.permute(0, 2, 3, 4, 1)
    gradients = [
        torch.autograd.grad(way(tokens, kernel).movedim(-1, 1).square().sum(), [features])[0]
        for way in (convolve, _plain)
    ]
    torch.testing.assert_close(*gradients)


def test_rounding_in_single_precision() -> None:
    tokens, kernel = _tokens(1, 16, 16, 16, 24), _kernel(24, 24, 3, 3, 3)
    exact = _plain(tokens, kernel)
    found = convolve(tokens.float(), kernel.float())
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_precise_under_autocast_going_backward_too() -> None:
    tokens = _tokens(1, 5, 4, 4, 3, dtype=torch.float32).requires_grad_()
    kernel = _kernel(2, 3, 3, 3, 3, dtype=torch.float32).requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = convolve(tokens, kernel)
            found.append([result, *torch.autograd.grad(result.square().sum(), [tokens, kernel])])
    for mine, reference in zip(*found, strict=True):
        assert torch.equal(mine, reference)


def test_only_where_it_pays() -> None:
    def asked(grid: int, channels: int, side: int = 3, dtype: torch.dtype = torch.float32) -> bool:
        kernel = torch.empty(channels, channels, side, side, side, dtype=dtype)
        return is_quicker(torch.empty(1, grid, grid, grid, channels, dtype=dtype), kernel)

    assert asked(24, 48)
    assert asked(12, 96)
    assert not asked(24, 24)
    assert not asked(48, 12)
    assert not asked(12, 48)
    assert not asked(6, 384)
    assert not asked(24, 48, side=1)
    assert not asked(24, 48, dtype=torch.float64)


def test_a_compiler_knows_shapes_and_gradients() -> None:
    tokens = _tokens(2, 3, 6, 4, 5).permute(0, 2, 3, 4, 1).requires_grad_()
    operator = torch.ops.napari_s2dc.convolve.default
    torch.library.opcheck(operator, (tokens, _kernel(2, 3, 3, 3, 3).requires_grad_()))


def test_residual_blocks_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    block = UnetResBlock(3, 24, 24, kernel_size=3, stride=1, norm_name="instance")
    x = _tokens(1, 20, 24, 24, 24, dtype=torch.float32).permute(0, 4, 1, 2, 3)
    shapes: list[torch.Size] = []

    def noted(tokens: Tensor, kernel: Tensor) -> Tensor:
        shapes.append(tokens.shape)
        return convolve(tokens, kernel)

    monkeypatch.setattr("napari_s2dc.method.residual.convolve", noted)
    monkeypatch.setattr(convolution, "_FEWEST_PRODUCTS", 1 << 22)
    found = []
    for way in (lambda: residual_block(block, x), lambda: block(x)):
        result = way()
        gradients = torch.autograd.grad(result.pow(3).mean(), list(block.parameters()))
        found.append([result, *gradients])
    assert shapes == [(1, 20, 24, 24, 24)] * 2
    for mine, reference in zip(*found, strict=True):
        assert (mine - reference).norm() <= 1e-4 * reference.norm()
