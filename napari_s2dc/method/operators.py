"""Operators that a compiler sees as one call each.

``torch.library.custom_op`` would do the same, but its first call imports the compiler, which takes
seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMESPACE = "napari_s2dc"
_library = torch.library.Library(_NAMESPACE, "DEF")


def _on_its_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):  # nothing for a tensor of the CPU
            return function(first, *rest)

    return run


def define(
    name: str,
    function: Callable[..., Any],
    shape: Callable[..., Any],
    *,
    device: str = "CompositeExplicitAutograd",
    backward: Callable[..., Any] | None = None,
    remember: Callable[..., Any] | None = None,
    kernels: bool = False,
) -> None:
    """Define ``torch.ops.napari_s2dc.NAME``.

    Parameters
    ----------
    name : str
        Name of the operator.
    function : callable
        What it does; its annotations are its schema. Integers are constants to a compiler.
    shape : callable
        The same for tensors without values.
    device : str
        Dispatch key of `function`; any device by default.
    backward, remember : callable, optional
        As for ``torch.library.register_autograd``; a gradient of the gradient is not to be had.
    kernels : bool
        The function starts kernels, which go to the current GPU: make the first tensor's that.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    _library.define(name + schema.replace("SymInt", "int"))
    _library.impl(name, _on_its_gpu(function) if kernels else function, device)
    _library.impl(name, shape, "Meta")  # register_fake searches all modules for the source
    if backward is not None:
        torch.library.register_autograd(
            f"{_NAMESPACE}::{name}", backward, setup_context=remember, lib=_library
        )
