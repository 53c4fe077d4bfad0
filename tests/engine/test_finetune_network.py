"""The network of a fine-tuned model: MONAI's, computed in another way."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR

from napari_s2dc.engine.fewshot_settings import SegmentationClass
from napari_s2dc.engine.finetune_network import (
    ENCODER_PREFIX,
    SegmentationNetwork,
    network_of,
)
from napari_s2dc.engine.segmentation_model import SegmentationModel
from napari_s2dc.method.encoder import SwinEncoder


def without_coarse(network: SegmentationNetwork) -> SegmentationNetwork:
    for layer in network.coarse.values():
        torch.nn.init.zeros_(layer.weight)
    return network


def monai_of(network: SegmentationNetwork, encoder: SwinEncoder) -> SwinUNETR:
    monai = encoder.to_swin_unetr(network.last.out_channels)
    state = network.state_dict()
    monai.load_state_dict({name: state[name] for name in monai.state_dict()})
    return monai


@pytest.mark.parametrize("batch", [1, 2])
def test_full_resolution_is_what_monai_computes(tiny: SwinEncoder, batch: int) -> None:
    torch.manual_seed(1)
    network = without_coarse(SegmentationNetwork(tiny, 3))
    images = torch.rand(batch, 1, 32, 64, 32)
    with torch.no_grad():
        expected = monai_of(network, tiny)(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-3)


def test_gradients_are_those_of_monai(tiny: SwinEncoder) -> None:
    torch.manual_seed(1)
    network = without_coarse(SegmentationNetwork(tiny, 2))
    monai = monai_of(network, tiny)
    images, weights = torch.rand(1, 1, 32, 64, 32), torch.rand(1, 2, 32, 64, 32)
    for one in (network, monai):
        (one(images) * weights).mean().backward()
    ours = dict(network.named_parameters())
    for name, parameter in monai.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-2)


def test_chosen_voxels_have_the_logits_of_all(tiny: SwinEncoder) -> None:
    torch.manual_seed(1)
    network = SegmentationNetwork(tiny, 3)
    images = torch.rand(2, 1, 32, 64, 32)
    places = [torch.tensor([0, 65535, 40000, 77]), torch.randint(0, 65536, (50,))]
    with torch.no_grad():
        whole = network(images).flatten(2)
        for number, logits in enumerate(network.logits_at(images, places)):
            expected = whole[number][:, places[number]].T
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
        coarse = whole - without_coarse(network)(images).flatten(2)
    assert coarse.std() > 0.01


def model_of(encoder: SwinEncoder, outputs: int) -> SegmentationModel:
    network = SegmentationNetwork(encoder, outputs)
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
