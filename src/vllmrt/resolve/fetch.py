"""One candidate of a remote source, fetched into staging: listing, selection, admission, transfer."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.errors import LockTimeout
from vllmrt.events import Event
from vllmrt.locking import taken_away
from vllmrt.paths import safe_join
from vllmrt.resolve import disk, manifest, recovery
from vllmrt.resolve.comparison import compare
from vllmrt.resolve.manifest import FileState
from vllmrt.resolve.publish import wait_for_another
from vllmrt.resolve.reporting import Reporter, amounts, announce, summary, verified
from vllmrt.resolve.reuse import plan_reuse, reuse
from vllmrt.resolve.store import Published
from vllmrt.transfer import ranges
from vllmrt.transfer.engine import Engine
from vllmrt.transfer.journal import Journal
from vllmrt.transfer.target import Target
from vllmrt.validate import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vllmrt.events import Emit
    from vllmrt.resolve.reuse import Reuse
    from vllmrt.resolve.store import Store
    from vllmrt.settings import Settings
    from vllmrt.types import Candidate, Finding, ModelRequest, ReadableRange, RemoteFile
    from vllmrt.validate.selection import Selection

HEADROOM = 64 << 20
"""Bytes that are to stay free on the disk of the store."""


class Staged(NamedTuple):
    """What lies in staging, complete and proven, to be validated and published.

    Attributes:
        files: the directory.
        states: every file with its size, digest and version.
        inodes: of each path the file that was proven.
    """

    files: Path
    states: dict[str, FileState]
    inodes: dict[str, int]


class Unfit(Exception):
    """The names of the files alone say that they are no model.

    Attributes:
        faults: errors that the validators would find.
    """

    def __init__(self, faults: Sequence[Finding]) -> None:
        super().__init__()
        self.faults = faults


class Fetcher:
    """Fetches one candidate; the lock of its identity is held.

    Args:
        store: where to.
        settings: connections, patterns.
        emit: told what is fetched and how far it is.
        note: told how far it is, in words, for whoever waits for the lock.
    """

    def __init__(self, store: Store, settings: Settings, emit: Emit, note: Callable[[str], None]) -> None:
        self._store = store
        self._settings = settings
        self._emit = emit
        self._note = note

    def fetch(
        self,
        source: str,
        opener: Callable[[RemoteFile, int, int], ReadableRange],
        candidate: Candidate,
        request: ModelRequest,
    ) -> Staged | Published:
        """Bring the files of a candidate into staging; what is published already is not fetched again.

        Args:
            source: its name.
            opener: opens the bytes ``start`` to ``stop`` of a file.
            candidate: what it offers.
            request: what was asked for.

        Returns:
            what is staged, or the published model where that is what the listing says.

        Raises:
            Unfit: what is chosen of the listing is no model.
            SourceError: the listing cannot be used, or bytes could not be had.
            IntegrityError: bytes differ from their digest.
            NoSpace: the disk is or would be full.
            ConfigError: the store cannot be written.
        """
        published = self._store.published(request, self._settings.model)
        staging = self._store.staging_path(request.identity)

        def fetch_index(whole: Reuse, index: RemoteFile) -> Path:
            self._stage(published, whole, request)
            with disk.writing(self._store.root):
                self._transfer(source, opener, [index], staging)
            return staging / recovery.FILES / index.path

        selection, plan = compare(
            published, candidate, self._settings, source=source, fetch_index=fetch_index, note=self._note
        )
        if plan.identical and published:
            self._clear(staging)
            return _renewed(published, plan.reused)
        if faults := missing([file.path for file in selection.wanted], self._settings):
            raise Unfit(faults)
        self._stage(published, plan, request)
        self._store.admit(staging, plan.wanted, headroom=HEADROOM)
        announce(self._emit, source, candidate, selection, plan.wanted)
        try:
            with disk.writing(self._store.root):
                inodes = {path: os.lstat(staging / recovery.FILES / path).st_ino for path in plan.reused}
                fetched = self._transfer(source, opener, plan.wanted, staging)
        except LockTimeout:
            return self._of_another(source, candidate, selection, request)
        states = plan.reused | {path: state for path, (state, _) in fetched.items()}
        if plan.wanted:
            verified(self._emit, source, plan.wanted, states)
        inodes |= {path: inode for path, (_, inode) in fetched.items()}
        return Staged(staging / recovery.FILES, dict(sorted(states.items())), inodes)

    def preview(self, source: str, candidate: Candidate, request: ModelRequest) -> Published | None:
        """Tell what `fetch` would fetch, and write nothing; arguments as there.

        Returns:
            the published model where that is what the listing says, None where something would be fetched.

        Raises:
            Unfit: as `fetch`.
            SourceError: the listing cannot be used.
        """
        published = self._store.published(request, self._settings.model)
        selection, plan = compare(published, candidate, self._settings, source=source)
        if plan.identical:
            text = f"nothing is to be fetched: {candidate.location} is published here"
        elif faults := missing([file.path for file in selection.wanted], self._settings):
            raise Unfit(faults)
        else:
            text = f"would be fetched: {summary(candidate, selection, plan.wanted)}"
        self._emit(Event("transfer.plan", source, text, data=amounts(source, selection, plan.wanted)))
        return published if plan.identical else None

    def _of_another(self, source: str, candidate: Candidate, selection: Selection, request: ModelRequest) -> Published:
        """Return what another process, which locks did not keep away, has published of what we were fetching."""

        def same() -> Published | None:
            there = self._store.published(request, self._settings.model)
            plan = plan_reuse(there, selection.wanted, source=source, location=candidate.location)
            return there if plan.identical else None

        published = wait_for_another(same)
        if published is None:
            raise taken_away(candidate.location)
        return published

    def _stage(self, published: Published | None, plan: Reuse, request: ModelRequest) -> None:
        reuse(published, plan, self._store.staging(request.identity))

    def _clear(self, staging: Path) -> None:
        """Remove what earlier runs have staged: links would keep the bytes of a model that is removed."""
        with suppress(OSError):  # a store that cannot be written
            recovery.discard(staging / recovery.FILES, staging)
            recovery.settle(staging, self._store.root)
            staging.rmdir()

    def _transfer(
        self,
        source: str,
        opener: Callable[[RemoteFile, int, int], ReadableRange],
        files: Sequence[RemoteFile],
        staging: Path,
    ) -> dict[str, tuple[FileState, int]]:
        """Fetch files, and give them their names in ``files/``; return the state and the inode of each."""
        connections = self._settings.connections
        with Journal(staging) as journal:
            targets = [Target(file, recovery.part(staging, file), journal) for file in files]
            try:
                done = {target.file.path: target.here() for target in targets}
                parts = ranges.plan(files, done, connections=connections)
                engine = Engine(opener, targets, connections=connections, stall=self._settings.stall_timeout)
                reporter = Reporter(self._emit, self._note, source, len(files), parts)
                try:
                    engine.run(parts, reporter)
                finally:
                    reporter.end()
            finally:
                for target in targets:
                    target.leave()
        for target in targets:
            _place(target.path, safe_join(staging / recovery.FILES, target.file.path))
        return {target.file.path: (_state(target), target.inode) for target in targets}


def _state(target: Target) -> FileState:
    digest = target.digest()
    return FileState(target.file.size, 0, f"{digest.algorithm}:{digest.value}", target.file.version)


def _renewed(published: Published, states: dict[str, FileState]) -> Published:
    """Note the times that the files of a model have now, so that the next start need not read them."""
    files = {
        path: msgspec.structs.replace(state, mtime_ns=states[path].mtime_ns)
        for path, state in published.manifest.files.items()
    }
    known = msgspec.structs.replace(published.manifest, files=files)
    if known != published.manifest:
        with suppress(OSError):  # a store that cannot be written
            manifest.write(published.path / manifest.NAME, known, mode=0o644 & ~disk.umask(), parents=False)
    return Published(published.path, known)


def _place(part: Path, path: Path) -> None:
    """Give a part its name in the model; it keeps its own, so that after a kill it is found again."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), part.lstat()):
            return
        path.unlink()
    if not disk.link(part, path):
        part.rename(path)
