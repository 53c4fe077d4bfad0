"""The share of time that steps wait for data."""

from __future__ import annotations

import time

from s2dc_train.timing import WaitClock


def test_waiting_is_a_share_of_steps_and_waiting() -> None:
    clock = WaitClock()
    assert clock.waiting_share is None
    for name, seconds in (
        ("run_training_batch", 0.03),
        ("[_TrainingEpochLoop].train_dataloader_next", 0.01),
        ("save_checkpoint", 0.05),
    ):
        with clock.profile(name):
            time.sleep(seconds)
    assert set(clock.seconds) == {
        "run_training_batch",
        "[_TrainingEpochLoop].train_dataloader_next",
    }
    share = clock.waiting_share
    assert share is not None
    assert 0.1 < share < 0.6
