"""What ``/proc/net`` does not tell, or takes long to tell, of sockets that listen (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_LISTEN = 1 << 10
_SKV6ONLY = 11
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_QUERY = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
_ANSWER = struct.Struct("=4xH66x")  # struct inet_diag_msg up to its attributes; the source port is in network order
_ERRNO = struct.Struct("=i")
_INODE = struct.Struct("=68xI")
_ATTRIBUTE = struct.Struct("=HH")
_SECONDS = 1.0


def is_silent(port: int) -> bool:
    """Tell whether the kernel says that nothing at all listens on `port`; False where it does not say.

    To read ``/proc/net/tcp`` is to walk through the table of all connections, which on a machine with much memory takes
    4 ms for each family even when it is empty.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    try:
        return not any(_port(message) == port for family in families for message in _listeners(family))
    except (OSError, struct.error):
        return False


def v6only_listeners(port: int) -> set[int] | None:
    """Return the inodes of the IPv6 sockets that listen on `port` for IPv6 only; None where the kernel does not say."""
    try:
        messages = [message for message in _listeners(socket.AF_INET6) if _port(message) == port]
        return {inode for message in messages for inode in _v6only(message)}
    except (OSError, struct.error):
        return None


def _listeners(family: int) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(_SECONDS)
        query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, _LISTEN)
        link.send(_HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + query)
        yield from _messages(link)


def _messages(link: socket.socket) -> Iterator[bytes]:
    while True:
        block = link.recv(1 << 16)
        while block:
            length, kind, _, _, _ = _HEADER.unpack_from(block)
            body = block[_HEADER.size : length]
            # the end has an error too, where the kernel has no tcp_diag
            if kind == _ERROR or length < _HEADER.size or (kind == _DONE and any(body[: _ERRNO.size])):
                raise OSError("sock_diag refused the query")
            if kind == _DONE:
                return
            yield body
            block = block[(length + 3) & ~3 :]


def _port(message: bytes) -> int:
    return socket.ntohs(_ANSWER.unpack_from(message)[0])


def _v6only(message: bytes) -> Iterator[int]:
    attributes = message[_ANSWER.size :]
    while len(attributes) > _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _SKV6ONLY and attributes[_ATTRIBUTE.size]:
            yield _INODE.unpack_from(message)[0]
        attributes = attributes[max(4, (length + 3) & ~3) :]
