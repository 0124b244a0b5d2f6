"""The loop over sources: the first one with a place that passes every validator wins."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from vllmrt import discovery
from vllmrt.errors import ModelNotFound, ModelRejected, VllmrtError
from vllmrt.events import Event, human_size
from vllmrt.identity import identity_hash
from vllmrt.resolve import manifest
from vllmrt.resolve.manifest import Manifest
from vllmrt.types import ModelTree, Severity, Skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllmrt.events import Emit, Level
    from vllmrt.host import Guard, PluginHost
    from vllmrt.locking import Holder
    from vllmrt.settings import Settings
    from vllmrt.types import Candidate, Finding, ModelRequest

Outcome = Literal["skipped", "failed", "rejected", "chosen"]


class Attempt(NamedTuple):
    """What one source, or one place that it offered, came to."""

    source: str
    outcome: Outcome
    reason: str
    hint: str | None = None


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

    def resolve(self, request: ModelRequest, sources: Sequence[str]) -> Resolved:
        """Find the model and prove it.

        Raises:
            ModelNotFound: no source has it; the message has a line per source.
            ModelRejected: it was found, but nowhere whole.
            LockTimeout: another process is resolving it.
            PluginError: a validator cannot be loaded, or two plugins claim a source's name.
        """
        guards = self._host.validators()
        with ExitStack() as stack:
            if not self._settings.dry_run:
                self._lock(stack, request)
            for name in sources:
                for candidate in self._candidates(name, request):
                    resolved = self._prove(name, candidate, request, guards)
                    if resolved:
                        return resolved
        raise self._failure(request)

    def _lock(self, stack: ExitStack, request: ModelRequest) -> None:
        from vllmrt import locking

        path = self._settings.store / ".locks" / f"{identity_hash(request.identity)}.lock"

        def waiting(holder: Holder | None) -> None:
            text = f"waiting for {holder or 'another process'}, which resolves the same model"
            self._emit(Event("resolve.wait", "lock", text, data={"path": str(path)}))

        try:
            stack.enter_context(locking.hold(path, timeout=self._settings.resolve_lock_timeout, waiting=waiting))
        except OSError:
            # A store that cannot be written holds models in place only, and those need no lock.
            return

    def _candidates(self, name: str, request: ModelRequest) -> Iterator[Candidate]:
        entry = self._host.select(discovery.SOURCES, name)
        if entry is None:
            self._record(Attempt(name, "skipped", "no plugin of that name is installed"))
            return
        try:
            answer = self._host.probe(self._host.source(entry), request)
        except VllmrtError as error:
            self._record(Attempt(name, "failed", str(error), error.hint))
            return
        if isinstance(answer, Skip):
            self._record(Attempt(name, "skipped", answer.reason, answer.hint))
        elif not answer:
            self._record(Attempt(name, "skipped", "it has no such model"))
        else:
            yield from answer

    def _prove(
        self, source: str, candidate: Candidate, request: ModelRequest, guards: Sequence[Guard]
    ) -> Resolved | None:
        path = _directory(candidate)
        if path is None:
            self._record(Attempt(source, "failed", f"{candidate.location} is no directory on this machine"))
            return None
        published = manifest.read(path / manifest.NAME)
        if published and published.identity != request.identity:
            self._record(Attempt(source, "skipped", f"{path} belongs to {published.identity}"))
            return None
        known_at = manifest.in_cache(self._settings.cache, request.identity, path)
        try:
            now = self._manifest(source, candidate, request, path, guards)
        except OSError as error:
            self._record(Attempt(source, "rejected", f"{error.filename}: {error.strerror}"))
            return None
        unchanged = now in (published, manifest.read(known_at))
        tree = ModelTree(path, request=request, candidate=candidate, unchanged=unchanged)
        if not self._passes(source, tree, guards):
            return None
        if not unchanged and not self._settings.dry_run:
            manifest.write(known_at, now)
        return self._chosen(source, tree, now)

    def _manifest(
        self, source: str, candidate: Candidate, request: ModelRequest, path: Path, guards: Sequence[Guard]
    ) -> Manifest:
        bent = {
            "skip_tokenizer_check": self._settings.skip_tokenizer_check,
            "safe_weights_only": self._settings.safe_weights_only,
        }
        return Manifest(
            identity=request.identity,
            source=source,
            location=str(path),
            revision=candidate.revision,
            guards=manifest.guards_of(((guard.entry.owner, guard.object.name) for guard in guards), **bent),
            files=manifest.states(path),
        )

    def _passes(self, source: str, tree: ModelTree, guards: Sequence[Guard]) -> bool:
        faults: list[str] = []
        for guard in guards:
            try:
                findings: Sequence[Finding] = self._host.check(guard, tree)
            except VllmrtError as error:
                faults.append(str(error))
                continue
            faults += [_words(finding) for finding in findings if finding.severity is Severity.ERROR]
            for finding in findings:
                if finding.severity is Severity.WARNING:
                    data = {"code": finding.code, "file": finding.file}
                    self._emit(Event("validate.warning", source, _words(finding), "warning", data))
        if faults:
            self._record(Attempt(source, "rejected", "\n".join([str(tree.path), *faults])))
        return not faults

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

    def _failure(self, request: ModelRequest) -> VllmrtError:
        hints = "\n".join(f"{attempt.source}: {attempt.hint}" for attempt in self._attempts if attempt.hint) or None
        attempts = [attempt._asdict() for attempt in self._attempts]
        if any(attempt.outcome == "rejected" for attempt in self._attempts):
            return ModelRejected(f"{request.identity} was found, but it is not whole", hint=hints, attempts=attempts)
        return ModelNotFound(f"no source has {request.identity}", hint=hints, attempts=attempts)


def _directory(candidate: Candidate) -> Path | None:
    if candidate.path is None or not candidate.path.is_dir():
        return None
    return Path(os.path.realpath(candidate.path))


def _words(finding: Finding) -> str:
    return f"{finding.file}: {finding.message}" if finding.file else finding.message
