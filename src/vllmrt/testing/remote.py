"""What every source whose models are fetched has to do besides."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest

from vllmrt.errors import ChangedError, SourceError
from vllmrt.resolve.loop import Resolver
from vllmrt.testing.conformance import host_of, told_secrets
from vllmrt.testing.fakes import RecordingProgress
from vllmrt.testing.models import make_model
from vllmrt.testing.network import cut_network
from vllmrt.testing.reading import BLOCKS, EDGES, Edge, Slowed, digest_of, read, read_in_turns
from vllmrt.testing.sources import SourceConformance, ask, files_of, said
from vllmrt.types import RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllmrt.discovery import EntryPoint
    from vllmrt.host import PluginHost, Source
    from vllmrt.settings import Settings
    from vllmrt.testing.reading import Opener
    from vllmrt.types import Candidate, ModelRequest, RemoteSource

    Put = Callable[[str, bytes], object]

CONFIG = "config.json"
GONE = RemoteFile("no/such file.bin", size=10, version="0")
_GRACE = 5.0
"""Seconds that the threads of an interrupted transfer have to end."""


class RemoteSourceConformance(SourceConformance):
    """For a source whose candidates have `files`.

    A suite overrides the fixture `put`, most override `options`, and those with credentials `secrets`.
    """

    @pytest.fixture
    def put(self) -> Put:
        """Return what stores one file of the model, replacing what is there: ``put("config.json", b"{}")``."""
        raise NotImplementedError(f"{type(self).__name__} has to override the fixture 'put'")

    @pytest.fixture
    def model(self, tmp_path: Path, put: Put) -> Path:
        """Store a whole model, file by file, and return the directory that has the same files."""
        path = make_model(tmp_path / "model")
        (path / "notes").mkdir()
        (path / "notes" / "read me+é.txt").write_text("quote me")
        (path / "original").mkdir()
        (path / "original" / "params.json").write_text('{"dim": 32}')  # listed, and never fetched
        for name, data in files_of(path).items():
            put(name, data)
        return path

    @pytest.fixture
    def opener(self, source: Source, candidate: Candidate) -> Opener:
        """Return what opens the candidate's files: the source itself, without the core's guard over it."""
        return partial(cast("RemoteSource", source.object).open, candidate)

    @pytest.fixture
    def largest(self, candidate: Candidate) -> RemoteFile:
        """Return the largest of the files."""
        return max(candidate.files, key=lambda file: file.size)

    def test_the_size_is_true(self, candidate: Candidate, model: Path) -> None:
        """Every file has the size that is listed."""
        true = {path: len(data) for path, data in files_of(model).items()}
        assert {file.path: file.size for file in candidate.files if true.get(file.path) != file.size} == {}

    def test_the_digest_is_true(self, candidate: Candidate, model: Path) -> None:
        """Every digest that is listed is that of the file's bytes, by an algorithm that the core can check."""
        files = files_of(model)
        wrong = {
            file.path: file.digest
            for file in candidate.files
            if file.digest and file.digest.value != digest_of(file.digest.algorithm, files[file.path])
        }
        assert wrong == {}

    def test_the_version_is_true(
        self, host: PluginHost, source: Source, wanted: ModelRequest, candidate: Candidate, put: Put, model: Path
    ) -> None:
        """Every file has a version, and other bytes of the same length have another."""
        assert [file.path for file in candidate.files if not file.version] == []
        put(CONFIG, other(files_of(model)[CONFIG]))
        answer = host.probe(source, wanted)
        assert not isinstance(answer, Skip), answer
        before, after = (named(one, CONFIG).version for one in (candidate, answer[0]))
        assert before != after, f"{CONFIG} was replaced, and its version is {after!r} as before"

    @pytest.mark.parametrize("block", BLOCKS)
    @pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.name)
    def test_open_gives_exactly_the_bytes_asked_for(
        self, opener: Opener, largest: RemoteFile, model: Path, edge: Edge, block: int
    ) -> None:
        """From ``start`` up to ``stop``, whatever the reader's buffer; past the end is nothing, or a SourceError."""
        content = files_of(model)[largest.path]
        start, stop = edge.of(largest.size)
        try:
            given = read(opener, largest, start, stop, block)
        except SourceError:
            assert stop > largest.size, "it refuses bytes that are there"
        else:
            assert given == content[start:stop]

    def test_open_serves_eight_threads_at_once(self, opener: Opener, largest: RemoteFile, model: Path) -> None:
        """Eight ranges of one file that are read in turns, and eight threads that read, get their own bytes each."""
        content, step = files_of(model)[largest.path], -(-largest.size // 8)
        ranges = [(start, min(start + step, largest.size)) for start in range(0, largest.size, step)]
        assert read_in_turns(opener, largest, ranges) == [content[start:stop] for start, stop in ranges]
        with ThreadPoolExecutor(8) as pool:
            whole = list(pool.map(lambda _: read(opener, largest, 0, largest.size, BLOCKS[0]), range(16)))
        assert all(one == content for one in whole)

    def test_a_changed_file_is_noticed(self, candidate: Candidate, opener: Opener, put: Put, model: Path) -> None:
        """Of a file that was replaced since it was listed come the old bytes or a ChangedError, never the new ones."""
        file, before = named(candidate, CONFIG), files_of(model)[CONFIG]
        put(CONFIG, other(before))
        try:
            given = read(opener, file, 0, file.size)
        except ChangedError:
            return
        except SourceError as error:
            pytest.fail(f"it raises a {type(error).__name__}, so the file is not listed again: {error}")
        assert given == before, "it gives bytes of another version than was listed"

    def test_a_missing_file_is_a_source_error(self, opener: Opener) -> None:
        """To open what is not there raises a SourceError."""
        with pytest.raises(SourceError):
            read(opener, GONE, 0, GONE.size)

    @pytest.mark.usefixtures("model")
    def test_an_unreachable_store_is_a_source_error(
        self, host: PluginHost, source: Source, wanted: ModelRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without network it skips, raises a SourceError, or answers if it needs none."""
        cut_network(monkeypatch)
        ask(host, source, wanted)

    def test_no_secret_is_in_an_error(
        self,
        host: PluginHost,
        source: Source,
        wanted: ModelRequest,
        opener: Opener,
        secrets: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No credential is in what is raised of a file that is missing or of a store that cannot be reached."""
        missing = said(lambda: read(opener, GONE, 0, GONE.size))
        cut_network(monkeypatch)
        assert told_secrets(iter([missing, said(lambda: host.probe(source, wanted))]), secrets) == []

    def test_an_interrupt_leaves_no_thread(
        self, settings: Settings, entry: EntryPoint, opener: Opener, largest: RemoteFile, wanted: ModelRequest
    ) -> None:
        """After Ctrl-C in a transfer every thread that was started for it ends."""
        read(opener, largest, 0, 1)  # what a source starts once and for all is there now
        before = set(threading.enumerate())
        host = host_of(settings, entry, kind=Slowed)
        with pytest.raises(KeyboardInterrupt):
            Resolver(host, settings, RecordingProgress(interrupt_at="transfer.progress")).resolve(wanted, [self.name])
        deadline = time.monotonic() + _GRACE
        while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sorted(thread.name for thread in left) == []


def named(candidate: Candidate, path: str) -> RemoteFile:
    """Return the file of a candidate that has this path."""
    return next(file for file in candidate.files if file.path == path)


def other(data: bytes) -> bytes:
    """Return other bytes of the same length."""
    return bytes(byte ^ 1 for byte in data)
