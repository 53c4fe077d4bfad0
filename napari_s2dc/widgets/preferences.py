"""What a user has set for the plugin in napari's preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["PLUGIN", "Preferences", "preferences"]

PLUGIN = "napari-s2dc"


@dataclass(frozen=True)
class Preferences:
    """Settings under *Preferences*, with the same defaults as the manifest.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``: what the workbench starts with.
    window_vox : int
        Side of an embedding window in voxels.
    seed : int
        Start of the random numbers of clusters and views.
    cache_folder : Path or None
        Where embeddings are kept; None for the user's cache folder.
    cache_limit_bytes : int
        Least recently used embeddings are dropped above it.
    """

    device: str = "auto"
    window_vox: int = 96
    seed: int = 0
    cache_folder: Path | None = None
    cache_limit_bytes: int = 5 * 2**30


def preferences() -> Preferences:
    """Read the preferences; the defaults where napari does not know the plugin (not installed)."""
    from napari.settings import get_plugin_settings

    try:
        settings = get_plugin_settings(PLUGIN)
    except KeyError:
        return Preferences()
    folder = str(settings.cache.folder).strip()
    return Preferences(
        device=str(settings.computing.device),
        window_vox=int(settings.computing.window_size),
        seed=int(settings.computing.seed),
        cache_folder=Path(folder).expanduser() if folder else None,
        cache_limit_bytes=int(float(settings.cache.limit_gb) * 2**30),
    )
