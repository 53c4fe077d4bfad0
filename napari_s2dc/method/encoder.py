"""Swin encoder: MONAI's ``SwinTransformer`` with its architecture, stages, loading and saving."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from torch import Tensor, nn

from napari_s2dc import __version__
from napari_s2dc.errors import CheckpointError, ConfigurationError
from napari_s2dc.files import replace_atomically
from napari_s2dc.method.checkpoint_files import METADATA_KEY

if TYPE_CHECKING:
    from monai.networks.nets.swin_unetr import SwinUNETR

    from napari_s2dc.method.checkpoints import LoadReport
    from napari_s2dc.method.swin import FastSwinTransformer

SIZES: dict[str, int] = {"tiny": 12, "small": 24, "base": 48}
"""Feature size (channels of stage 0) of every named encoder size."""

STRIDES: tuple[int, ...] = (2, 4, 8, 16, 32)
"""Voxels per token side at stages 0 to 4."""

DERIVED_SUFFIX = "relative_position_index"
"""Buffers that follow from the window size; never stored by us (8 MB at window 7)."""


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of an encoder; two encoders with equal configs take each other's weights.

    Parameters
    ----------
    feature_size : Channels of stage 0, a multiple of 12; every stage but the first doubles them.
    window_size : Side of an attention window in tokens.
    depths : Transformer blocks in each of the four layers.
    num_heads : Attention heads in each of the four layers.
    in_channels : Channels of the input image.
    use_v2 : Residual convolution block before each layer (Swin UNETR version 2).
    borders : Look at the borders of tissues in place of intensities, see
        `napari_s2dc.method.borders`.
    """

    feature_size: int = 48
    window_size: int = 7
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    in_channels: int = 1
    use_v2: bool = True
    borders: bool = False

    def __post_init__(self) -> None:
        # JSON and YAML have lists only; equality between configs needs one type
        object.__setattr__(self, "depths", tuple(int(depth) for depth in self.depths))
        object.__setattr__(self, "num_heads", tuple(int(heads) for heads in self.num_heads))
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ConfigurationError(
                f"The encoder needs 4 depths and 4 head counts, not {self.depths} and "
                f"{self.num_heads}."
            )
        smallest = min((self.feature_size, self.window_size, self.in_channels, *self.depths))
        if smallest < 1 or min(self.num_heads) < 1:
            raise ConfigurationError(f"Every number of the encoder must be at least 1: {self}.")
        if self.feature_size % 12:
            raise ConfigurationError(
                f"The feature size of the encoder must be a multiple of 12, not "
                f"{self.feature_size}.",
                f"Named sizes: {', '.join(f'{name} {size}' for name, size in SIZES.items())}.",
            )
        for layer, heads in enumerate(self.num_heads):
            if (self.feature_size * 2**layer) % heads:
                raise ConfigurationError(
                    f"The {self.feature_size * 2**layer} channels of layer {layer + 1} cannot be "
                    f"shared among {heads} attention heads."
                )

    @property
    def size_name(self) -> str:
        """``tiny``, ``small``, ``base``, or ``feature size N`` for any other."""
        for name, feature_size in SIZES.items():
            if feature_size == self.feature_size:
                return name
        return f"feature size {self.feature_size}"

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON and YAML store them.

        ``borders`` is named where it is true only: files and hashes stay as they were before it.
        """
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key != "borders" or value
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Config from `as_dict` output.

        Raises
        ------
        ConfigurationError
            A name is unknown or a value has the wrong type.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigurationError(f"Unknown encoder setting: {', '.join(map(str, unknown))}.")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"Encoder settings cannot be read: {error}.") from error


def _swin_transformer(
    config: EncoderConfig, gradient_checkpointing: bool = False
) -> FastSwinTransformer:
    # MONAI takes seconds to import and is not needed to read a config
    from napari_s2dc.method.swin import FastSwinTransformer

    network = FastSwinTransformer(
        in_chans=config.in_channels,
        embed_dim=config.feature_size,
        window_size=(config.window_size,) * 3,
        patch_size=(2, 2, 2),
        depths=config.depths,
        num_heads=config.num_heads,
        use_checkpoint=gradient_checkpointing,
        use_v2=config.use_v2,
    )
    network.borders = config.borders
    return network


class SwinEncoder(nn.Module):
    """Swin encoder φ: five stages of features of a scan.

    Parameters
    ----------
    config : EncoderConfig
        Architecture.
    gradient_checkpointing : bool
        Recompute attention blocks in the backward pass: less memory, more time, same values.

    Attributes
    ----------
    config : EncoderConfig
        Architecture.
    swin : FastSwinTransformer
        The network that holds the weights, with the parameters and names of MONAI's
        ``SwinTransformer``.
    metadata : dict
        What the checkpoint said about itself (preprocessing, spacing, steps, version, ...); empty
        for an encoder that was not loaded.
    report : LoadReport or None
        How the checkpoint's tensors fitted, for an encoder that was loaded.
    """

    STRIDES = STRIDES

    def __init__(self, config: EncoderConfig, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.report: LoadReport | None = None
        self.swin = _swin_transformer(config, gradient_checkpointing)

    @classmethod
    def from_size(cls, size: str, *, window_size: int = 7, in_channels: int = 1) -> Self:
        """Untrained encoder of a named size.

        Parameters
        ----------
        size : {"tiny", "small", "base"}
            Feature size 12, 24 or 48.
        window_size : int
            Side of an attention window in tokens.
        in_channels : int
            Channels of the input image.

        Raises
        ------
        ConfigurationError
            The name is unknown or a number is not usable.
        """
        if size not in SIZES:
            raise ConfigurationError(
                f"Unknown encoder size '{size}'.", f"Choose one of {', '.join(SIZES)}."
            )
        return cls(
            EncoderConfig(
                feature_size=SIZES[size], window_size=window_size, in_channels=in_channels
            )
        )

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], *, expected: EncoderConfig | None = None
    ) -> Self:
        """Build an encoder on the CPU with the weights of our or a foreign checkpoint.

        Parameters
        ----------
        path : path-like
            Any layout that `napari_s2dc.method.checkpoint_layouts.read_checkpoint` takes.
        expected : EncoderConfig, optional
            Refuse a checkpoint of another architecture.

        Raises
        ------
        CheckpointError
            The file cannot be read, or fewer than 95 % of the encoder's tensors fit.
        """
        from napari_s2dc.method.checkpoints import load_encoder

        return load_encoder(path, cls, expected=expected)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of stages 0 to 4: f, 2f, 4f, 8f, 16f."""
        return tuple(self.config.feature_size * 2**stage for stage in range(5))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every stage, layer-normalised over channels.

        Parameters
        ----------
        x : Tensor
            (B, in_channels, Z, Y, X), normalised to [0, 1].

        Returns
        -------
        list of Tensor
            Stage s: (B, feature_size * 2**s, Z / STRIDES[s], Y / STRIDES[s], X / STRIDES[s]); equal
            to MONAI's ``SwinTransformer.forward(x, normalize=True)`` up to rounding. Channels last
            in memory.
        """
        return cast(list[Tensor], self.swin(x, normalize=True))

    def stage(self, x: Tensor, number: int) -> Tensor:
        """Features of one stage, without the time for the layers behind it.

        Parameters
        ----------
        x : Tensor
            As for :meth:`forward`.
        number : int
            Stage, 0 to 4.

        Returns
        -------
        Tensor
            Equal to ``self(x)[number]``.
        """
        return self.stages(x, (number,))[0]

    def stages(self, x: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Features of some stages, without the time for the layers behind the last of them.

        Parameters
        ----------
        x : Tensor
            As for :meth:`forward`.
        numbers : sequence of int
            Stages, 0 to 4.

        Returns
        -------
        list of Tensor
            Equal to ``[self(x)[number] for number in numbers]``.
        """
        return self.swin.stages(x, numbers)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write weights and metadata as safetensors; the file appears whole or not at all.

        Parameters
        ----------
        path : path-like
            File to write, usually ``*.safetensors``; its folder is created.
        metadata : mapping, optional
            JSON-able facts: preprocessing, spacing, training data summary, steps, ...; architecture
            and version are added.

        Raises
        ------
        CheckpointError
            The metadata is not JSON.
        S2DCError
            The file cannot be written.
        """
        from safetensors.torch import save as serialise

        path = Path(path)
        facts = {
            "version": __version__,
            **(metadata or {}),
            "architecture": self.config.as_dict(),
        }
        try:
            header = {METADATA_KEY: json.dumps(facts, allow_nan=False)}
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"The metadata for {path} cannot be stored as JSON: {error}."
            ) from error
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.swin.state_dict().items()
            if not name.endswith(DERIVED_SUFFIX)
        }
        with replace_atomically(path) as temporary:
            temporary.write_bytes(serialise(tensors, metadata=header))

    def to_swin_unetr(self, out_channels: int) -> SwinUNETR:
        """MONAI ``SwinUNETR`` whose encoder is a copy of this one; its decoder is untrained.

        That an encoder looks at borders is not in the network's state dict.

        Parameters
        ----------
        out_channels : int
            Channels of the segmentation output.
        """
        from monai.networks.nets.swin_unetr import SwinUNETR

        network = SwinUNETR(
            in_channels=self.config.in_channels,
            out_channels=out_channels,
            feature_size=self.config.feature_size,
            depths=self.config.depths,
            num_heads=self.config.num_heads,
            window_size=self.config.window_size,
            use_v2=self.config.use_v2,
        )
        network.swinViT = _swin_transformer(self.config)
        network.swinViT.load_state_dict(self.swin.state_dict())
        device = next(self.swin.parameters()).device
        return network.to(device)
