"""The fast Swin transformer is MONAI's: weights, names, stages and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer

from napari_s2dc.engine.allocator import keep_large_buffers
from napari_s2dc.method import residual
from napari_s2dc.method.attention_plan import attention_plan
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.method.swin import FastSwinTransformer

CASES = [
    # Window 4: two layers with windows that end outside the grid, one smaller than a window
    pytest.param(4, (40, 48, 32), True, id="window 4, padded"),
    pytest.param(4, (32, 64, 32), False, id="window 4, whole"),
    pytest.param(6, (32, 48, 32), False, id="window 6, padded"),
    pytest.param(7, (32, 32, 32), True, id="window 7, padded"),
    # A shifted window with one token of the grid, and sides that patches do not divide
    pytest.param(3, (37, 38, 33), False, id="odd sides"),
]

CASES_AND_CONVOLUTIONS = [
    pytest.param(*case.values, large, id=f"{case.id}, large crops' convolutions: {large}")
    for case in CASES
    for large in (False, True)
    if case.values[2] or not large  # only version 2 has convolutions
]


def _networks(
    side: int, use_v2: bool, dtype: torch.dtype
) -> tuple[FastSwinTransformer, SwinTransformer]:
    """Ours and MONAI's with the same weights, large enough that every part of them counts."""
    settings = {
        "in_chans": 1,
        "embed_dim": 12,
        "window_size": (side,) * 3,
        "patch_size": (2, 2, 2),
        "depths": (2, 2, 2, 2),
        "num_heads": (3, 6, 12, 24),
        "use_v2": use_v2,
    }
    torch.manual_seed(side)
    ours, theirs = FastSwinTransformer(**settings), SwinTransformer(**settings)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_()
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def _image(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 1, *shape, generator=generator).to(dtype)


@pytest.mark.parametrize(("side", "shape", "use_v2"), CASES)
def test_stages_in_single_precision(side: int, shape: tuple[int, ...], use_v2: bool) -> None:
    ours, theirs = _networks(side, use_v2, torch.float32)
    image = _image(shape, torch.float32)
    with torch.no_grad():
        for normalize in (True, False):
            stages = zip(ours(image, normalize), theirs(image, normalize), strict=True)
            for mine, reference in stages:
                assert mine.shape == reference.shape
                assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize(("side", "shape", "use_v2", "large"), CASES_AND_CONVOLUTIONS)
def test_stages_and_gradients_in_double_precision(
    side: int, shape: tuple[int, ...], use_v2: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(residual, "is_quicker", _of_three)
    ours, theirs = _networks(side, use_v2, torch.float64)
    gradients = []
    for network in (ours, theirs):
        image = _image(shape, torch.float64)[:1].requires_grad_()
        generator = torch.Generator().manual_seed(4)
        loss = image.new_zeros(())
        for stage in network(image):
            loss = loss + (stage * torch.randn(stage.shape, generator=generator)).sum()
        loss.backward()
        gradients.append({"image": image.grad, **_gradients(network)})
    mine, reference = gradients
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        assert (mine[name] - expected).norm() <= 1e-7 * expected.norm() + 1e-9, name


def _of_three(tokens: torch.Tensor, kernel: torch.Tensor) -> bool:
    return kernel.shape[2:] == (3, 3, 3)


def _gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_in_single_precision(batch: int) -> None:
    ours, theirs = _networks(4, True, torch.float32)
    # One image alone takes another path through small convolutions than two
    image = _image((32, 32, 32), torch.float32)[:batch]
    for network in (ours, theirs):
        torch.stack([stage.pow(3).mean() for stage in network(image)]).sum().backward()
    reference = _gradients(theirs)
    for name, mine in _gradients(ours).items():
        assert (mine - reference[name]).norm() <= 1e-3 * reference[name].norm() + 1e-7, name


@pytest.mark.parametrize("use_v2", [True, False])
def test_weights_go_both_ways(use_v2: bool) -> None:
    ours, theirs = _networks(4, use_v2, torch.float32)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("number", range(5))
def test_one_stage_without_the_later_ones(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = _networks(4, True, torch.float32)
    image = _image((32, 32, 32), torch.float32)
    with torch.no_grad():
        expected = ours(image)[number]
        for later in range(number + 1, 5):
            monkeypatch.setattr(ours, f"layers{later}", None)
        assert torch.equal(ours.stages(image, [number])[0], expected)
        first, same = ours.stages(image, [0, number])
        assert first.shape[1] == 12
        assert torch.equal(same, expected)


@pytest.mark.parametrize(
    ("shapes", "large", "borders"),
    [
        # Another size is compiled with symbols for it, which takes 20 s: once, with all there is.
        # Borders are found in front of the network, which is then the same.
        ([(2, 32, 32, 32), (2, 32, 48, 32)], False, True),
        ([(1, 32, 32, 32)], False, False),
        ([(2, 32, 32, 32)], True, False),
    ],
)
def test_no_graph_break_under_compile(
    shapes: list[tuple[int, ...]], large: bool, borders: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(residual, "is_quicker", _of_three)
    attention_plan.cache_clear()
    torch._dynamo.reset()
    ours, _ = _networks(4, True, torch.float32)
    ours.borders = borders
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for batch, *shape in shapes:
        image = _image(tuple(shape), torch.float32)[:batch]
        for mine, expected in zip(compiled(image), ours(image), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_inference_mode_leaves_nothing_that_training_cannot_use() -> None:
    attention_plan.cache_clear()
    ours, _ = _networks(4, True, torch.float32)
    image = _image((32, 32, 32), torch.float32)
    with torch.inference_mode():
        expected = ours(image)
    stages = ours(image)
    stages[-1].square().sum().backward()
    for mine, reference in zip(stages, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_v2", [True, False])
def test_autocast_is_near_single_precision(use_v2: bool) -> None:
    ours, _ = _networks(4, use_v2, torch.float32)
    image = _image((32, 32, 32), torch.float32)
    expected = ours(image)
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(image)
    torch.stack([stage.float().square().mean() for stage in half]).sum().backward()
    for mine, reference in zip(half, expected, strict=True):
        assert (mine - reference).norm() <= 0.05 * reference.norm()
    assert all(gradient.isfinite().all() for gradient in _gradients(ours).values())


def test_gradients_under_autocast_do_not_depend_on_what_memory_held() -> None:
    keep_large_buffers()
    encoder = SwinEncoder.from_size("tiny", window_size=4)
    for _ in range(2):
        # Freed at once, and not given back to the system.
        for count in (100, 1000, 10**4, 10**5, 10**6):
            [torch.full((count,), math.nan, dtype=torch.bfloat16) for _ in range(20)]
            [torch.full((count,), math.nan) for _ in range(20)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            stages = encoder(torch.rand(2, 1, 32, 32, 32))
        torch.stack([stage.float().square().mean() for stage in stages]).sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in encoder.parameters())
