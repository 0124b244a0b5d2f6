"""The loop over sources: the first one with a place that passes every validator wins."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from vllmrt import discovery
from vllmrt.errors import (
    ChangedError,
    IntegrityError,
    PluginError,
    SourceError,
    TransientSourceError,
    VllmrtError,
)
from vllmrt.events import Event, human_size
from vllmrt.resolve import manifest
from vllmrt.resolve.attempts import Attempt, against_rivals, failure, place
from vllmrt.resolve.proof import Prover, words
from vllmrt.types import Candidate, ModelTree, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vllmrt.events import Emit, Level
    from vllmrt.host import PluginHost, Source
    from vllmrt.resolve.fetch import Staged
    from vllmrt.resolve.manifest import Manifest
    from vllmrt.resolve.store import Published, Store
    from vllmrt.settings import Settings
    from vllmrt.types import Finding, ModelRequest

_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds before a source is asked again, and the most that its Retry-After may make of them."""


class Resolved(NamedTuple):
    """A model that may be served.

    Attributes:
        path: the validated directory, free of symbolic links in its own path.
        request: what was asked for.
        candidate: where it comes from.
        source: the source that had it.
        manifest: what is known of its bytes.
        attempts: every attempt before it and itself, in order.
    """

    path: Path
    request: ModelRequest
    candidate: Candidate
    source: str
    manifest: Manifest
    attempts: tuple[Attempt, ...]


class Resolver:
    """One run of the loop.

    Args:
        host: where sources and validators come from.
        settings: the run's settings; nothing is written with `dry_run`.
        emit: told of every attempt as it ends.
    """

    def __init__(self, host: PluginHost, settings: Settings, emit: Emit) -> None:
        self._host = host
        self._settings = settings
        self._emit = emit
        self._attempts: list[Attempt] = []
        self._damaged: IntegrityError | None = None
        self._note: Callable[[str], None] = lambda _: None

    def resolve(self, request: ModelRequest, sources: Sequence[str]) -> Resolved:
        """Find the model and prove it.

        Raises:
            ModelNotFound: no source has it; `attempts` says why, source by source.
            ModelRejected: it was found, but nowhere whole.
            IntegrityError: bytes differ from the digest that their source publishes, and no other source has them.
            LockTimeout: another process is resolving it.
            NoSpace: the disk of the store is full.
            PluginError: a validator cannot be loaded, or two plugins claim a source's name.
        """
        prover = Prover(self._host, self._settings, self._emit)
        with ExitStack() as stack:
            if not self._settings.dry_run:
                self._lock(stack, request)
                self._recover(request)
            for name in sources:
                for source, candidate in self._candidates(name, request):
                    remote = candidate.path is None and candidate.files
                    way = self._fetch if remote else self._in_place
                    resolved = against_rivals(partial(way, source, candidate, request, prover), self._emit)
                    if resolved:
                        return resolved
        raise self._damaged or failure(request, self._attempts)

    def _lock(self, stack: ExitStack, request: ModelRequest) -> None:
        from vllmrt import locking
        from vllmrt.resolve.waiting import Waiting

        path = self._store().lock_path(request.identity)

        waiting, timeout = Waiting(self._emit, path), self._settings.resolve_lock_timeout
        try:
            self._note = stack.enter_context(locking.hold(path, timeout=timeout, waiting=waiting))
        except OSError:
            # A store that cannot be written holds models in place only, and those need no lock.
            return

    def _recover(self, request: ModelRequest) -> None:
        """Put in order what a kill left in the store, if anything was ever fetched into it."""
        store = self._store()
        with suppress(OSError):  # a store that cannot be written needs none
            if store.stagings():
                from vllmrt.resolve.recovery import recover

                recover(store, held=request.identity)

    def _candidates(self, name: str, request: ModelRequest) -> Iterator[tuple[Source, Candidate]]:
        entry = self._host.select(discovery.SOURCES, name)
        if entry is None:
            self._record(Attempt(name, "skipped", "no plugin of that name is installed"))
            return
        try:
            source = self._host.source(entry)
            answer = self._probe(source, request)
        except VllmrtError as error:
            self._record(Attempt(name, "failed", str(error), error.hint))
            return
        if isinstance(answer, Skip):
            self._record(Attempt(name, "skipped", answer.reason, answer.hint))
        elif not answer:
            self._record(Attempt(name, "skipped", "it has no such model"))
        else:
            yield from ((source, candidate) for candidate in answer)

    def _probe(self, source: Source, request: ModelRequest) -> Sequence[Candidate] | Skip:
        """Ask a source, and once more after a failure that may pass."""
        try:
            return self._host.probe(source, request)
        except TransientSourceError as error:
            self._emit(Event("resolve.retry", "retry", f"{source.name} is asked again: {error}"))
            time.sleep(min(error.retry_after or _PAUSE, _LONGEST_PAUSE))
            return self._host.probe(source, request)

    def _again(self, source: Source, request: ModelRequest, prover: Prover, error: ChangedError) -> Resolved | None:
        """List what was fetched anew, because the source has changed it."""
        self._emit(Event("resolve.retry", "retry", f"{source.name} is listed again: {error}"))
        for listed, candidate in self._candidates(source.name, request):
            resolved = self._fetch(listed, candidate, request, prover, again=True)
            if resolved:
                return resolved
        return None

    def _in_place(self, source: Source, candidate: Candidate, request: ModelRequest, prover: Prover) -> Resolved | None:
        name = source.entry.name
        there = place(name, candidate, request)
        if isinstance(there, Attempt):
            self._record(there)
            return None
        path, published = there
        try:
            now = prover.manifest(name, candidate, request, str(path), manifest.states(path))
        except OSError as error:
            self._reject(name, path, [f"{error.filename}: {error.strerror}"], published)
            return None
        known_at = manifest.in_cache(self._settings.cache, request.identity, path)
        # Not by the manifest in the directory itself: whoever made the directory may have made that too.
        unchanged = manifest.unchanged(manifest.read(known_at), now)
        tree = ModelTree(path, request=request, candidate=candidate, unchanged=unchanged)
        faults = prover.faults(name, tree)
        if faults:
            self._reject(name, path, faults, published)
            return None
        if not unchanged:
            self._remember(known_at, now)
        return self._chosen(name, tree, now)

    def _fetch(
        self, source: Source, candidate: Candidate, request: ModelRequest, prover: Prover, *, again: bool = False
    ) -> Resolved | None:
        from vllmrt.resolve.fetch import Fetcher, Staged, Unfit

        name, store = source.entry.name, self._store()
        staged: Staged | Published | None
        try:
            fetcher = Fetcher(store, self._settings, self._emit, self._note)
            if self._settings.dry_run:
                staged = fetcher.preview(name, candidate, request)
            else:
                staged = fetcher.fetch(name, self._host.opener(source, candidate), candidate, request)
        except Unfit as unfit:
            self._unfit(name, candidate, unfit.faults)
            return None
        except (SourceError, PluginError, IntegrityError) as error:
            if isinstance(error, ChangedError) and not again:
                return self._again(source, request, prover, error)
            self._damaged = error if isinstance(error, IntegrityError) else self._damaged
            self._record(Attempt(name, "failed", str(error), error.hint))
            return None
        if staged is None:
            return self._would_fetch(name, candidate, request, prover)
        if not isinstance(staged, Staged):
            here = Candidate(candidate.location, path=staged.path, revision=candidate.revision)
            return self._in_place(source, here, request, prover)
        return self._publish(name, candidate, request, prover, staged)

    def _publish(
        self, name: str, candidate: Candidate, request: ModelRequest, prover: Prover, staged: Staged
    ) -> Resolved | None:
        from vllmrt.resolve.publish import publish

        def accept(claimed: Path) -> bool:
            faults = prover.faults(name, ModelTree(claimed, request=request, candidate=candidate))
            if faults:
                claimed.lstat()  # not there: another process took it away, and the faults say nothing of the model
                self._reject(name, staged.files, faults)
            return not faults

        proven = prover.manifest(name, candidate, request, candidate.location, staged.states)
        target = self._store().target(request, self._settings.model)
        final = publish(staged.files, target, proven, inodes=staged.inodes, accept=accept)
        if final is None:
            return None
        self._emit(Event("publish", name, f"published at {target}", "good", {"path": str(target)}))
        self._remember(manifest.in_cache(self._settings.cache, request.identity, target), final)
        return self._chosen(name, ModelTree(target, request=request, candidate=candidate), final)

    def _remember(self, path: Path, proven: Manifest) -> None:
        """Note what was proven in the cache; without one, the next start checks again."""
        if not self._settings.dry_run:
            with suppress(OSError):
                manifest.write(path, proven)

    def _would_fetch(self, name: str, candidate: Candidate, request: ModelRequest, prover: Prover) -> Resolved:
        target = self._store().target(request, self._settings.model)
        now = prover.manifest(name, candidate, request, candidate.location, {})
        self._attempts.append(Attempt(name, "chosen", candidate.location))
        return Resolved(target, request, candidate, name, now, tuple(self._attempts))

    def _reject(self, source: str, path: Path, faults: Sequence[str], published: Manifest | None = None) -> None:
        if published and manifest.of(path) != published:
            from vllmrt.locking import taken_away

            raise taken_away(str(path))
        self._record(Attempt(source, "rejected", "\n".join([str(path), *faults])))

    def _unfit(self, source: str, candidate: Candidate, faults: Sequence[Finding]) -> None:
        """Note what the names of a listing alone say: nothing is fetched then."""
        self._record(Attempt(source, "rejected", "\n".join([candidate.location, *map(words, faults)])))

    def _chosen(self, source: str, tree: ModelTree, now: Manifest) -> Resolved:
        self._attempts.append(Attempt(source, "chosen", tree.candidate.location))
        if tree.request.revision and now.revision is None:
            text = f"its revision is not recorded; it is taken for {tree.request.revision}"
            self._emit(Event("resolve.revision", source, text, "warning"))
        size = human_size(manifest.total_size(now.files))
        revision = f"{now.revision[:7]} · " if now.revision else ""
        facts = {"source": source, "outcome": "chosen", "path": str(tree.path), "files": len(now.files)}
        text = f"{revision}{len(now.files)} files · {size} · {tree.candidate.location}"
        self._emit(Event("resolve.attempt", source, text, "good", facts))
        how = "unchanged since it was last checked" if tree.unchanged else "it is whole"
        self._emit(Event("validate.ok", "checked", how, "good", {"unchanged": tree.unchanged}))
        return Resolved(tree.path, tree.request, tree.candidate, source, now, tuple(self._attempts))

    def _record(self, attempt: Attempt) -> None:
        self._attempts.append(attempt)
        level: Level = "info" if attempt.outcome == "skipped" else "error"
        data = {"source": attempt.source, "outcome": attempt.outcome, "reason": attempt.reason}
        self._emit(Event("resolve.attempt", attempt.source, f"{attempt.outcome}: {attempt.reason}", level, data))

    def _store(self) -> Store:
        from vllmrt.resolve.store import Store

        return Store(self._settings.store)
