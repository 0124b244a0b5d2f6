"""Which processes have a directory open, as far as `/proc` lets us see."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.masking import redact_argv
from vllmrt.procfs import PROC, ProcFs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_DELETED = " (deleted)"
_LONGEST = 200


class User(NamedTuple):
    """A process that has something of a directory open, or was started with its name."""

    pid: int
    command: str

    def __str__(self) -> str:
        """Return it as the subject of a sentence."""
        return f"process {self.pid} ({self.command})"


class Usage(NamedTuple):
    """Who uses what.

    Attributes:
        users: for each directory that is in use, by whom.
        unknown: processes that may not be looked into: those of other users.
    """

    users: dict[Path, tuple[User, ...]]
    unknown: int


class _Watched(NamedTuple):
    """A directory, and its files by inode: a container sees the same ones under another path."""

    directory: Path
    real: str
    inodes: dict[int, str]
    names: frozenset[str]


def usage(directories: Sequence[Path], proc: Path = PROC) -> Usage:
    """Look through all processes but this one and those that started it: a shell, sudo.

    A process uses a directory when a descriptor, a mapping, its working directory or a word of its command line leads
    there. What has no command line, zombies and threads of the kernel, uses nothing.

    Args:
        directories: what to look for.
        proc: where the process table is mounted.
    """
    watched = [_watch(directory) for directory in directories]
    users: dict[Path, list[User]] = {}
    unknown = 0
    ours = set(ProcFs(proc).ancestry(os.getpid()))
    for pid in {int(name) for name in os.listdir(proc) if name.isdigit()} - ours if watched else ():
        process = _Process(proc / str(pid))
        for one in watched:
            if process.uses(one):
                users.setdefault(one.directory, []).append(User(pid, process.title))
        unknown += process.is_unknown
    return Usage({directory: tuple(found) for directory, found in users.items()}, unknown)


class _Process:
    """What one process has open; one that has ended meanwhile has nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = False
        self._arguments = [os.fsdecode(word) for word in self._read("cmdline").split(b"\0") if word]
        self._directory = self._link("cwd")
        self._open = [(link, target) for link in self._descriptors() if (target := self._link(link)).startswith("/")]
        self._mapped = {(int(words[4]), os.fsdecode(words[5])) for words in self._mappings()}

    @property
    def title(self) -> str:
        """The program and its first arguments, fit to be shown, and without secrets."""
        text = " ".join(redact_argv([word[:_LONGEST] for word in self._arguments[:3]])) or "?"
        return (text if text.isprintable() else ascii(text))[:80]

    @property
    def is_unknown(self) -> bool:
        """Whether it runs, and something of it may not be seen."""
        return self._hidden and bool(self._arguments)

    def uses(self, watched: _Watched) -> bool:
        """Tell whether anything of it leads into a directory."""
        return (
            any(_within(path, watched.real) for path in (self._directory, *(path for _, path in self._open)))
            or any(_within(path, watched.real) or _is(watched, inode, path) for inode, path in self._mapped)
            or any(self._has_open(watched, link, path) for link, path in self._open)
            or any(self._names(watched, word) for word in self._arguments)
        )

    def _has_open(self, watched: _Watched, link: str, path: str) -> bool:
        # Only what bears the right name is looked at: asking a dead network file system would take for ever.
        if path.removesuffix(_DELETED).rpartition("/")[2] not in watched.names:
            return False
        try:
            return _is(watched, (self._path / link).stat().st_ino, path)
        except OSError:
            return False

    def _names(self, watched: _Watched, word: str) -> bool:
        if watched.directory.name not in word and os.path.basename(watched.real) not in word:  # noqa: PTH119 - a string
            return False
        values = {word, word.partition("=")[2]} - {""}
        return any(_within(os.path.realpath(os.path.join(self._directory, value)), watched.real) for value in values)  # noqa: PTH118 - strings

    def _read(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except PermissionError:
            self._hidden = True
        except OSError:
            pass
        return b""

    def _link(self, name: str) -> str:
        try:
            return os.readlink(self._path / name)  # noqa: PTH115 - a string, which need not be a path
        except PermissionError:
            self._hidden = True
        except OSError:
            pass
        return ""

    def _descriptors(self) -> list[str]:
        try:
            return [f"fd/{name}" for name in os.listdir(self._path / "fd")]
        except PermissionError:
            self._hidden = True
        except OSError:
            pass
        return []

    def _mappings(self) -> Iterator[list[bytes]]:
        """Yield the fields of each mapping of a file: address, modes, offset, device, inode, path (proc(5))."""
        for line in self._read("maps").splitlines():
            words = line.split(maxsplit=5)
            if len(words) == 6 and words[5].startswith(b"/"):  # noqa: PLR2004 - see above
                yield words


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _is(watched: _Watched, inode: int, path: str) -> bool:
    """Tell by inode and name; device numbers differ between /proc/*/maps and stat(2) on some file systems."""
    return watched.inodes.get(inode) == path.removesuffix(_DELETED).rpartition("/")[2]


def _watch(directory: Path) -> _Watched:
    inodes = dict(_inodes(directory))
    return _Watched(directory, os.path.realpath(directory), inodes, frozenset(inodes.values()))


def _inodes(directory: Path) -> Iterator[tuple[int, str]]:
    pending = [str(directory)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry.inode(), entry.name
