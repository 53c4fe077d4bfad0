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


def test_keeps_its_input_and_weights_only(layers: tuple[nn.LayerNorm, MLPBlock]) -> None:
    tokens = torch.randn(1000, CHANNELS).double().requires_grad_()
    sizes: list[int] = []

    def note(saved: torch.Tensor) -> torch.Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        add_perceptron(*layers, tokens)
    assert [size for size in sizes if size >= 1000] == [tokens.numel()]
