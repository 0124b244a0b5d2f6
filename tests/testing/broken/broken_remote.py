"""Remote sources, each wrong in one way that one test of the conformance kit is meant for."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllmrt
from vllmrt.errors import ChangedError, SourceError
from vllmrt.testing import FakeSource
from vllmrt.testing.fakes import FakeRange
from vllmrt.types import Candidate, Digest, RemoteFile, Skip

UNFETCHED = "original/params.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


class Broken(FakeSource):
    """What is right about all of them; `meant_for` is the test that has to fail, None for the one without a fault."""

    meant_for: str | None = None
    key = ""

    def __init__(self, root: Path | None) -> None:
        super().__init__(root, name=type(self).__name__)
        self.probed = 0

    def probe(self, request: Any) -> Any:
        self.probed += 1
        return super().probe(request)


class Fine(Broken):
    pass


class NameOfAnother(Broken):
    meant_for = "test_it_is_declared_once_and_under_its_own_name"

    def __init__(self, root: Path | None) -> None:
        super().__init__(root)
        self.name = "something-else"


class DeclaredTwice(Broken):
    meant_for = "test_it_is_declared_once_and_under_its_own_name"


class WorseFirst(Broken):
    meant_for = "test_the_best_place_comes_first"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        if isinstance(answer, Skip):
            return answer
        less = replace(answer[0], files=tuple(file for file in answer[0].files if file.path != UNFETCHED))
        return (less, *answer)


class SkipsInSilence(Broken):
    meant_for = "test_what_it_does_not_have_is_skipped_with_a_reason"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        return Skip(" ") if isinstance(answer, Skip) and self.root else answer


class AnswersNothing(Broken):
    meant_for = "test_what_it_does_not_have_is_skipped_with_a_reason"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        return () if isinstance(answer, Skip) and self.root else answer


class NeedsItsSettings(Broken):
    meant_for = "test_without_its_settings_it_is_skipped_with_a_reason"

    def probe(self, request: Any) -> Any:
        if self.root is None:
            raise SourceError("no directory")
        return super().probe(request)


class ChangesTheEnvironment(Broken):
    meant_for = "test_probing_changes_nothing"

    def probe(self, request: Any) -> Any:
        os.environ["BROKEN_PROBED"] = f"{os.environ.get('BROKEN_PROBED', '')}."
        return super().probe(request)


class ChangesItsMind(Broken):
    meant_for = "test_probing_again_gives_the_same"

    def probe(self, request: Any) -> Any:
        answer = super().probe(request)
        return answer if isinstance(answer, Skip) else (replace(answer[0], revision=f"r{self.probed}"),)


class PhonesHome(Broken):
    meant_for = "test_offline_it_touches_no_network"

    def probe(self, request: Any) -> Any:
        if request.offline and self.root:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", 9), timeout=1).close()
        return super().probe(request)


class LooksUp(Broken):
    meant_for = "test_offline_it_touches_no_network"

    def probe(self, request: Any) -> Any:
        if request.offline and self.root:
            with suppress(OSError):
                socket.getaddrinfo("localhost", 80)
        return super().probe(request)


class FormatsNames(Broken):
    meant_for = "test_an_odd_name_is_no_crash"

    def probe(self, request: Any) -> Any:
        request.model_id.replace("[", "{").format()
        return super().probe(request)


class ShowsItself(Broken):
    meant_for = "test_no_secret_is_told"

    def __repr__(self) -> str:
        return f"ShowsItself({self.key})"


class TellsInAnError(Broken):
    meant_for = "test_no_secret_is_told"

    def probe(self, request: Any) -> Any:
        if request.revision:
            raise SourceError("refused", hint=f"is {self.key} right?")
        return super().probe(request)


class SpoilsWeights(Broken):
    meant_for = "test_the_model_passes_the_validators"

    def __init__(self, root: Path | None) -> None:
        super().__init__(root)
        self.digests = False

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        opened = super().open(candidate, file, start, stop)
        return FakeRange(bytes(stop - start)) if file.path == SECOND else opened


class WrongSize(Broken):
    meant_for = "test_the_size_is_true"

    def describe(self, base: Path, path: str) -> RemoteFile:
        file = super().describe(base, path)
        return replace(file, size=file.size + 1) if path == UNFETCHED else file


class WrongDigest(Broken):
    meant_for = "test_the_digest_is_true"

    def describe(self, base: Path, path: str) -> RemoteFile:
        file = super().describe(base, path)
        return replace(file, digest=Digest("sha256", value="0" * 64)) if path == UNFETCHED else file


class DigestOfItsOwn(Broken):
    meant_for = "test_the_digest_is_true"

    def describe(self, base: Path, path: str) -> RemoteFile:
        file = super().describe(base, path)
        return replace(file, digest=Digest("etag", value="0")) if path == UNFETCHED else file


class OneVersion(Broken):
    """It notices changes, but not by the version."""

    meant_for = "test_the_version_is_true"

    def describe(self, base: Path, path: str) -> RemoteFile:
        return replace(super().describe(base, path), version="1")

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        content = self.content(candidate, file)
        if file.digest and self.describe(Path(candidate.location), file.path).digest != file.digest:
            raise ChangedError("another")
        return FakeRange(content[start:stop])


class NoVersion(OneVersion):
    def describe(self, base: Path, path: str) -> RemoteFile:
        file = super().describe(base, path)
        version = "" if path == UNFETCHED else file.digest.value if file.digest else "1"
        return replace(file, version=version)


class NoLastByte(Broken):
    meant_for = "test_open_gives_exactly_the_bytes_asked_for"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        opened = super().open(candidate, file, start, stop)
        return FakeRange(b"") if start == file.size - 1 else opened


class InclusiveStop(Broken):
    meant_for = "test_open_gives_exactly_the_bytes_asked_for"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        return super().open(candidate, file, start, stop + 1 if stop - start < 100 else stop)


class PadsTheEnd(Broken):
    meant_for = "test_open_gives_exactly_the_bytes_asked_for"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        content = self.content(candidate, file)
        super().open(candidate, file, start, stop)
        return FakeRange((content + bytes(100))[start:stop])


class OneHandle(Broken):
    """Whoever opens a file moves the position of all who read it."""

    meant_for = "test_open_serves_eight_threads_at_once"

    def __init__(self, root: Path | None) -> None:
        super().__init__(root)
        self.positions: dict[str, int] = {}

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        super().open(candidate, file, start, stop)
        content, source, path = self.content(candidate, file), self, file.path
        self.positions[path] = start

        class Shared(FakeRange):
            def readinto(self, buffer: memoryview, /) -> int:
                position = source.positions[path]
                piece = content[position : min(stop, position + len(buffer))]
                buffer[: len(piece)] = piece
                source.positions[path] += len(piece)
                return len(piece)

        return Shared(b"")


class Careless(Broken):
    meant_for = "test_a_changed_file_is_noticed"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        return FakeRange(self.content(candidate, file)[start:stop])


class RefusesChanges(Broken):
    """It notices, but says that asking again will not help."""

    meant_for = "test_a_changed_file_is_noticed"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        try:
            return super().open(candidate, file, start, stop)
        except ChangedError as error:
            raise SourceError(str(error)) from None


class ErrorsOfTheSystem(Broken):
    meant_for = "test_a_missing_file_is_a_source_error"

    def content(self, candidate: Candidate, file: RemoteFile) -> bytes:
        return Path(candidate.location, file.path).read_bytes()


class ErrorsOfTheNetwork(Broken):
    meant_for = "test_an_unreachable_store_is_a_source_error"

    def probe(self, request: Any) -> Any:
        if not request.offline:
            socket.getaddrinfo("localhost", 80)
        return super().probe(request)


class TellsWhatIsMissing(Broken):
    meant_for = "test_no_secret_is_in_an_error"

    def content(self, candidate: Candidate, file: RemoteFile) -> bytes:
        try:
            return super().content(candidate, file)
        except SourceError as error:
            raise SourceError(f"https://host/{file.path}?token={self.key}: {error}") from None


class ReadsAhead(Broken):
    """Each range has a thread that nobody ends."""

    meant_for = "test_an_interrupt_leaves_no_thread"

    def open(self, candidate: Candidate, file: RemoteFile, start: int, stop: int) -> Any:
        threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
        return super().open(candidate, file, start, stop)


BROKEN = {cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Broken)}
del BROKEN["Broken"]


@vllmrt.hookimpl
def vllmrt_sources(settings: Any) -> Any:
    Broken.key = settings.api_key
    for cls in BROKEN.values():
        yield cls(Path(settings.model_url) if settings.model_url else None)
