"""Convolutions of 3 × 3 × 3 on the CPU with half of their multiplications.

Winograd's F(4, 3) along z: six slices that follow each other are mixed into six others, each of
these is convolved by one kernel of 3 × 3, and four slices of the result are mixed from what comes
out. That is 6 convolutions of slices where there would be 12. Source: Lavin and Gray, "Fast
algorithms for convolutional neural networks", CVPR 2016; with the points 0, 1, -1, 2 and -1/2,
which err less than the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from napari_s2dc.method.operators import define

__all__ = ["convolve", "is_quicker"]

_OUT, _IN = 4, 6
"""Slices of the result and of the input of a tile."""

_MIX_INPUT = (
    (1, 3 / 2, -2, -3 / 2, 1, 0),
    (0, -1, -5 / 2, -1 / 2, 1, 0),
    (0, 1, 1 / 2, -5 / 2, 1, 0),
    (0, -1 / 2, -1, 1 / 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 1, 3 / 2, -2, -3 / 2, 1),
)
_MIX_KERNEL = (
    (1, 0, 0),
    (-1 / 3, -1 / 3, -1 / 3),
    (1 / 3, -1 / 3, 1 / 3),
    (1 / 15, 2 / 15, 4 / 15),
    (-16 / 15, 8 / 15, -4 / 15),
    (0, 0, 1),
)
_MIX_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -1 / 2, 0),
    (0, 1, 1, 4, 1 / 4, 0),
    (0, 1, -1, 8, -1 / 8, 1),
)

_VALUES_AT_ONCE = 1 << 22
"""Mixed values (6 slices of every tile) held at a time, 16 MB in float32."""

_ONEDNN = torch.backends.mkldnn.is_available()  # asked once, since a compiler cannot ask it

_FEWEST_TOKENS = 12**3
"""Of one sample; measured, as are the next two, by oneDNN on two threads of a CPU with AVX-512.
With fewer, mixing the kernels takes longer than is saved."""

_FEWEST_CHANNELS = 24
"""Going in and out. With fewer, convolving takes no longer than mixing."""

_FEWEST_PRODUCTS = 1 << 23
"""Tokens of one sample times channels going in and out. With fewer, calls take what is saved."""


def is_quicker(tokens: Tensor, kernel: Tensor) -> bool:
    """Whether :func:`convolve` is the quicker way for tokens (B, Z, Y, X, C)."""
    count = tokens.shape[1:4].numel()
    return (
        tokens.device.type == "cpu"
        and _ONEDNN
        and tokens.dtype == kernel.dtype == torch.float32
        and kernel.shape[2:] == (3, 3, 3)
        and count >= _FEWEST_TOKENS
        and min(kernel.shape[:2]) >= _FEWEST_CHANNELS
        and count * kernel.shape[:2].numel() >= _FEWEST_PRODUCTS
    )


def convolve(tokens: Tensor, kernel: Tensor) -> Tensor:
    """Convolve tokens with a kernel of three a side; beyond the borders are zeros.

    Parameters
    ----------
    tokens : Tensor (B, Z, Y, X, C)
        Contiguous is best.
    kernel : Tensor (O, C, 3, 3, 3)
        Of the same precision.

    Returns
    -------
    Tensor (B, Z, Y, X, O)
        Equal to ``conv3d`` with a padding of 1 up to rounding: in float32, off by about 3e-6 of the
        largest value, where oneDNN is off by 1e-6.
    """
    return cast(Tensor, torch.ops.napari_s2dc.convolve(tokens, kernel))


def _matrix(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype)


def _mixed_tiles(sample: Tensor) -> Iterator[tuple[range, Tensor]]:
    """Numbers of some tiles, and their mixed input (6, tiles, Y, X, C)."""
    depth, *plane = sample.shape
    mix, size = _matrix(_MIX_INPUT, sample), sample[0].numel()
    tiles = range(-(-depth // _OUT))
    at_once = max(1, _VALUES_AT_ONCE // (_IN * size))
    for numbers in (tiles[first : first + at_once] for first in tiles[::at_once]):
        mixed = sample.new_empty(_IN, len(numbers), size)
        for place, number in enumerate(numbers):
            # One slice more at either side
            tile = _slices(sample, _OUT * number - 1, _IN)
            torch.mm(mix, tile.view(_IN, size), out=mixed[:, place])
        yield numbers, mixed.view(_IN, -1, *plane)


def _slices(sample: Tensor, first: int, count: int) -> Tensor:
    """Return some slices; beyond the first and the last they are zeros."""
    depth = len(sample)
    before, behind = max(0, -first), max(0, first + count - depth)
    found = sample[max(0, first) : first + count]
    return F.pad(found, (0, 0, 0, 0, 0, 0, before, behind)) if before or behind else found


def _images(tokens: Tensor) -> Tensor:
    """Images (N, C, Y, X) of slices (N, Y, X, C), in the same memory."""
    return tokens.permute(0, 3, 1, 2)


def _convolve(tokens: Tensor, kernel: Tensor) -> Tensor:
    result = tokens.new_empty(*tokens.shape[:4], len(kernel))
    mix = _matrix(_MIX_OUTPUT, tokens)
    with torch.autocast("cpu", enabled=False):
        # Channels last, as the tokens are
        planes = torch.einsum("gk,ockyx->goyxc", _matrix(_MIX_KERNEL, kernel), kernel).contiguous()
        for sample, out in zip(tokens.contiguous(), result, strict=True):
            for numbers, mixed in _mixed_tiles(sample):
                products = mixed.new_empty(*mixed.shape[:4], len(kernel))
                for image, plane, product in zip(mixed, planes, products, strict=True):
                    found = F.conv2d(_images(image), _images(plane), padding=1)
                    product.copy_(found.permute(0, 2, 3, 1))
                products = products.flatten(2)
                for place, number in enumerate(numbers):
                    slices = out[_OUT * number : _OUT * (number + 1)]
                    torch.mm(mix[: len(slices)], products[:, place], out=slices.flatten(1))
    return result


def _convolve_shape(tokens: Tensor, kernel: Tensor) -> Tensor:
    return tokens.new_empty(*tokens.shape[:4], len(kernel))


def _kernel_gradient(incoming: Tensor, tokens: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of the kernel from that of what :func:`_convolve` gives."""
    outputs, channels = kernel.shape[:2]
    mix = _matrix(_MIX_OUTPUT, tokens).t()
    found = kernel.new_zeros(_IN, outputs, channels, 3, 3)
    with torch.autocast("cpu", enabled=False):
        for sample, gradient in zip(tokens.contiguous(), incoming.contiguous(), strict=True):
            for numbers, mixed in _mixed_tiles(sample):
                unmixed = mixed.new_empty(*mixed.shape[:4], outputs)
                for place, number in enumerate(numbers):
                    slices = _slices(gradient, _OUT * number, _OUT)
                    torch.mm(mix, slices.view(_OUT, -1), out=unmixed.flatten(2)[:, place])
                for image, product, plane in zip(mixed, unmixed, found, strict=True):
                    plane += conv2d_weight(
                        _images(image), list(plane.shape), _images(product), padding=1
                    )
        gradient = torch.einsum("gk,gocyx->ockyx", _matrix(_MIX_KERNEL, kernel), found)
    return gradient.contiguous()


def _kernel_gradient_shape(incoming: Tensor, tokens: Tensor, kernel: Tensor) -> Tensor:
    return kernel.new_empty(kernel.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, Tensor | None]:
    tokens, kernel = ctx.saved_tensors
    d_tokens = d_kernel = None
    if ctx.needs_input_grad[0]:
        d_tokens = convolve(incoming, kernel.transpose(0, 1).flip(2, 3, 4))
    if ctx.needs_input_grad[1]:
        d_kernel = torch.ops.napari_s2dc.convolve_kernel_gradient(incoming, tokens, kernel)
    return d_tokens, d_kernel


define("convolve", _convolve, _convolve_shape, device="CPU", backward=_backward, remember=_remember)
define("convolve_kernel_gradient", _kernel_gradient, _kernel_gradient_shape, device="CPU")
