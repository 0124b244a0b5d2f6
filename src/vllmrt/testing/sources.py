"""What every model source has to do."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllmrt import discovery
from vllmrt.errors import SourceError
from vllmrt.resolve.loop import Resolver
from vllmrt.testing.conformance import Conformance, host_of, told_secrets
from vllmrt.testing.fakes import RecordingProgress
from vllmrt.testing.models import fingerprint
from vllmrt.testing.network import cut_network
from vllmrt.types import Candidate, ModelRequest, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllmrt.discovery import EntryPoint
    from vllmrt.host import PluginHost, Source
    from vllmrt.settings import Settings

UNKNOWN = ModelRequest("org/vllmrt-conformance-no-such-model")
ODD = {
    "space": ModelRequest("org/a b"),
    "umlaut": ModelRequest("org/größe"),
    "pattern": ModelRequest("org/[a-z]*?"),
    "quoted": ModelRequest("org/%2e%2e%2F"),
    "query": ModelRequest("org/a#b?c=d&e"),
    "braces": ModelRequest("org/{name}"),
    "flag": ModelRequest("org/-rf"),
    "shell": ModelRequest("org/$(id);'\""),
    "long": ModelRequest(f"org/{'n' * 200}"),
    "ref": ModelRequest("org/name", revision="refs/pr/3"),
    "quoted revision": ModelRequest("org/name", revision="%2e%2e"),
    "unknown revision": ModelRequest("org/name", revision="no-such-revision"),
}
"""Requests that `vllmrt.identity` lets pass, and that no source may stumble over."""


class SourceConformance(Conformance):
    """For a source of models that are on this machine already.

    A suite overrides the fixture `model`, most override `options`, and those with credentials `secrets`.
    """

    group = discovery.SOURCES

    @pytest.fixture
    def wanted(self) -> ModelRequest:
        """Return the request for the model; org/name unless overridden."""
        return ModelRequest("org/name")

    @pytest.fixture
    def model(self) -> Path:
        """Put a whole model where the source finds it, best with a worse one behind it, and return its directory."""
        raise NotImplementedError(f"{type(self).__name__} has to override the fixture 'model'")

    @pytest.fixture
    def source(self, host: PluginHost, entry: EntryPoint) -> Iterator[Source]:
        """Load the source as a run does; its `close`, where it has one, is called at the end."""
        source = host.source(entry)
        yield source
        close(source)

    @pytest.fixture
    def candidate(self, host: PluginHost, source: Source, wanted: ModelRequest, model: Path) -> Candidate:
        """Return the first place that the source offers for the model."""
        answer = host.probe(source, wanted)
        assert not isinstance(answer, Skip), f"it skips the model at {model}: {answer.reason}"
        assert answer, f"it offers nothing for the model at {model}"
        return answer[0]

    def test_the_best_place_comes_first(self, candidate: Candidate, model: Path) -> None:
        """The first candidate is the model: its directory, or a listing of all its files."""
        if candidate.path is not None:
            assert candidate.path.samefile(model), f"{candidate.path} comes before {model}"
        else:
            assert sorted(file.path for file in candidate.files) == sorted(files_of(model))

    @pytest.mark.usefixtures("model")
    def test_what_it_does_not_have_is_skipped_with_a_reason(self, host: PluginHost, source: Source) -> None:
        """A model that is not there is a Skip whose reason is one line, not nothing and not an error."""
        assert_skipped(host.probe(source, UNKNOWN))

    def test_without_its_settings_it_is_skipped_with_a_reason(self, unset: Settings, entry: EntryPoint) -> None:
        """A user who has told nothing, offline, is told what is missing."""
        host = host_of(unset, entry)
        source = host.source(entry)
        try:
            assert_skipped(host.probe(source, ModelRequest(UNKNOWN.model_id, offline=True)))
        finally:
            close(source)

    @pytest.mark.usefixtures("candidate")
    def test_probing_changes_nothing(
        self, host: PluginHost, source: Source, wanted: ModelRequest, model: Path, settings: Settings
    ) -> None:
        """Whoever asks twice finds models, store, cache, environment and working directory as before."""
        before = _surroundings(model, settings)
        host.probe(source, wanted)
        assert _surroundings(model, settings) == before

    def test_probing_again_gives_the_same(
        self, host: PluginHost, source: Source, wanted: ModelRequest, entry: EntryPoint, candidate: Candidate
    ) -> None:
        """The same question has the same answer, from the same object and from a new one."""
        first = host.probe(source, wanted)
        assert not isinstance(first, Skip)
        assert first[0] == candidate
        assert host.probe(source, wanted) == first
        another = host.source(entry)
        try:
            assert host.probe(another, wanted) == first
        finally:
            close(another)

    @pytest.mark.usefixtures("model")
    def test_offline_it_touches_no_network(
        self, host: PluginHost, source: Source, wanted: ModelRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An offline request connects to nobody and looks up no name, loopback included."""
        tried = cut_network(monkeypatch)
        host.probe(source, ModelRequest(wanted.model_id, revision=wanted.revision, offline=True))
        assert tried == []

    @pytest.mark.usefixtures("model")
    @pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
    def test_an_odd_name_is_no_crash(self, host: PluginHost, source: Source, odd: ModelRequest) -> None:
        """Every name and revision that a user may give is answered, skipped, or refused with a SourceError."""
        ask(host, source, odd)

    def test_no_secret_is_told(
        self, host: PluginHost, source: Source, candidate: Candidate, secrets: tuple[str, ...]
    ) -> None:
        """No credential is in the source's or a candidate's repr, in a location, a reason or an error."""
        texts = [repr(source.object), repr(candidate), candidate.location]
        texts += [said(lambda: host.probe(source, request)) for request in (UNKNOWN, *ODD.values())]  # noqa: B023 - called at once
        assert told_secrets(iter(texts), secrets) == []

    def test_the_model_passes_the_validators(
        self, host: PluginHost, settings: Settings, wanted: ModelRequest, model: Path
    ) -> None:
        """The core resolves the model from this source alone, and changes nothing where it lies."""
        before = fingerprint(model)
        progress = RecordingProgress()
        resolved = Resolver(host, settings, progress).resolve(wanted, [self.name])
        assert resolved.source == self.name
        assert progress.named("validate.ok"), progress.text
        assert fingerprint(model) == before


def close(source: Source) -> None:
    """Let a source give up what it holds open, if it has a way to."""
    release = getattr(source.object, "close", None)
    if callable(release):
        release()


def ask(host: PluginHost, source: Source, request: ModelRequest) -> None:
    """Fail if a source raises anything but a SourceError."""
    with suppress(SourceError):
        host.probe(source, request)


def said(call: Callable[[], object]) -> str:
    """Return what a call returns or raises, as text."""
    try:
        return repr(call())
    except Exception as error:  # noqa: BLE001 - which error it is, is the matter of another test
        return f"{error!r} {error} {getattr(error, 'hint', None)}"


def assert_skipped(answer: tuple[Candidate, ...] | Skip) -> None:
    """Fail unless an answer is a Skip with one line as its reason."""
    assert isinstance(answer, Skip), f"it answers {answer!r} where it should skip"
    assert answer.reason.strip(), "it skips without a reason"
    assert "\n" not in answer.reason, "its reason is longer than a line"


def files_of(model: Path) -> dict[str, bytes]:
    """Return the content of every file of a model by its path."""
    return {
        path.relative_to(model).as_posix(): path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()
    }


def _surroundings(model: Path, settings: Settings) -> tuple[object, ...]:
    places = [fingerprint(place) for place in (model, settings.store, settings.cache) if place.exists()]
    return places, dict(os.environ), Path.cwd()
