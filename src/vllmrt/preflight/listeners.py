"""Who listens where, and what of it is in the way of an address: reads ``/proc/net`` and no process."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ConfigError
from vllmrt.preflight.sockdiag import is_silent, v6only_listeners
from vllmrt.procfs import PROC

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LISTEN = "0A"
_MAPPED = bytes(10) + b"\xff\xff"


class Endpoint(NamedTuple):
    """What a socket that is bound takes of each family: an address, all of them (``b""``), or nothing (None)."""

    v4: bytes | None
    v6: bytes | None

    def overlaps(self, other: Endpoint) -> bool:
        """Tell whether both cannot listen on one port."""
        return any(
            ours is not None and theirs is not None and (not ours or not theirs or ours == theirs)
            for ours, theirs in zip(self, other, strict=True)
        )


class Listener(NamedTuple):
    """A socket that listens.

    Attributes:
        address: for people.
        endpoint: what it takes.
        inode: its number, which processes have among their descriptors.
        uid: who made it.
    """

    address: str
    endpoint: Endpoint
    inode: int
    uid: int


def endpoint(packed: bytes, *, v6only: bool) -> Endpoint:
    """Return what an address takes when it is bound (ipv6(7)).

    Args:
        packed: 4 or 16 bytes, as `socket.inet_pton` makes them.
        v6only: whether ``::`` leaves IPv4 alone.
    """
    if packed.startswith(_MAPPED) and len(packed) == 16:  # noqa: PLR2004 - an IPv6 address
        packed = packed[12:]
    if len(packed) == 4:  # noqa: PLR2004 - an IPv4 address
        return Endpoint(packed if any(packed) else b"", None)
    if any(packed):
        return Endpoint(None, packed)
    return Endpoint(None if v6only else b"", b"")


def targets(host: str, port: int, root: Path = PROC) -> list[Endpoint]:
    """Return what a server on `host` would take: every address of a name.

    Raises:
        ConfigError: the name means nothing.
    """
    try:
        name = host.strip("[]")
        # as bytes it needs no tables of Unicode, whose import takes as long as all the rest
        asked = name.encode() if name.isascii() else name
        found = socket.getaddrinfo(asked, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"host {host!a} is no address and no name: {reason}", hint="correct VLLM_HOST") from None
    addresses = {(family, str(address[0]).partition("%")[0]) for family, _, _, _, address in found}
    v6only = _default_v6only(root)
    return [endpoint(socket.inet_pton(family, text), v6only=v6only) for family, text in sorted(addresses)]


def listening(wanted: Iterable[Endpoint], port: int, root: Path = PROC) -> list[Listener]:
    """Return the sockets on `port` that are in the way of any of `wanted`.

    Args:
        wanted: as `targets` returns them.
        port: the port.
        root: the process table whose network is looked at.

    Raises:
        OSError: there is no table of sockets.
    """
    wanted = list(wanted)
    if root == PROC and is_silent(port):
        return []
    rows = [*_rows(root / "net/tcp", port), *_optional(root, port)]
    if not rows:
        return []
    alone = _v6only(rows, port, root)
    found = [Listener(_text(row.packed, port), _endpoint(row, alone), row.inode, row.uid) for row in rows]
    return [one for one in found if any(one.endpoint.overlaps(target) for target in wanted)]


class _Row(NamedTuple):
    packed: bytes
    inode: int
    uid: int


def _rows(path: Path, port: int) -> list[_Row]:
    suffix = f":{port:04X}"
    rows = []
    for line in path.read_text().splitlines()[1:]:
        if suffix not in line:  # there may be a hundred thousand connections
            continue
        words = line.split(maxsplit=10)
        if words[3] == _LISTEN and words[1].endswith(suffix):
            rows.append(_Row(_packed(words[1].partition(":")[0]), int(words[9]), int(words[7])))
    return rows


def _optional(root: Path, port: int) -> list[_Row]:
    try:
        return _rows(root / "net/tcp6", port)
    except FileNotFoundError:  # a machine without IPv6
        return []


def _packed(text: str) -> bytes:
    """The kernel prints addresses as 32-bit numbers of its own byte order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "big":
        return raw
    return b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))


def _endpoint(row: _Row, alone: set[int]) -> Endpoint:
    return endpoint(row.packed, v6only=row.inode in alone)


def _v6only(rows: list[_Row], port: int, root: Path) -> set[int]:
    """Return the inodes of the sockets on ``::`` that leave IPv4 alone; asked only where there is one on ``::``."""
    wildcards = {row.inode for row in rows if not any(row.packed) and len(row.packed) == 16}  # noqa: PLR2004
    if not wildcards:
        return set()
    told = v6only_listeners(port) if root == PROC else None
    if told is not None:
        return told
    return wildcards if _default_v6only(root) else set()


def _default_v6only(root: Path) -> bool:
    try:
        return (root / "sys/net/ipv6/bindv6only").read_text().strip() == "1"
    except OSError:
        return False


def _text(packed: bytes, port: int) -> str:
    if len(packed) == 4:  # noqa: PLR2004 - an IPv4 address
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{port}"
