"""Borders of tissues look alike in every contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_s2dc.method.borders import tissue_borders
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder
from napari_s2dc.volumes.phantom import phantom
from napari_s2dc.volumes.preprocess import normalize


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 2, 24, 20, 16, generator=torch.Generator().manual_seed(0))


def test_they_are_the_logarithm_of_the_slope_after_a_gaussian(image: torch.Tensor) -> None:
    found = tissue_borders(image)
    for number in np.ndindex(2, 2):
        smooth = ndimage.gaussian_filter(image[number].numpy(), 0.8, mode="nearest", radius=2)
        differences = [
            ndimage.correlate1d(smooth, [-0.5, 0, 0.5], axis, mode="nearest") for axis in range(3)
        ]
        slope = np.sqrt(sum(difference**2 for difference in differences))
        np.testing.assert_allclose(found[number], np.log1p(slope / 0.009375) / 2, atol=1e-5)


def test_dark_and_bright_may_change_places(image: torch.Tensor) -> None:
    torch.testing.assert_close(tissue_borders(1 - image), tissue_borders(image))


def test_what_is_flat_has_none_and_a_gradient() -> None:
    flat = torch.full((1, 1, 8, 9, 10), 0.3, requires_grad=True)
    found = tissue_borders(flat)
    assert found.shape == flat.shape
    assert float(found.detach().abs().max()) < 1e-4
    (gradient,) = torch.autograd.grad(found.sum(), flat)
    assert bool(gradient.isfinite().all())


def test_they_are_as_precise_under_autocast(image: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = tissue_borders(image.bfloat16().float())
    torch.testing.assert_close(found, tissue_borders(image.bfloat16().float()))
    assert torch.equal(tissue_borders(image.bfloat16()), found.bfloat16())


def test_a_ct_and_a_t2_of_one_torso_have_the_same_borders() -> None:
    ct, t2 = (
        torch.from_numpy(normalize(image.array, "auto"))[None, None]
        for image, _ in (phantom((48, 64, 64), 6.0, seed=3, contrast=name) for name in ("ct", "t2"))
    )

    def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])

    assert agreement(tissue_borders(ct), tissue_borders(t2)) > agreement(ct, t2) + 0.2


def test_an_encoder_looks_at_them() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(feature_size=12, window_size=2, borders=True)
    encoder = SwinEncoder(config).eval()
    plain = SwinEncoder(EncoderConfig(feature_size=12, window_size=2)).eval()
    plain.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        found, expected = encoder(image), plain(tissue_borders(image))
        for mine, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, reference)
        assert torch.equal(encoder.stage(image, 2), found[2])
        assert not torch.allclose(found[2], plain(image)[2], atol=0.1)
