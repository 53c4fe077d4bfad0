"""Probabilities of cells smoothed block by block, and brought back to voxels."""

from __future__ import annotations

import pytest
import torch

from napari_s2dc.engine import quick_smooth
from napari_s2dc.engine.progress import Progress, finish
from napari_s2dc.engine.quick_scan import cell_means
from napari_s2dc.engine.quick_smooth import smooth, to_voxels


def test_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(20, 70, 40, generator=random)
    image[:, 35:] *= 20  # blocks differ in contrast
    prior = torch.rand(3, *image.shape, generator=random).softmax(0).half()
    at_once = finish(smooth(prior, image))
    monkeypatch.setattr(quick_smooth, "_MOST_VALUES", 1)
    messages: list[Progress] = []
    running = smooth(prior, image)
    while True:
        try:
            messages.append(next(running))
        except StopIteration as end:
            by_block = end.value
            break
    assert by_block.dtype == torch.float16
    torch.testing.assert_close(by_block, at_once, atol=0.02, rtol=0)
    assert [message.done for message in messages] == list(range(1, messages[-1].total + 1))
    assert messages[-1].total == 6 * 40
    assert at_once.float().std() < prior.float().std()


@pytest.mark.parametrize("step", [2, 3])
def test_values_of_cells_come_back_to_their_voxels(step: int) -> None:
    box = (slice(0, 11), slice(4 * step, 4 * step + 9), slice(0, 1))
    edge = 5 * step - 1  # within a cell, so that only intensities can tell where it is
    image = torch.zeros(11, 10 * step, 1)
    image[:, edge:] = 1
    sides = (1, step, step)
    cells = cell_means(image[None], sides)[0]
    values = torch.stack([(cells > 0.5).float(), (cells <= 0.5).float()])
    voxels = image[box]
    found = to_voxels(values, cells, voxels, box, sides)
    assert found.shape == (2, *voxels.shape)
    torch.testing.assert_close(found.sum(0), torch.ones(voxels.shape))
    assert (found.argmax(0) == (voxels == 0)).all()
