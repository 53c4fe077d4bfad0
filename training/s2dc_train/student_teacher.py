"""Projection heads, the student with its averaged teacher, and the queue of past keys."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from napari_s2dc.engine.allocator import release_free_buffers
from napari_s2dc.method.encoder import SwinEncoder
from s2dc_train.passes import Passes


class SliceNorm(nn.Module):
    """Normalise every slice of tokens as a whole, all its features together.

    Source: behaviour of the released code, whose batch normalisation took slices for channels.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (problems, n, C) over n and C."""
        return F.layer_norm(features, features.shape[-2:])


class ProjectionHead(nn.Sequential):
    """Perceptron whose normalisation is over features across all rows, without affine.

    Statistics always come from the rows at hand, so that there are no buffers that could differ
    between processes or between student and teacher.

    Parameters
    ----------
    inputs, hidden, outputs : int
        Widths.
    layers : int
        Linear layers, at least 1; the paper has 3.
    per_slice : bool
        Take (problems, n, C) and normalise each problem as a whole (:class:`SliceNorm`) instead.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, layers: int, *, per_slice: bool = False
    ) -> None:
        def norm(width: int) -> nn.Module:
            if per_slice:
                return SliceNorm()
            return nn.BatchNorm1d(width, affine=False, track_running_stats=False)

        widths = [inputs, *[hidden] * (layers - 1)]
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            modules += [nn.Linear(before, after, bias=False), norm(after), nn.ReLU(inplace=True)]
        modules += [nn.Linear(widths[-1], outputs, bias=False), norm(outputs)]
        super().__init__(*modules)
        self.per_slice = per_slice


class Branch(nn.Module):
    """Encoder with a token head and a head for whole crops.

    Parameters
    ----------
    encoder : SwinEncoder
        The encoder φ.
    token_stage : int
        Stage whose tokens are matched.
    hidden, outputs, layers : int
        Widths and depth of both heads.
    per_slice : bool
        The token head normalises slices (:class:`SliceNorm`).
    pooled : bool
        Compute the last stage too, which the global loss needs.

    Attributes
    ----------
    stages_used : tuple of int
        Stages of the encoder that are computed.
    """

    def __init__(
        self,
        encoder: SwinEncoder,
        token_stage: int,
        hidden: int,
        outputs: int,
        layers: int,
        *,
        per_slice: bool = False,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.token_stage = token_stage
        self.stages_used = (token_stage, 4) if pooled else (token_stage,)
        self._stages = encoder.stages
        channels = encoder.stage_channels
        self.token_head = ProjectionHead(
            channels[token_stage], hidden, outputs, layers, per_slice=per_slice
        )
        self.contrast_head = ProjectionHead(channels[-1], hidden, outputs, layers)

    def compile_encoder(self) -> None:
        """Compile the encoder's passes by ``torch.compile``, when they are first made."""
        self._stages = torch.compile(self.encoder.stages)

    def encode(self, crops: Tensor, passes: Passes | None = None) -> tuple[Tensor, Tensor]:
        """Features of crops.

        Parameters
        ----------
        crops : Tensor (N, 1, c, c, c)
            Crops; each is encoded on its own.
        passes : Passes, optional
            How many are encoded together, and of how many the activations are dropped and computed
            again in the backward pass; features and gradients are those of all at once. All
            together by default.

        Returns
        -------
        tokens : Tensor (N, C, t, t, t)
            Output of the token stage.
        pooled : Tensor (N, 16 f)
            Mean of the last stage; (N, 0) for a branch that does not compute it.
        """
        parts = (passes or Passes(len(crops), len(crops))).split(crops)
        encoded = [
            self._encode(part) if kept or not torch.is_grad_enabled() else self._encode_twice(part)
            for part, kept in parts
        ]
        tokens, pooled = zip(*encoded, strict=True)
        return torch.cat(tokens), torch.cat(pooled)

    def _encode_twice(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Encode now and again in the backward pass."""

        def encode(crops: Tensor) -> tuple[Tensor, Tensor]:
            if crops.device.type == "cpu":
                # The sizes of buffers that are free now seldom fit what comes.
                release_free_buffers()
            return self._encode(crops)

        # The encoder draws no random numbers, so there is no state to restore.
        return checkpoint(encode, crops, use_reentrant=False, preserve_rng_state=False)

    def _encode(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        tokens, *last = self._stages(crops, self.stages_used)
        pooled = last[0].mean((-3, -2, -1)) if last else tokens.new_zeros(len(tokens), 0)
        return tokens, pooled


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: parameters averaged, buffers copied.

    Parameters
    ----------
    teacher, student : Module
        Of equal structure.
    momentum : float
        Share of the old teacher that stays.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(current)


def make_teacher(student: Branch) -> Branch:
    """Return a copy of the student without gradients."""
    return copy.deepcopy(student).requires_grad_(False)


class KeyQueue(nn.Module):
    """Ring of past teacher keys in persistent buffers; empty slots never count as negatives.

    Parameters
    ----------
    length : int
        Keys kept.
    width : int
        Features of a key.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(length, width))
        self.register_buffer("filled", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.keys: Tensor
        self.filled: Tensor
        self.position: Tensor

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Add keys, overwriting the oldest; wraps at any batch size.

        Parameters
        ----------
        keys : Tensor (N, width)
            Teacher keys, gathered over all processes.
        """
        length = len(self.keys)
        if length == 0:
            return
        newest = keys[-length:].to(self.keys)
        skipped = len(keys) - len(newest)
        slots = (self.position + skipped + torch.arange(len(newest), device=keys.device)) % length
        self.keys[slots] = newest
        self.filled[slots] = True
        self.position.add_(len(keys)).remainder_(length)
