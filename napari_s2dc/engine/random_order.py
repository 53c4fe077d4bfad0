"""Seeds, and a random order of files that a file more does not change."""

from __future__ import annotations

import hashlib

from napari_s2dc.errors import ConfigurationError

__all__ = ["chance_of", "require_seed"]

_SEEDS = 2**32


def require_seed(seed: int, name: str = "--seed") -> None:
    """Refuse a seed that not every generator takes, by a ConfigurationError.

    Parameters
    ----------
    seed : int
        The seed.
    name : str
        Where it was given.
    """
    if not 0 <= seed < _SEEDS:
        raise ConfigurationError(f"{name} must be at least 0 and below {_SEEDS}, not {seed}.")


def chance_of(name: str, seed: int) -> bytes:
    """Give what names are sorted by for a random order.

    Parameters
    ----------
    name : str
        The first five of the order are then among the first ten, and a name that is added changes
        nothing about the order of the others.
    seed : int
        Another seed, another order.
    """
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
