"""Perceptrons of Swin blocks: MONAI's results, and no memory of what lies between."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.mlp import MLPBlock
from torch import nn

from napari_s2dc.method import perceptron
from napari_s2dc.method.perceptron import add_perceptron

CHANNELS = 12


@pytest.fixture
def layers() -> tuple[nn.LayerNorm, MLPBlock]:
    """Norm and perceptron with scale and shift that are not 1 and 0."""
    torch.manual_seed(2)
    norm = nn.LayerNorm(CHANNELS).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    block = MLPBlock(CHANNELS, 4 * CHANNELS, act="GELU", dropout_mode="swin").double()
    return norm, block


def _gradients(
    layers: tuple[nn.LayerNorm, MLPBlock], tokens: torch.Tensor, result: torch.Tensor
) -> list[torch.Tensor]:
    weights = torch.rand(result.shape, generator=torch.Generator().manual_seed(4))
    variables = [tokens, *layers[0].parameters(), *layers[1].parameters()]
    return list(torch.autograd.grad((result * weights).sum(), variables))


@pytest.mark.parametrize("rows", [1, 7, 60, 1000])
def test_equals_the_plain_layers(
    layers: tuple[nn.LayerNorm, MLPBlock], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptron, "_VALUES_AT_ONCE", rows * CHANNELS)
    norm, block = layers
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 3, 2, 5, CHANNELS, generator=generator).double().requires_grad_()
    ours, plain = add_perceptron(norm, block, tokens), tokens + block(norm(tokens))
    torch.testing.assert_close(ours, plain)
    found, expected = (_gradients(layers, tokens, result) for result in (ours, plain))
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_frozen_layers_and_features_that_lie_otherwise(
    layers: tuple[nn.LayerNorm, MLPBlock],
) -> None:
    norm, block = layers
    norm.requires_grad_(False)
    block.requires_grad_(False)
    features = torch.randn(2, CHANNELS, 3, 4, 5).double().requires_grad_()
    gradients = []
    for result in (
        add_perceptron(norm, block, features.movedim(1, -1)),
        features.movedim(1, -1) + block(norm(features.movedim(1, -1))),
    ):
        gradients += torch.autograd.grad(result.movedim(-1, 1).square().sum(), [features])
    torch.testing.assert_close(*gradients)


def test_the_backward_pass_is_precise_under_autocast() -> None:
    torch.manual_seed(5)
    norm = nn.LayerNorm(CHANNELS)
    block = MLPBlock(CHANNELS, 4 * CHANNELS, act="GELU", dropout_mode="swin")
    tokens = torch.randn(20, CHANNELS, requires_grad=True)
    gradients = []
    for enabled in (False, True):
        result = add_perceptron(norm, block, tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients += torch.autograd.grad(result.sum(), [tokens])
    assert torch.equal(*gradients)


def test_keeps_no_hidden_layer(layers: tuple[nn.LayerNorm, MLPBlock]) -> None:
    norm, block = layers
    tokens = torch.randn(1000, CHANNELS).double().requires_grad_()
    known = {parameter.data_ptr() for parameter in (*norm.parameters(), *block.parameters())}
    sizes: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        if saved.data_ptr() not in known:
            sizes[saved.data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        add_perceptron(norm, block, tokens)
    hidden = 4 * CHANNELS
    assert sorted(sizes.values()) == [hidden, hidden * CHANNELS, tokens.numel()]


def test_a_compiler_knows_shapes_and_gradients(layers: tuple[nn.LayerNorm, MLPBlock]) -> None:
    norm, block = layers
    tokens = torch.randn(30, CHANNELS).double().requires_grad_()
    weights = [block.linear1.weight, block.linear1.bias, block.linear2.weight, block.linear2.bias]
    operator = torch.ops.napari_s2dc.add_perceptron.default
    torch.library.opcheck(operator, (tokens, *weights, norm.eps))
