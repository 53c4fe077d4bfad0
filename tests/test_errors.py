"""Errors keep their sentence on the way to the user."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from napari_s2dc.errors import VolumeError


class Broken(Dataset[int]):
    """Fails like a scan whose cache was deleted."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise VolumeError("The cache entry of brain.nii can no longer be read.", "Start again.")


def test_error_of_a_loader_process_is_still_one_sentence() -> None:
    with pytest.raises(VolumeError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert str(caught.value) == "The cache entry of brain.nii can no longer be read. Start again."
