"""Stand-ins for plugins and for a run's progress, for tests of what lies around them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from vllmrt.errors import ChangedError, SourceError
from vllmrt.types import Candidate, Digest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllmrt.events import Event
    from vllmrt.types import GpuStatus, ModelRequest, ReadableRange


class RecordingProgress:
    """Remembers the events of a run; it is what a resolver's ``emit`` asks for.

    Args:
        interrupt_at: name of the event at which it raises KeyboardInterrupt, as Ctrl-C would.

    Attributes:
        events: all of them, in order.
    """

    def __init__(self, *, interrupt_at: str | None = None) -> None:
        self.events: list[Event] = []
        self._interrupt_at = interrupt_at

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self.events.append(event)
        if event.name == self._interrupt_at:
            raise KeyboardInterrupt

    def named(self, name: str) -> list[Event]:
        """Return the events of one name, such as ``transfer.retry``."""
        return [event for event in self.events if event.name == name]

    @property
    def text(self) -> str:
        """What a person would have read."""
        return "\n".join(f"{event.label} {event.text}" for event in self.events)


class FakeSource:
    """A remote source whose store is a directory.

    Args:
        root: each model lies in ``<root>/<org>/<name>``; None for a source that its user has not set up.
        name: of the source.
        digests: whether it tells the SHA-256 of the files.

    Attributes:
        asked: file, first byte and end of every range that was opened.
    """

    def __init__(self, root: Path | None, *, name: str = "fake", digests: bool = True) -> None:
        self.root = root
        self.name = name
        self.digests = digests
        self.asked: list[tuple[str, int, int]] = []

    def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """List the files of the model."""
        if self.root is None:
            return Skip(f"{self.name} has no directory")
        base = self.root / request.model_id
        if not base.is_dir():
            return Skip(f"nothing at {base}")
        paths = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
        return (Candidate(str(base), files=tuple(self.describe(base, path) for path in paths), revision="r1"),)

    def describe(self, base: Path, path: str) -> RemoteFile:
        """Return what is listed of one file of the model at `base`."""
        content = (base / path).read_bytes()
        version = _sha256(content)
        digest = Digest("sha256", value=version) if self.digests else None
        return RemoteFile(path, size=len(content), version=version, digest=digest)

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open a range, unless the file is another than was listed."""
        self.asked.append((file.path, start, stop))
        content = self.content(candidate, file)
        if _sha256(content) != file.version:
            raise ChangedError(f"{file.path} is another")
        return FakeRange(content[start:stop])

    def content(self, candidate: Candidate, file: RemoteFile) -> bytes:
        """Return the bytes of a file as they are now."""
        if self.root is None:
            raise SourceError(f"{self.name} has no directory")
        try:
            return self.root.joinpath(candidate.location, file.path).read_bytes()
        except OSError as error:
            raise SourceError(f"{file.path}: {error.strerror}") from None


class FakeRange:
    """Bytes that are there already (`vllmrt.types.ReadableRange`)."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Give the next bytes."""
        piece = self._content[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Do nothing: there is no connection."""


class FakeProbe:
    """A GPU probe with a ready answer.

    Args:
        answer: the GPUs, a Skip, or what it raises.
        name: of the probe.

    Attributes:
        asked: the devices of each call.
    """

    def __init__(self, answer: Iterable[GpuStatus] | Skip | BaseException, *, name: str = "fake") -> None:
        self.name = name
        self.answer: Any = answer if isinstance(answer, Skip | BaseException) else tuple(answer)
        self.asked: list[tuple[str, ...]] = []

    def read(self, devices: tuple[str, ...]) -> tuple[GpuStatus, ...] | Skip:
        """Return the GPUs that are named, or all."""
        self.asked.append(devices)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, Skip):
            return self.answer
        return tuple(gpu for gpu in self.answer if not devices or str(gpu.index) in devices or gpu.uuid in devices)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
