"""Which bytes are still to be fetched, cut into ranges."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vllmrt.types import RemoteFile

MIB = 1 << 20
SMALLEST, LARGEST = 16 * MIB, 64 * MIB
Interval = tuple[int, int]
"""Bytes from the first to the second, exclusive."""


class Range(NamedTuple):
    """One request: the bytes `start` to `stop` (exclusive) of a file."""

    file: RemoteFile
    start: int
    stop: int


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same bytes as disjoint intervals in order."""
    merged: list[Interval] = []
    for start, stop in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return merged


def gaps(size: int, done: Iterable[Interval]) -> Iterator[Interval]:
    """Yield what `done` lacks of the bytes 0 to `size`."""
    position = 0
    for start, stop in merge(done):
        if position < min(start, size):
            yield position, min(start, size)
        position = max(position, stop)
    if position < size:
        yield position, size


def plan(files: Sequence[RemoteFile], done: Mapping[str, Sequence[Interval]], *, connections: int) -> list[Range]:
    """Cut what is missing into ranges, in the order in which they are to be fetched.

    As many files as there are connections take turns, and within a file the ranges are in order: so several shards are
    hashed at once, each from its beginning (reference: s3-facts, "Traps"), and few files are open.

    Args:
        files: all files of the model.
        done: for each path the intervals that are already here.
        connections: how many ranges are fetched at a time.
    """
    missing = [(file, list(gaps(file.size, done.get(file.path, ())))) for file in files]
    total = sum(stop - start for _, spans in missing for start, stop in spans)
    length = min(max(total // (4 * connections), SMALLEST), LARGEST)
    cut = [[Range(file, *piece) for span in spans for piece in _pieces(span, length)] for file, spans in missing]
    turns = (zip_longest(*cut[first : first + connections]) for first in range(0, len(cut), connections))
    return [part for turn in turns for part in chain.from_iterable(turn) if part is not None]


def _pieces(span: Interval, length: int) -> Iterator[Interval]:
    for start in range(*span, length):
        yield start, min(start + length, span[1])
