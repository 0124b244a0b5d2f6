"""How the conformance classes read what a source opens."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.host import PluginHost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllmrt.host import Source
    from vllmrt.types import Candidate, ReadableRange, RemoteFile

    Opener = Callable[[RemoteFile, int, int], ReadableRange]

BLOCKS = (1 << 20, 1000)
"""Bytes of the readers' buffers: more than a range has, and less."""
_DRIP = 0.02
_CRCS = {"crc32c": (0x82F63B78, 8), "crc64nvme": (0x9A6C9329AC4BC9B5, 16)}
"""Polynomials, reflected, and hexadecimal digits; awscrt, by which the core takes them, may not be here."""


class Edge(NamedTuple):
    """A range by its place in a file.

    Attributes:
        name: shown as the parameter of the test.
        start: as fraction of the size, and bytes to add.
        stop: in the same way.
    """

    name: str
    start: tuple[float, int]
    stop: tuple[float, int]

    def of(self, size: int) -> tuple[int, int]:
        """Return the range in a file of `size` bytes."""
        (first, more), (last, yet) = self.start, self.stop
        return int(first * size) + more, int(last * size) + yet


EDGES = (
    Edge("whole", (0, 0), (1, 0)),
    Edge("first", (0, 0), (0, 1)),
    Edge("second", (0, 1), (0, 2)),
    Edge("all but the first", (0, 1), (1, 0)),
    Edge("middle", (0.5, -7), (0.5, 8)),
    Edge("last", (1, -1), (1, 0)),
    Edge("over the end", (1, -3), (1, 4)),
    Edge("past the end", (1, 0), (1, 1)),
)


def read(opener: Opener, file: RemoteFile, start: int, stop: int, block: int = BLOCKS[0]) -> bytes:
    """Return all that a range gives to a reader with a buffer of this size; it is closed twice, as it may be."""
    opened = opener(file, start, stop)
    try:
        buffer, parts = memoryview(bytearray(block)), []
        while count := take(opened, buffer):
            parts.append(bytes(buffer[:count]))
        return b"".join(parts)
    finally:
        opened.close()
        opened.close()


def read_in_turns(opener: Opener, file: RemoteFile, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Open all ranges first, then read them in small steps, one after the other, round and round."""
    opened = [opener(file, start, stop) for start, stop in ranges]
    given = [b""] * len(ranges)
    try:
        buffer, going = memoryview(bytearray(BLOCKS[1])), set(range(len(ranges)))
        while going:
            for number in sorted(going):
                count = take(opened[number], buffer)
                given[number] += bytes(buffer[:count])
                if not count:
                    going.remove(number)
    finally:
        for one in opened:
            one.close()
    return given


def take(opened: ReadableRange, buffer: memoryview) -> int:
    """Read once; the answer is the number of bytes, between 0 and the buffer's length."""
    count = opened.readinto(buffer)
    assert isinstance(count, int), f"readinto() returned {count!r}, not a number of bytes"
    assert 0 <= count <= len(buffer), f"readinto() returned {count} for a buffer of {len(buffer)} bytes"
    return count


def digest_of(algorithm: str, content: bytes) -> str:
    """Return the digest of some bytes; an algorithm that `vllmrt.types.Digest` does not name is a failure."""
    if algorithm in _CRCS:
        return _crc(content, *_CRCS[algorithm])
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    assert algorithm in {"sha256", "md5"}, f"{algorithm} is none of the algorithms of vllmrt.types.Digest"
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


def _crc(content: bytes, polynomial: int, digits: int) -> str:
    """Return a reflected CRC whose register begins, and is put out, with all its bits turned."""
    ones = value = (1 << 4 * digits) - 1
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return f"{value ^ ones:0{digits}x}"


class Slowed(PluginHost):
    """A host whose ranges give a byte at a time, so that a transfer is still going when it is interrupted."""

    def opener(self, source: Source, candidate: Candidate) -> Opener:
        """Return an opener of slow ranges."""
        opener = super().opener(source, candidate)
        return lambda file, start, stop: _Drip(opener(file, start, stop))


class _Drip:
    def __init__(self, opened: ReadableRange) -> None:
        self._opened = opened

    def readinto(self, buffer: memoryview, /) -> int:
        time.sleep(_DRIP)
        return self._opened.readinto(buffer[:1])

    def close(self) -> None:
        self._opened.close()
