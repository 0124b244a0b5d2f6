"""Whether a directory may be served: what every validator has to say, and the manifest that notes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.errors import VllmrtError
from vllmrt.events import Event
from vllmrt.resolve.manifest import FileState, Manifest, guards_of
from vllmrt.types import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllmrt.events import Emit
    from vllmrt.host import PluginHost
    from vllmrt.settings import Settings
    from vllmrt.types import Candidate, ModelRequest, ModelTree


class Prover:
    """All validators of a run.

    Args:
        host: where they come from.
        settings: handed to them.
        emit: told of warnings.

    Raises:
        PluginError: one cannot be loaded, or there is none.
    """

    def __init__(self, host: PluginHost, settings: Settings, emit: Emit) -> None:
        self._host = host
        self._settings = settings
        self._emit = emit
        self._guards = host.validators()

    def faults(self, source: str, tree: ModelTree) -> list[str]:
        """Return what rejects a directory, a line each; a validator that breaks rejects it too."""
        faults: list[str] = []
        for guard in self._guards:
            try:
                findings: Sequence[Finding] = self._host.check(guard, tree)
            except VllmrtError as error:
                faults.append(f"{error} ({error.hint})" if error.hint else str(error))
                continue
            faults += [words(finding) for finding in findings if finding.severity is Severity.ERROR]
            for finding in findings:
                if finding.severity is Severity.WARNING:
                    data = {"code": finding.code, "file": finding.file}
                    self._emit(Event("validate.warning", source, words(finding), "warning", data))
        return faults

    def manifest(
        self, source: str, candidate: Candidate, request: ModelRequest, location: str, files: Mapping[str, FileState]
    ) -> Manifest:
        """Return what to note of a directory that has no faults."""
        bent = {
            "skip_tokenizer_check": self._settings.skip_tokenizer_check,
            "safe_weights_only": self._settings.safe_weights_only,
        }
        return Manifest(
            identity=request.identity,
            source=source,
            location=location,
            revision=candidate.revision,
            guards=guards_of(((guard.entry.owner, guard.name) for guard in self._guards), **bent),
            files=dict(files),
        )


def words(finding: Finding) -> str:
    """Return a finding in a line, with its file."""
    return f"{finding.file}: {finding.message}" if finding.file else finding.message
