"""What the endpoint says is hostile: a reason or a name for the core to refuse, never a crash."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from vllmrt_source_hf_hub import listing, wire

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.types import Digest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Client
    from fakehub import FakeHub

    Clients = Callable[..., Client]

MODEL = "org/name"
SHA1, SHA256 = "a" * 40, "b" * 64


def plain(path: Any = "config.json", **changed: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 2, "oid": SHA1} | changed


def lfs(path: Any = "model.safetensors", **changed: Any) -> dict[str, Any]:
    return plain(path, size=134, lfs={"oid": SHA256, "size": 5, "pointerSize": 134} | changed)


def test_a_plain_file_and_one_in_lfs() -> None:
    assert listing.files([plain(), {"type": "directory", "path": "d"}, lfs(), {"type": "new"}]) == (
        RemoteFile("config.json", size=2, version=SHA1, digest=Digest("git-sha1", value=SHA1)),
        RemoteFile("model.safetensors", size=5, version=SHA256, digest=Digest("sha256", value=SHA256)),
    )


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a\\b", "a\0b", "a/", ".", "x" * 4096, "a\nb", "\ud800", " ", ".vllmrt.json"]
)
def test_a_hostile_name_is_passed_on_as_it_is(path: str) -> None:
    assert [file.path for file in listing.files([plain(path)])] == [path]


WRONG: list[Any] = [
    [7],
    ["config.json"],
    [None],
    [[]],
    [plain(path=None)],
    [plain(path=7)],
    [plain(path="")],
    [plain(path=["a"])],
    [plain(size=-1)],
    [plain(size="2")],
    [plain(size=None)],
    [plain(size=2.5)],
    [plain(size=True)],
    [plain(oid=None)],
    [plain(oid="")],
    [plain(oid=f"{SHA1}\n")],
    [plain(oid=SHA256)],
    [plain(oid=7)],
    [plain(lfs="yes")],
    [plain(lfs=[])],
    [plain(lfs={})],
    [lfs(size=-1)],
    [lfs(size=None)],
    [lfs(oid=None)],
    [lfs(oid=SHA1)],
    [lfs(oid="B" * 64)],
    [plain(), plain()],
    [plain("x" * 9999, size=-1)],
]


@pytest.mark.parametrize("entries", WRONG, ids=range(len(WRONG)))
def test_a_listing_of_wrong_types_is_refused(entries: list[Any]) -> None:
    with pytest.raises(SourceError) as caught:
        listing.files(entries)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer", [None, [], "x", {}, {"sha": None}, {"sha": "main"}, {"sha": f"{SHA1}/../x"}, {"sha": f"{SHA1}\n"}, 7]
)
def test_a_revision_without_a_commit_is_refused(answer: Any) -> None:
    with pytest.raises(SourceError, match="no commit"):
        listing.revision(answer)


@pytest.mark.parametrize(("gated", "expected"), [(False, False), ("auto", True), ("manual", True), (None, False)])
def test_gated(gated: Any, expected: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    assert listing.revision({"sha": SHA1, "gated": gated}) == (SHA1, expected)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Sign in to the hotel's network</html>",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"error": "x"}',
        b"null",
        b"7",
        b'"text"',
        b"9" * 10_000,
        b'[{"type": "file", "path": "x", "size": 1e999, "oid": "x"}]',
        b'[{"type": "file", "path": "x", "size": NaN, "oid": "x"}]',
    ],
    ids=range(11),
)
def test_a_body_that_is_no_listing_is_refused(hub: FakeHub, client: Clients, model: Path, body: bytes) -> None:
    hub.add(MODEL, model, listing=body)
    with pytest.raises(SourceError) as caught:
        client().probe()
    assert not isinstance(caught.value, TransientSourceError)


def test_a_body_without_an_end_is_refused(
    hub: FakeHub, client: Clients, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LARGEST_ANSWER", 1000)
    hub.add(MODEL, model, listing=b" " * 1001)
    with pytest.raises(SourceError, match="has no end"):
        client().probe()


def test_a_compressed_body_is_no_bomb(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    hub.fault("tree", status=200, headers={"Content-Encoding": "gzip"}, body=b"\x1f\x8b\x08\0")
    with pytest.raises(SourceError, match="no JSON"):
        client().probe()


def test_an_empty_repository_is_skipped(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model, listing=[])
    answer = client().probe()
    assert isinstance(answer, Skip)
    assert "no files" in answer.reason


def test_pages_in_a_circle_are_noticed(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    link = '<https://elsewhere.invalid/x?recursive=true&expand=false>; rel="next"'
    hub.fault("tree", status=200, headers={"Link": link}, body=json.dumps([plain()]).encode(), times=-1)
    with pytest.raises(SourceError, match="leads back"):
        client().probe()


def test_the_next_page_is_asked_of_the_endpoint_wherever_it_points(hub: FakeHub, client: Clients, model: Path) -> None:
    """A mirror passes on the Hub's own links; and no link may carry the token away."""
    hub.add(MODEL, model)
    hub.tokens["hf_x"] = set()
    link = f'<{hub.cdn}/api/elsewhere?cursor=1>; rel="first", <{hub.cdn}/api/elsewhere?cursor=0&limit=9>; rel="next"'
    hub.fault("tree", status=200, headers={"Link": link}, body=json.dumps([plain("one.json")]).encode())
    paths = {file.path for file in client(hf_token="hf_x").candidate().files}
    assert {"one.json", "config.json"} <= paths
    assert hub.seen[-1].query == "cursor=0&limit=9"
    assert {seen.origin for seen in hub.seen} == {"api"}


@pytest.mark.parametrize("page_size", [1000, 100_000])
def test_100_000_entries_take_less_than_5_s(hub: FakeHub, client: Clients, model: Path, page_size: int) -> None:
    entries = [lfs(f"shards/{number:06}.safetensors", size=number) for number in range(100_000)]
    hub.add(MODEL, model, listing=entries)
    hub.page_size = page_size
    asker = client()
    begun = time.monotonic()
    assert len(asker.candidate().files) == 100_000
    assert time.monotonic() - begun < 5
