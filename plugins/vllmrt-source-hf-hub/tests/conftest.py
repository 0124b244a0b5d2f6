"""A hub on loopback, and a source that asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fakehub import FakeHub
from vllmrt_source_hf_hub import vllmrt_sources

from vllmrt.settings import Settings
from vllmrt.testing import make_model
from vllmrt.types import Candidate, ModelRequest, RemoteFile, RemoteSource, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "hf_UniqueTokenThatMustNotLeak0451"
MODEL = "org/name"


class Client:
    """The source as the core uses it."""

    def __init__(self, settings: Settings) -> None:
        (self.source,) = vllmrt_sources(settings)

    def probe(self, model_id: str = MODEL, **request: Any) -> tuple[Candidate, ...] | Skip:
        return self.source.probe(ModelRequest(model_id, **request))

    def candidate(self, model_id: str = MODEL, **request: Any) -> Candidate:
        answer = self.probe(model_id, **request)
        assert not isinstance(answer, Skip), answer
        (candidate,) = answer
        return candidate

    def read(self, candidate: Candidate, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of a file, as the engine gets them."""
        file = named(candidate, path)
        stop = file.size if stop is None else stop
        source: RemoteSource = self.source  # type: ignore[assignment]
        opened = source.open(candidate, file, start, stop)
        buffer, position = memoryview(bytearray(stop - start)), 0
        try:
            while position < len(buffer) and (count := opened.readinto(buffer[position:])):
                position += count
        finally:
            opened.close()
        return bytes(buffer[:position])


def named(candidate: Candidate, path: str) -> RemoteFile:
    return next(file for file in candidate.files if file.path == path)


@pytest.fixture(autouse=True)
def _nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose weights are in LFS and whose other files are not, with names that need quoting."""
    path = make_model(tmp_path / "model")
    (path / "original").mkdir()
    (path / "original" / "a b#c%41?+é.txt").write_text("quote me")
    return path


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub
    assert not hub.crashed


@pytest.fixture
def client(hub: FakeHub) -> Iterator[Callable[..., Client]]:
    """Make a client of the hub, with settings besides the endpoint."""
    made: list[Client] = []

    def make(**settings: Any) -> Client:
        made.append(Client(Settings(**({"hf_endpoint": hub.endpoint} | settings))))
        return made[-1]

    yield make
    for asker in made:
        asker.source.close()  # type: ignore[attr-defined]
