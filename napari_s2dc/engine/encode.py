"""Windows on the device that was asked for, and ways that need less of its memory."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embed_settings import DEVICES, EmbedSettings, stage_of
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.window_plan import WindowPlan, bytes_of_window, plan_windows
from napari_s2dc.engine.windows import Scale, run_windows
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.encoder import EncoderConfig, SwinEncoder

__all__ = ["device_of", "encode", "lacks_operation", "out_of_memory", "windows_at_once"]

# A batch keeps a graphics processor busy; on a CPU it only takes more memory.
_MOST_AT_ONCE = {"cuda": 16, "mps": 2}
_LACKING = "PyTorch lacks an operation on Apple's graphics, so the CPU was used."
_SHARE = 0.5
"""Of the free memory of a graphics processor that windows take by estimate."""


def windows_at_once(device: torch.device, window_bytes: int = 0) -> int:
    """Give how many windows are encoded together on a device.

    Parameters
    ----------
    device : torch.device
        Device.
    window_bytes : int
        Estimated memory of one window; 0 gives the most there may be.
    """
    most = _MOST_AT_ONCE.get(device.type, 1)
    if device.type != "cuda" or not window_bytes:
        return most
    # What torch holds for later counts as taken there
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + kept
    return max(1, min(most, int(_SHARE * free / window_bytes)))


def encode(
    image: np.ndarray,
    encoder: SwinEncoder,
    settings: EmbedSettings,
    *,
    tissue: Tensor | None = None,
    scale: Scale = np.asarray,
) -> Steps[tuple[Tensor, dict[str, Any]]]:
    """Run the windows over an image on the device that the settings ask for.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Already the region.
    encoder : SwinEncoder
        As for :func:`embed_volume`.
    settings : EmbedSettings
        Settings.
    tissue : Tensor (tz, ty, tx), optional
        Boolean: tokens that are wanted, as for
        :func:`napari_s2dc.engine.window_plan.plan_windows`; all when left out.
    scale : callable
        Maps intensities to [0, 1]; left out where the image is normalised already.

    Yields
    ------
    Progress
        After every batch of windows.

    Returns
    -------
    features : Tensor (C, tz, ty, tx)
        float16, on the CPU; 0 for tokens in no window.
    facts : dict
        ``window_vox`` and ``device`` that were used, and the ``notice``.
    """
    attempts = _attempts(device_of(settings.device), settings, encoder.config)
    lacking = False
    try:
        for attempt in attempts:
            if lacking and attempt.device.type != "cpu":
                continue
            windows = plan_windows(
                image.shape,
                encoder.config,
                stage=stage_of(encoder, settings),
                window_vox=attempt.window_vox,
                overlap=settings.overlap,
                tissue=tissue,
            )
            features = None
            try:
                with closing(_windows_on(image, encoder, windows, attempt, scale)) as running:
                    while features is None:
                        try:
                            done = next(running)
                        except StopIteration as stop:
                            features = stop.value
                        else:
                            yield Progress(done, windows.windows, "windows")
            except (RuntimeError, MemoryError) as error:
                lacks = lacks_operation(error, attempt.device)
                if not (lacks or out_of_memory(error)):
                    raise
                lacking = lacking or lacks
                if attempt is attempts[-1]:
                    raise S2DCError(
                        f"There is not enough memory for windows of {attempt.window_vox} voxels.",
                        "Choose a smaller window or a region, or close other programs.",
                    ) from error
            if features is not None:
                facts = {
                    "window_vox": attempt.window_vox,
                    "device": attempt.device.type,
                    "notice": _LACKING if lacking else attempt.notice,
                }
                return features, facts
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            _free(attempt.device)
    finally:
        _free(attempts[0].device)
    raise AssertionError("there is always a last attempt")


@dataclass(frozen=True)
class _Attempt:
    """One way to run the windows; the next one needs less memory."""

    device: torch.device
    window_vox: int
    windows_at_once: int
    notice: str = ""


def _attempts(
    device: torch.device, settings: EmbedSettings, config: EncoderConfig
) -> list[_Attempt]:
    """List the ways to try, from the one asked for to the most modest."""
    asked = settings.window_vox
    if device.type == "cpu":
        return [_Attempt(device, asked, 1)]
    together = windows_at_once(device, bytes_of_window(config, (asked,) * 3))
    numbers = sorted({together, min(together, 4), 1}, reverse=True)
    ways = [_Attempt(device, asked, number) for number in numbers]
    short = f"The graphics memory was too small for windows of {asked} voxels"
    smaller = max(32, asked * 2 // 3 // 32 * 32)
    if smaller < asked:
        notice = f"{short}, so windows of {smaller} were used: features see less around them."
        ways.append(_Attempt(device, smaller, 1, notice))
    ways.append(_Attempt(torch.device("cpu"), asked, 1, f"{short}, so the CPU was used."))
    return ways


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()  # MPS and the CPU's allocator raise plain RuntimeErrors
    return "out of memory" in text or "can't allocate memory" in text


def lacks_operation(error: BaseException, device: torch.device) -> bool:
    """Whether an error says that PyTorch has no such operation on the graphics of an Apple."""
    return device.type == "mps" and isinstance(error, NotImplementedError)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def device_of(wanted: str) -> torch.device:
    """Device that a setting, one of ``DEVICES``, asks for; ConfigurationError if not there.

    ``auto`` is CUDA or else the CPU: on Apple's graphics (MPS) nothing here has been tried.
    """
    if wanted not in DEVICES:
        raise ConfigurationError(
            f"There is no device '{wanted}'.", f"Use one of {', '.join(DEVICES)}."
        )
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        wanted = "cuda" if there["cuda"] else "cpu"
    if not there[wanted]:
        raise ConfigurationError(
            f"This computer has no {wanted.upper()} device that PyTorch can use.",
            "Choose auto or cpu.",
        )
    return torch.device(wanted)


def _windows_on(
    image: np.ndarray,
    encoder: SwinEncoder,
    windows: WindowPlan,
    attempt: _Attempt,
    scale: Scale,
) -> Generator[int, None, Tensor]:
    """Run the windows as one attempt wants it, by an encoder that is this run's own."""
    own = _copy_on(encoder, attempt.device)
    together = attempt.windows_at_once
    with closing(
        run_windows(image, own, windows, windows_at_once=together, dtype=torch.float16, scale=scale)
    ) as running:
        return (yield from running)


def _copy_on(encoder: SwinEncoder, device: torch.device) -> SwinEncoder:
    """Copy an encoder to a device; on its own device the copy shares the weights.

    Several runs may use one encoder at once, from different threads: moved to a graphics processor
    and back, or set to evaluation mode and back, it would change under the others.
    """
    tensors = [*encoder.parameters(), *encoder.buffers()]
    home = tensors[0].device.type
    shared = {id(tensor): tensor for tensor in tensors} if device.type == home else {}
    return copy.deepcopy(encoder, shared).to(device)
