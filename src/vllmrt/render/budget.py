"""How long a start may take and how large a volume has to be, from the size of the model (docs/kubernetes.md)."""

from __future__ import annotations

from math import ceil

UNKNOWN_SIZE = 25_000_000_000
"""Bytes to assume of a model whose size is not known."""

_WARM_UP, _ROLL_OUT = 300, 600
_READ, _FETCH = 50_000_000, 10_000_000
_GIB = 1 << 30
_SMALLEST = 10


def startup_seconds(size: int) -> int:
    """Return the seconds that vLLM may take until it answers.

    Five minutes to compile and warm up, and the weights from a network volume at 50 MB/s.
    """
    return _WARM_UP + ceil(size / _READ)


def rollout_seconds(size: int) -> int:
    """Return the seconds after which a roll-out is called stuck: the start, ten minutes, and fetching at 10 MB/s."""
    return startup_seconds(size) + _ROLL_OUT + ceil(size / _FETCH)


def volume_gib(size: int) -> int:
    """Return the GiB of the store: the old and the new version lie beside each other while a model is replaced."""
    return max(_SMALLEST, ceil((2 * size + _GIB) / _GIB))
