"""The values and protocols that cross the plugin boundary.

Standard library only, no I/O. Values are frozen, and every field after the first is keyword-only: a value grows by a
defaulted field, a method never grows by an argument, and so a plugin outlives the version it was written for.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "Candidate",
    "Digest",
    "Finding",
    "GpuProbe",
    "GpuProcess",
    "GpuStatus",
    "ModelRequest",
    "ModelSource",
    "ModelTree",
    "ProcessInfo",
    "ReadableRange",
    "RemoteFile",
    "RemoteSource",
    "Severity",
    "Skip",
    "Validator",
    "Verdict",
]


class Severity(Enum):
    """How much a `Finding` weighs: one ERROR rejects the candidate, a WARNING is shown."""

    WARNING = "warning"
    ERROR = "error"


class Verdict(Enum):
    """What a classifier says of a process: vLLM may be reclaimed, PROTECTED vetoes whatever the others say."""

    VLLM = "vllm"
    PROTECTED = "protected"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Which model is wanted.

    Attributes:
        model_id: ``org/name``, checked by `vllmrt.identity`.
        revision: branch, tag or commit; None means the source's default.
        offline: True when no source may touch the network.
        patterns: file names (``fnmatch``) that the user wants fetched instead of the default choice.
    """

    model_id: str
    _: KW_ONLY
    revision: str | None = None
    offline: bool = False
    patterns: tuple[str, ...] = ()

    @property
    def org(self) -> str:
        """The part before the slash."""
        return self.model_id.partition("/")[0]

    @property
    def name(self) -> str:
        """The part after the slash: the name of the model's directory."""
        return self.model_id.partition("/")[2]

    @property
    def identity(self) -> str:
        """``org/name`` or ``org/name@revision``: what a manifest, a lock and an env file belong to."""
        return f"{self.model_id}@{self.revision}" if self.revision else self.model_id


@dataclass(frozen=True, slots=True)
class Digest:
    r"""A digest of a whole file, as the source publishes it.

    Attributes:
        algorithm: ``sha256``, ``git-sha1`` (of ``"blob <size>\0" + content``), ``md5``, ``crc32c`` or ``crc64nvme``.
        value: lower-case hexadecimal.
    """

    algorithm: str
    _: KW_ONLY
    value: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file that a remote source offers.

    Attributes:
        path: relative POSIX path below the model's directory. Hostile until the core has checked it.
        size: bytes.
        version: changes whenever the bytes do: an ETag, a generation, a blob id. Empty where the store has none: then
            the file is fetched anew in each run, unless its digest tells that it is here.
        digest: of the content, where the store has one. A multipart ETag is none.
    """

    path: str
    _: KW_ONLY
    size: int
    version: str
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place that a source offers for a model.

    With `path` it is used where it lies and never modified; with `files` the core fetches it.

    Attributes:
        location: for people and logs; never holds a credential.
        path: the directory of a model that is already on this machine.
        root: symbolic links inside `path` may point anywhere below this directory (a cache's blobs, a package store);
            None means below `path` only.
        files: what to fetch.
        revision: the immutable revision (a commit), where the source knows it.
        hf_home: what HF_HOME has to be for a reader of the env file to find the same snapshot.
    """

    location: str
    _: KW_ONLY
    path: Path | None = None
    root: Path | None = None
    files: tuple[RemoteFile, ...] = ()
    revision: str | None = None
    hf_home: Path | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a source or probe does not answer.

    Attributes:
        reason: one line that completes "skipped: …".
        hint: what would make it answer.
    """

    reason: str
    _: KW_ONLY
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class ModelTree:
    """A model directory to validate.

    Attributes:
        path: the directory, free of symbolic links in its own path.
        request: what was asked for.
        candidate: where it comes from.
        unchanged: True when every file is, by size and mtime, as it was when the same validators with the same settings
            passed it last. A validator whose answer depends on the bytes alone may then return at once.
    """

    path: Path
    _: KW_ONLY
    request: ModelRequest
    candidate: Candidate
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a validator has to say about a model.

    Attributes:
        severity: ERROR rejects the candidate.
        message: the fault in one line.
        code: a stable word for programs, such as ``shard-missing``.
        file: the path below the model's directory, where one file is at fault.
    """

    severity: Severity
    _: KW_ONLY
    message: str
    code: str
    file: str | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU.

    Attributes:
        pid: its number.
        memory: bytes, None where the driver does not say.
        name: what it is called; None lets the core look it up.
    """

    pid: int
    _: KW_ONLY
    memory: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU at one moment.

    Attributes:
        index: the driver's number of it; of a MIG instance, that of the GPU it is a part of.
        uuid: ``GPU-…`` or ``MIG-…``.
        name: the product's name.
        memory_total: bytes; 0 where the device does not say, such as one that shares the CPU's memory.
        memory_free: bytes.
        temperature_c: degrees Celsius, None where the device does not say.
        utilization_pct: 0 to 100, None where the device does not say (a MIG instance).
        pstate: ``P0`` to ``P15``.
        throttle_reasons: why the clocks are held down, as words (`vllmrt.gpu.throttle`).
        aliases: other names by which a user may mean it, such as ``MIG-GPU-…/1/0``.
        processes: those that hold its memory, as far as they are known.
        fault: why it is there and cannot be used; its other values then mean nothing.
    """

    index: int
    _: KW_ONLY
    uuid: str
    name: str
    memory_total: int
    memory_free: int
    temperature_c: int | None = None
    utilization_pct: int | None = None
    pstate: str | None = None
    throttle_reasons: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process, as `/proc` shows it. All of it is under that process's control.

    Attributes:
        pid: its number.
        uid: the real user id.
        start_ticks: start time in clock ticks since boot (proc(5), field 22): with the pid, its identity.
        exe: the executable, None where it may not be read.
        argv: its command line.
        title: what it calls itself when the command line is one string, as after ``setproctitle``.
        ancestors: from the parent up to, and without, pid 1.
    """

    pid: int
    _: KW_ONLY
    uid: int
    start_ticks: int
    exe: str | None
    argv: tuple[str, ...]
    title: str
    ancestors: tuple[ProcessInfo, ...] = ()


class ReadableRange(Protocol):
    """The bytes of one range, as they arrive."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from its start and return the number of bytes; 0 at the end of the range."""

    def close(self) -> None:
        """Give up the connection; safe to call twice."""


class ModelSource(Protocol):
    """Says where a model is."""

    name: str

    def probe(self, request: ModelRequest) -> Sequence[Candidate] | Skip:
        """Return the places that have the model, best first, or why there is none.

        Raises:
            SourceError: the store answered, and asking again will not help.
            TransientSourceError: it may help.
        """


class RemoteSource(ModelSource, Protocol):
    """A source whose candidates have `files`."""

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> ReadableRange:
        """Open the bytes ``start`` (first) to ``stop`` (exclusive) of one file; called from several threads."""


class GpuProbe(Protocol):
    """Reads the GPUs of this machine; it runs in a child process (`vllmrt.gpu.child`)."""

    name: str

    def read(self, devices: tuple[str, ...]) -> Sequence[GpuStatus] | Skip:
        """Return the GPUs named by index or UUID, all of them for an empty tuple, or why they cannot be read.

        A UUID may be cut short after any character. All of them being none means that there is a driver without a
        GPU, which stops the start; a machine without a driver is a `Skip`.
        """


class Validator(Protocol):
    """Judges a model directory."""

    name: str

    def check(self, tree: ModelTree) -> Sequence[Finding]:
        """Return what is wrong; nothing means that the model passes. An exception rejects the candidate."""
