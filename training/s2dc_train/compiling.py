"""The encoder compiled by ``torch.compile``, where this machine can."""

from __future__ import annotations

import logging

import torch

from s2dc_train.interruption import is_first_process
from s2dc_train.student_teacher import Branch

_log = logging.getLogger("s2dc_train")


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def compile_encoders(*branches: Branch, device: torch.device) -> None:
    """Compile the encoders of student and teacher; without a compiler, say so and leave them.

    Parameters
    ----------
    branches : Branch
        Whose encoders are compiled when they are first used.
    device : torch.device
        Where they will run; a CPU needs a C++ compiler, a GPU Triton.
    """
    try:
        # A compiler that is missing or broken would only be noticed in the first step.
        torch.compile(_probe)(torch.zeros(16, device=device))
    except (RuntimeError, OSError) as error:
        if is_first_process():
            reason = str(error).strip().partition("\n")[0]
            _log.warning(
                f"trainer.compile: this machine cannot compile for {device.type} ({reason}); the "
                "encoder runs as it is, with the same results."
            )
        return
    for branch in branches:
        branch.compile_encoder()
