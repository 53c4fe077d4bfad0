"""A random order of files that a file more does not change."""

from __future__ import annotations

import hashlib

__all__ = ["chance_of"]


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
