"""What a client asked of a server in a test, and what is to go wrong with the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Seen(NamedTuple):
    """A request, as it came.

    Attributes:
        method: GET, HEAD or CONNECT.
        target: with the query; for a proxy the absolute form, or host and port.
        headers: names in lower case.
        client: port of the client: the same for the requests of one connection.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    client: int

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and the one behind the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1) if found else None


@dataclass
class Fault:
    """What is to go wrong with requests for `path`; positions are bytes of the object.

    Attributes:
        path: without the query; None for all.
        times: how often; -1 for always.
        status: answer with this status, `headers` and `body`, and nothing else.
        headers: replace or add to those of the true answer; None takes one away.
        body: of `status`.
        raw: send these bytes instead of an answer, and close.
        cut: ``reset``, ``fin`` or ``stall`` when the byte `at` is reached; ``silence`` never answers.
        at: see `cut`.
        rate: bytes a second.
        flip: byte whose lowest bit is turned.
        whole: ignore Range, answer 200 with all bytes.
        replace: the object's bytes from this request on.
        chunked: send the body in chunks of this many bytes.
        header_pause: seconds before every line of the headers.
        hang_up: close after the answer: ``said`` in it, or ``silent``.
    """

    path: str | None = None
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None
    cut: str | None = None
    at: int = 0
    rate: int | None = None
    flip: int | None = None
    whole: bool = False
    replace: bytes | None = None
    chunked: int = 0
    header_pause: float = 0.0
    hang_up: str | None = None
