"""The conformance of a source whose models are fetched, and what is ModelScope's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from modelscope_server import ModelScopeServer
from vllmrt_modelscope import ModelScope

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.testing import RemoteSourceConformance, make_model
from vllmrt.types import Candidate, ModelRequest, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODEL = "org/name"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeServer]:
    with ModelScopeServer() as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", server.token)
        yield server


class TestConformance(RemoteSourceConformance):
    name = "modelscope"

    @pytest.fixture
    def secrets(self, server: ModelScopeServer) -> tuple[str, ...]:
        return (server.token,)

    @pytest.fixture
    def put(self, server: ModelScopeServer) -> Callable[[str, bytes], object]:
        files: dict[str, bytes] = {}

        def put(path: str, data: bytes) -> str:
            files[path] = data
            return server.commit(MODEL, files, private=True)

        return put


def probe(server: ModelScopeServer, revision: str | None = None, token: str | None = None) -> Candidate:
    answer = ModelScope(server.endpoint, token).probe(ModelRequest(MODEL, revision=revision))
    assert not isinstance(answer, Skip), answer
    return answer[0]


def read(source: ModelScope, candidate: Candidate, path: str) -> bytes:
    file = next(file for file in candidate.files if file.path == path)
    opened, buffer = source.open(candidate, file, 0, file.size), bytearray(file.size)
    at = 0
    while at < file.size:
        at += opened.readinto(memoryview(buffer)[at:])
    return bytes(buffer)


def test_a_branch_and_a_commit(server: ModelScopeServer) -> None:
    first = server.commit(MODEL, {"config.json": b"1", "kept.txt": b"k"})
    server.commit(MODEL, {"config.json": b"22", "kept.txt": b"k"}, branch="v2")
    second = server.commit(MODEL, {"config.json": b"333", "kept.txt": b"k"})
    sizes = {revision: probe(server, revision).files[0].size for revision in (None, "master", "v2", first)}
    assert sizes == {None: 3, "master": 3, "v2": 2, first: 1}
    assert {file.path: file.version for file in probe(server).files} == {"config.json": second, "kept.txt": first}


def test_what_was_listed_is_fetched_though_the_branch_has_moved_on(server: ModelScopeServer) -> None:
    server.commit(MODEL, {"config.json": b"old", "weights.bin": b"o" * 20_000})
    source, candidate = ModelScope(server.endpoint, None), probe(server)
    server.commit(MODEL, {"config.json": b"new!", "weights.bin": b"n" * 20_000})
    assert read(source, candidate, "config.json") == b"old"
    assert read(source, candidate, "weights.bin") == b"o" * 20_000


def test_the_token_goes_to_the_endpoint_and_not_to_its_store(server: ModelScopeServer) -> None:
    server.commit(MODEL, {"weights.bin": b"w" * 20_000}, private=True)
    assert isinstance(ModelScope(server.endpoint, None).probe(ModelRequest(MODEL)), Skip)
    assert isinstance(ModelScope(server.endpoint, "wrong").probe(ModelRequest(MODEL)), Skip)
    server.seen.clear()
    source = ModelScope(server.endpoint, server.token)
    assert read(source, probe(server, token=server.token), "weights.bin") == b"w" * 20_000
    sent = {target.startswith("/cdn/"): "Authorization" in headers for target, headers in server.seen}
    assert sent == {False: True, True: False}


@pytest.mark.parametrize("body", [b'{"Success": false, "Code": 10010205001}', b'{"Code": 200, "Data": null}'])
def test_what_is_not_there_is_skipped(server: ModelScopeServer, body: bytes) -> None:
    server.commit(MODEL, {"config.json": b"{}"})
    server.listing = body
    source = ModelScope(server.endpoint, None)
    assert isinstance(source.probe(ModelRequest(MODEL)), Skip)
    server.failing = [404]
    assert isinstance(source.probe(ModelRequest(MODEL)), Skip)
    assert isinstance(source.probe(ModelRequest(MODEL, revision="v9")), Skip)


REFUSALS = [(400, SourceError), (401, SourceError), (403, SourceError), (429, TransientSourceError)]


@pytest.mark.parametrize(("status", "kind"), [*REFUSALS, (500, TransientSourceError), (503, TransientSourceError)])
def test_a_refusal(server: ModelScopeServer, status: int, kind: type[SourceError]) -> None:
    server.failing = [status]
    with pytest.raises(SourceError, match=str(status)) as caught:
        probe(server)
    assert type(caught.value) is kind


def test_a_listing_that_may_have_been_cut_is_refused(server: ModelScopeServer) -> None:
    server.commit(MODEL, {f"{number}.txt": b"" for number in range(3000)})
    with pytest.raises(SourceError, match="more files"):
        probe(server)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"Code": 200, "Data": {"Files": [{"Path": 1}]}}'])
def test_what_is_no_listing_is_refused(server: ModelScopeServer, body: bytes) -> None:
    server.commit(MODEL, {"config.json": b"{}"})
    server.listing = body or b"\0"
    with pytest.raises(SourceError, match="cannot be understood"):
        probe(server)


def test_modelscopes_own_client_downloads_from_this_server(
    server: ModelScopeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the server is no invention of ours."""
    client = pytest.importorskip("modelscope_hub", reason="pip install modelscope-hub")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = make_model(tmp_path / "model")
    server.upload(MODEL, model, private=True)
    client.HubApi(token=server.token, endpoint=server.endpoint).download_repo(
        MODEL, "model", local_dir=tmp_path / "got"
    )
    for path in model.iterdir():
        assert (tmp_path / "got" / path.name).read_bytes() == path.read_bytes()
