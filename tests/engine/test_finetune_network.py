"""The network of a fine-tuned model: MONAI's, computed in another way."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.engine.fewshot_settings import SegmentationClass
from napari_s2dc.engine.finetune_network import (
    ENCODER_PREFIX,
    network_of,
    segment_crops,
)
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.method.encoder import SwinEncoder


@pytest.mark.parametrize("batch", [1, 2])
def test_computes_what_monai_computes(tiny: SwinEncoder, batch: int) -> None:
    torch.manual_seed(1)
    network = tiny.to_swin_unetr(3).eval()
    images = torch.rand(batch, 1, 32, 64, 32)
    expected = network(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(segment_crops(network, images), expected, atol=1e-4, rtol=1e-3)


def test_gradients_are_those_of_monai(tiny: SwinEncoder) -> None:
    torch.manual_seed(1)
    network = tiny.to_swin_unetr(2)
    images, weights = torch.rand(1, 1, 32, 64, 32), torch.rand(1, 2, 32, 64, 32)
    found = []
    for forward in (network, lambda images: segment_crops(network, images)):
        network.zero_grad()
        (forward(images) * weights).mean().backward()
        found.append([one.grad.clone() for one in network.parameters() if one.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-2)


def model_of(encoder: SwinEncoder, outputs: int) -> SegmentationModel:
    network = encoder.to_swin_unetr(outputs)
    state = network.state_dict()
    return SegmentationModel(
        kind="finetune",
        encoder=encoder,
        tensors={name: one for name, one in state.items() if not name.startswith(ENCODER_PREFIX)},
        classes=tuple(
            SegmentationClass(number, f"class {number}", (1.0, 0.0, 0.0))
            for number in range(1, outputs)
        ),
        preset="mr",
        metadata={"window_vox": [32, 64, 32]},
    )


def test_a_model_makes_the_network_it_was_taken_from(tiny: SwinEncoder) -> None:
    model = model_of(tiny, 3)
    network = network_of(model)
    assert not network.training
    own = network.state_dict()
    for name, tensor in model.tensors.items():
        assert torch.equal(own[name], tensor)
    for name, tensor in tiny.swin.state_dict().items():
        assert torch.equal(own[ENCODER_PREFIX + name], tensor)


def test_refuses_tensors_of_something_else(tiny: SwinEncoder) -> None:
    model = model_of(tiny, 3)
    del model.tensors["encoder1.layer.conv1.conv.weight"]
    with pytest.raises(ValueError, match="no decoder"):
        network_of(model)
