"""The process table, as proc(5) shows it. What has ended meanwhile, or may not be seen, is None and not an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.types import ProcessInfo

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

PROC = Path("/proc")
_BLOCK = 1 << 16
_DELETED = " (deleted)"


class Stat(NamedTuple):
    """What ``/proc/<pid>/stat`` says of a process.

    Attributes:
        pid: its number.
        comm: its name, cut to 15 bytes by the kernel.
        state: one letter: ``Z`` and ``X`` are dead.
        ppid: its parent.
        pgrp: its process group.
        start_ticks: clock ticks from boot to its start; with the pid, its identity.
        rss: resident pages.
    """

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    start_ticks: int
    rss: int

    @property
    def alive(self) -> bool:
        """Whether it still runs: a zombie holds nothing but its number."""
        return self.state not in "ZX"


class Sockets(NamedTuple):
    """Who has sockets open.

    Attributes:
        owners: for each inode that was found, the processes that have it.
        hidden: how many processes may not be looked into.
    """

    owners: dict[int, set[int]]
    hidden: int


class ProcFs:
    """Reads one process table.

    Args:
        root: where it is mounted.
    """

    def __init__(self, root: Path = PROC) -> None:
        self.root = root
        self._prefix = str(root)

    def pids(self) -> list[int]:
        """Return every process that may be seen."""
        return [int(name) for name in os.listdir(self.root) if name.isdecimal()]

    def stat(self, pid: int) -> Stat | None:
        """Return the state of one process."""
        try:
            # the name may hold anything, parentheses and blanks too
            head, _, tail = self._read(pid, "stat").rpartition(b")")
            words = tail.split(maxsplit=22)
            numbers = [int(words[index]) for index in (1, 2, 19, 21)]
            return Stat(pid, os.fsdecode(head.partition(b"(")[2]), words[0].decode(), *numbers)
        except (OSError, IndexError, ValueError):
            return None

    def table(self, skip: Container[int] = ()) -> dict[int, Stat]:
        """Return the state of all processes but those in `skip`, read one by one, so that it is no single moment."""
        return {pid: stat for pid in self.pids() if pid not in skip and (stat := self.stat(pid))}

    def children(self, pid: int) -> list[int] | None:
        """Return the children of a process; None where they are not listed: a kernel without them, hidepid."""
        try:
            threads = os.listdir(f"{self._prefix}/{pid}/task")
            return [int(word) for one in threads for word in self._read(pid, f"task/{one}/children").split()]
        except OSError:
            return None

    def family(self, root: int) -> dict[int, Stat]:
        """Return the state of a process and of all its descendants, and of others where children are not listed.

        A list of children lacks some where one ends while it is read (proc(5)): it has to stay the same.
        """
        found: dict[int, Stat] = {}
        pending = [root]
        while pending:
            pid = pending.pop()
            if pid in found or (stat := self.stat(pid)) is None:
                continue
            found[pid] = stat
            children = self.children(pid)
            if children is None or children != self.children(pid):
                return self.table()
            pending += children
        return found

    def argv(self, pid: int) -> tuple[str, ...]:
        """Return a command line; empty for zombies, threads of the kernel, and what may not be seen."""
        try:
            text = self._read(pid, "cmdline").rstrip(b"\0")
        except OSError:
            return ()
        return tuple(map(os.fsdecode, text.split(b"\0"))) if text else ()

    def info(self, pid: int) -> ProcessInfo | None:
        """Return one process, without its ancestors; None where it ended while it was read."""
        before = self.stat(pid)
        if before is None or not before.alive:
            return None
        argv, uid, exe = self.argv(pid), self._uid(pid), self._exe(pid)
        after = self.stat(pid)
        if uid is None or after is None or after.start_ticks != before.start_ticks:
            return None
        title = argv[0] if len(argv) == 1 else ""
        return ProcessInfo(pid, uid=uid, start_ticks=before.start_ticks, exe=exe, argv=argv, title=title)

    def ancestry(self, pid: int) -> Iterator[int]:
        """Yield a process, its parent and so on, as far as they are seen."""
        seen: set[int] = set()
        while pid > 0 and pid not in seen:
            yield pid
            seen.add(pid)
            stat = self.stat(pid)
            pid = stat.ppid if stat else 0

    def sockets(self, inodes: Iterable[int], pids: Iterable[int] | None = None) -> Sockets:
        """Find who has sockets open.

        Args:
            inodes: of the sockets.
            pids: where to look; None looks everywhere.
        """
        wanted = {b"socket:[%d]" % inode: inode for inode in inodes}  # bytes need no decoding, ten thousand times
        root = os.fsencode(self.root)
        owners: dict[int, set[int]] = {}
        hidden = 0
        for pid in self.pids() if pids is None else pids:
            folder = b"%b/%d/fd" % (root, pid)
            try:
                names = os.listdir(folder)
            except PermissionError:
                hidden += 1
                continue
            except OSError:
                continue
            for name in names:
                try:
                    inode = wanted.get(os.readlink(b"%b/%b" % (folder, name)))  # noqa: PTH115 - a string, which is no path
                except OSError:
                    continue
                if inode is not None:
                    owners.setdefault(inode, set()).add(pid)
        return Sockets(owners, hidden)

    def uptime(self) -> float:
        """Return the seconds since boot, the clock of `Stat.start_ticks`."""
        return float((self.root / "uptime").read_text().split()[0])

    def _uid(self, pid: int) -> int | None:
        try:
            for line in self._read(pid, "status").splitlines():
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
        except (OSError, ValueError, IndexError):
            pass
        return None

    def _exe(self, pid: int) -> str | None:
        try:
            return os.readlink(f"{self._prefix}/{pid}/exe").removesuffix(_DELETED)  # noqa: PTH115 - need not be a path
        except OSError:
            return None

    def _read(self, pid: int, name: str) -> bytes:
        descriptor = os.open(f"{self._prefix}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _BLOCK)
            while len(text) >= _BLOCK and (block := os.read(descriptor, _BLOCK)):
                text += block
            return text
        finally:
            os.close(descriptor)
