"""Ranges over HTTP: the bytes are right or an error says so, and a credential stays with its origin."""

from __future__ import annotations

import gc
import http.client
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from proxies import Certificate, Proxy, make_certificate

from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt.testing import ByteServer, Fault
from vllmrt.transfer.http import HttpRange, HttpStatusError, RangeClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = os.urandom(3 << 20)
PATH = "/org/name/model.safetensors"
TOKEN = "hf_UniqueTokenThatMustNotLeak7715"
SIGNATURE = "X-Amz-Signature=UniqueSignatureThatMustNotLeak7715"
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *map(str.lower, NAMES), *TRUST):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ByteServer]:
    with ByteServer({PATH: CONTENT}) as server:
        yield server
        assert server.crashed == []


@pytest.fixture
def client() -> Iterator[RangeClient]:
    client = RangeClient(timeout=5)
    yield client
    client.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Certificate) -> Iterator[ByteServer]:
    with ByteServer({PATH: CONTENT}, tls=certificate.context()) as server:
        yield server
        assert server.crashed == []


def drain(opened: HttpRange, block: int = 1 << 20) -> bytes:
    buffer = memoryview(bytearray(block))
    pieces = []
    while count := opened.readinto(buffer):
        pieces.append(bytes(buffer[:count]))
    opened.close()
    return b"".join(pieces)


def fetch(client: RangeClient, url: str, start: int = 0, stop: int = len(CONTENT), **more: Any) -> bytes:
    return drain(client.open(url, start, stop, **more))


RANGES = [(0, len(CONTENT)), (0, 1), (len(CONTENT) - 1, len(CONTENT)), (1, 70_001), (1 << 20, 2 << 20)]


@pytest.mark.parametrize("block", [1, 100, 4096, 1 << 20], ids="block={}".format)
@pytest.mark.parametrize(("start", "stop"), RANGES, ids="{}".format)
def test_the_bytes_that_were_asked_for(
    server: ByteServer, client: RangeClient, start: int, stop: int, block: int
) -> None:
    stop = min(stop, start + 50_000 * min(block, 100))
    assert drain(client.open(server.url(PATH), start, stop), block) == CONTENT[start:stop]
    assert server.seen[0].range == (start, stop)
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_first_buffer_smaller_than_what_came_with_the_headers(client: RangeClient) -> None:
    body = CONTENT[:6000]
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-5999/6000\r\nContent-Length: 6000\r\n\r\n"
    with ByteServer(plan=lambda _: Fault(raw=head + body)) as server:
        assert drain(client.open(server.url(PATH), 0, 6000), 100) == body


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("hang_up", [None, "said", "silent"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_kind_of_connection(
    certificate: Certificate,
    client: RangeClient,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    hang_up: str | None,
    scheme: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    tls = certificate.context() if scheme == "https" else None
    with ByteServer({PATH: CONTENT}, host=host, tls=tls) as server:
        server.fault(hang_up=hang_up, times=-1)
        for _ in range(3):
            assert fetch(client, server.url(PATH)) == CONTENT
        assert server.accepted == (3 if hang_up else 1)
        assert server.crashed == []


def test_an_empty_buffer_is_not_the_end(server: ByteServer, client: RangeClient) -> None:
    opened = client.open(server.url(PATH), 0, 10)
    assert opened.readinto(memoryview(bytearray())) == 0
    assert drain(opened) == CONTENT[:10]


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_chunks(server: ByteServer, client: RangeClient, size: int) -> None:
    server.fault(chunked=size, times=-1)
    stop = min(5 + 100 * size, len(CONTENT))
    assert fetch(client, server.url(PATH), 5, stop) == CONTENT[5:stop]
    assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]


def test_a_trickle_of_chunks_is_passed_on_as_it_comes(server: ByteServer, client: RangeClient) -> None:
    server.fault(chunked=100, rate=1000)
    opened = client.open(server.url(PATH), 0, 1000)
    before = time.monotonic()
    assert opened.readinto(memoryview(bytearray(1 << 20))) == 100
    assert time.monotonic() - before < 0.5
    opened.close()


def test_no_more_than_was_asked_for(client: RangeClient) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-2/9\r\nTransfer-Encoding: chunked\r\n\r\n"
    with ByteServer(plan=lambda _: Fault(raw=head + b"6\r\nabcdef\r\n0\r\n\r\n")) as server:
        assert fetch(client, server.url(PATH), 0, 3) == b"abc"


def test_the_whole_object_may_come_without_a_range(server: ByteServer, client: RangeClient) -> None:
    server.fault(whole=True)
    assert fetch(client, server.url(PATH)) == CONTENT


def test_a_range_may_be_called_200(client: RangeClient) -> None:
    """ModelScope's answers are of this kind."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Range: bytes "
    with ByteServer(plan=lambda _: Fault(raw=head + b"3-5/9\r\n\r\nabc")) as server:
        assert fetch(client, server.url(PATH), 3, 6) == b"abc"
        with pytest.raises(SourceError, match="ignores Range"):
            client.open(server.url(PATH), 2, 5)


# keep-alive


def test_a_connection_is_used_again(server: ByteServer, client: RangeClient) -> None:
    for start in range(0, 1000, 100):
        assert fetch(client, server.url(PATH), start, start + 100) == CONTENT[start : start + 100]
    assert server.accepted == 1


def test_a_range_that_was_given_up_is_not_read_by_the_next(server: ByteServer, client: RangeClient) -> None:
    opened = client.open(server.url(PATH), 0, len(CONTENT))
    opened.readinto(memoryview(bytearray(100)))
    opened.close()
    opened.close()
    assert fetch(client, server.url(PATH), 7, 1000) == CONTENT[7:1000]
    assert server.accepted == 2


def test_a_connection_that_was_closed_while_idle_is_no_failure(server: ByteServer, client: RangeClient) -> None:
    fetch(client, server.url(PATH), 0, 10)
    server.hang_up()
    assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]
    assert (server.accepted, len(server.seen)) == (2, 2)


def test_a_connection_that_is_closed_by_the_second_request_is_no_failure(client: RangeClient) -> None:
    clients: list[int] = []

    def plan(seen: Any) -> Fault | None:
        clients.append(seen.client)
        return Fault(raw=b"") if clients.count(seen.client) == 2 else None

    with ByteServer({PATH: CONTENT}, plan=plan) as server:
        for _ in range(2):
            assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]
        assert (server.accepted, len(server.seen)) == (2, 3)


def test_a_fresh_connection_that_is_closed_is_a_failure(server: ByteServer, client: RangeClient) -> None:
    server.fault(raw=b"")
    with pytest.raises(TransientSourceError, match="hung up"):
        client.open(server.url(PATH), 0, 10)
    assert len(server.seen) == 1


def test_an_idle_connection_that_gives_no_answer_is_asked_once(server: ByteServer) -> None:
    client = RangeClient(timeout=0.3)
    fetch(client, server.url(PATH), 0, 10)
    server.fault(cut="silence")
    with pytest.raises(TransientSourceError, match="timed out"):
        client.open(server.url(PATH), 0, 10)
    assert len(server.seen) == 2
    client.close()


def test_an_answer_that_nobody_asked_for_is_not_read(client: RangeClient) -> None:
    poison = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\r\nPOISONPOIS"
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9999/10000\r\nContent-Length: 10000\r\n\r\n"
    raw = head + CONTENT[:10_000] + poison
    with ByteServer({PATH: CONTENT}, plan=lambda seen: Fault(raw=raw) if seen.range == (0, 10_000) else None) as server:
        assert fetch(client, server.url(PATH), 0, 10_000) == CONTENT[:10_000]
        time.sleep(0.05)
        assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]


def test_idle_connections_are_bounded(server: ByteServer) -> None:
    client = RangeClient(timeout=5, connections=2)
    opened = [client.open(server.url(PATH), 0, 10) for _ in range(6)]
    for one in opened:
        drain(one)
    assert descriptors(server.port) == 2
    client.close()
    assert descriptors(server.port) == 0


def descriptors(port: int) -> int:
    """Count our connections to a port."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sum(int(line.split()[2].rpartition(":")[2], 16) == port and line.split()[3] == "01" for line in lines)


def test_nothing_stays_open(server: ByteServer) -> None:
    """ResourceWarning is an error here."""
    client = RangeClient(timeout=5)
    for what in ({"status": 404}, {"status": 503}, {"cut": "fin", "at": 5}, {"cut": "reset", "at": 5}, {"raw": b"x"}):
        server.fault(**what)
        with pytest.raises(SourceError):
            fetch(client, server.url(PATH), 0, 10)
    del client
    gc.collect()
    time.sleep(0.05)
    assert descriptors(server.port) == 0


def test_many_threads_share_a_client(server: ByteServer, client: RangeClient) -> None:
    step = 64 << 10
    with ThreadPoolExecutor(16) as threads:
        pieces = threads.map(
            lambda start: fetch(client, server.url(PATH), start, start + step), range(0, len(CONTENT), step)
        )
        assert b"".join(pieces) == CONTENT
    assert server.accepted <= 16
    assert server.sent[PATH] == len(CONTENT)


# what hangs


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("hang_up", [None, "said"])
def test_close_ends_a_read_of_another_thread(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, scheme: str, hang_up: str | None
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    tls = certificate.context() if scheme == "https" else None
    client = RangeClient(timeout=30)
    with ByteServer({PATH: CONTENT}, tls=tls) as server:
        server.fault(cut="stall", at=50_000, hang_up=hang_up)
        opened = client.open(server.url(PATH), 0, len(CONTENT))
        failures: list[Exception] = []
        reader = threading.Thread(target=lambda: failures.append(failure(lambda: drain(opened))), daemon=True)
        reader.start()
        time.sleep(0.3)
        assert reader.is_alive()
        opened.close()
        reader.join(1)
        assert not reader.is_alive()
        assert isinstance(failures[0], TransientSourceError)
        opened.close()


def failure(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        call()
    return caught.value


def test_what_was_closed_early_is_no_end(server: ByteServer, client: RangeClient) -> None:
    opened = client.open(server.url(PATH), 0, 10)
    opened.close()
    with pytest.raises(TransientSourceError, match="closed, 10 bytes early"):
        opened.readinto(memoryview(bytearray(10)))


STALLS = {"silence": {"cut": "silence"}, "body": {"cut": "stall", "at": 50_000}, "headers": {"header_pause": 9.0}}


@pytest.mark.parametrize("name", STALLS)
def test_a_stall_ends_in_time(server: ByteServer, name: str) -> None:
    client = RangeClient(timeout=0.3)
    server.fault(**STALLS[name])
    before = time.monotonic()
    with pytest.raises(TransientSourceError, match="timed out"):
        fetch(client, server.url(PATH))
    assert time.monotonic() - before < 2


@pytest.mark.parametrize(("at", "cut"), [(at, cut) for at in (0, 1, 50_000, 2 << 20) for cut in ("fin", "reset")])
def test_a_connection_that_breaks_is_no_end(server: ByteServer, client: RangeClient, at: int, cut: str) -> None:
    server.fault(cut=cut, at=at)
    with pytest.raises(TransientSourceError):
        fetch(client, server.url(PATH))
    assert fetch(client, server.url(PATH)) == CONTENT


def test_chunks_that_break_off(server: ByteServer, client: RangeClient) -> None:
    server.fault(chunked=1000, cut="fin", at=5000)
    with pytest.raises(TransientSourceError, match="bytes early"):
        fetch(client, server.url(PATH), 0, 10_000)


def test_nobody_listens(client: RangeClient) -> None:
    with ByteServer() as gone:
        url = gone.url(PATH)
    with pytest.raises(TransientSourceError, match="refused"):
        client.open(url, 0, 1)


# what the origin answers

LIES: dict[str, tuple[dict[str, Any], type[SourceError], str]] = {
    "ignores Range": ({"whole": True}, SourceError, "ignores Range"),
    "other start": ({"headers": {"Content-Range": "bytes 0-9/3145728"}}, TransientSourceError, "was given others"),
    "other stop": ({"headers": {"Content-Range": "bytes 10-20/3145728"}}, TransientSourceError, "was given others"),
    "no Content-Range": ({"headers": {"Content-Range": None}}, TransientSourceError, "was given others"),
    "endless number": ({"headers": {"Content-Range": f"bytes 10-{'9' * 5000}/*"}}, TransientSourceError, "no HTTP"),
    "shorter": ({"headers": {"Content-Length": "5"}}, TransientSourceError, "announced"),
    "longer": ({"headers": {"Content-Length": "11"}}, TransientSourceError, "announced"),
    "packed": ({"headers": {"Content-Encoding": "gzip"}}, SourceError, "packs"),
    "packed chunks": ({"headers": {"Transfer-Encoding": "gzip, chunked"}}, SourceError, "packs"),
    "another version": ({"headers": {"ETag": '"other"'}}, ChangedError, "not the version"),
    "garbage": ({"raw": b"hello\r\n\r\n"}, TransientSourceError, "no HTTP"),
    "endless header": ({"headers": {"X": "x" * 70_000}}, TransientSourceError, "no HTTP"),
    "broken refusal": (
        {"raw": b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"},
        TransientSourceError,
        "no HTTP",
    ),
    "412": ({"status": 412}, ChangedError, "412"),
    "416": ({"status": 416}, ChangedError, "416"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_seen(server: ByteServer, client: RangeClient, name: str) -> None:
    what, kind, words = LIES[name]
    server.fault(**what)
    with pytest.raises(SourceError, match=words) as caught:
        client.open(server.url(PATH), 10, 20, version=server.etag(PATH))
    assert type(caught.value) is kind
    assert fetch(client, server.url(PATH), 10, 20) == CONTENT[10:20]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 451, 204, 304])
@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [({}, b"", None), ({"X-Error-Code": "GatedRepo"}, b"", "GatedRepo"), ({}, b"<Code>NoKey</Code>", "NoKey")],
    ids=["bare", "hub", "s3"],
)
def test_a_refusal_is_final(
    server: ByteServer, client: RangeClient, status: int, headers: dict[str, str], body: bytes, code: str | None
) -> None:
    bodiless = status in {204, 304}
    server.fault(status=status, headers=headers, body=b"" if bodiless else body)
    with pytest.raises(HttpStatusError, match=str(status)) as caught:
        client.open(server.url(PATH), 0, 10)
    assert caught.value.status == status
    assert caught.value.code == (None if bodiless and body else code)
    assert not isinstance(caught.value, TransientSourceError)


PAUSES: list[tuple[dict[str, str], float | None]] = [
    ({}, None),
    ({"Retry-After": "3"}, 3),
    ({"Retry-After": "3600"}, 75),
    ({"Retry-After": "soon"}, None),
    ({"Retry-After": formatdate(time.time() + 9_000, usegmt=True)}, 75),
    ({"Retry-After": formatdate(time.time() - 9_000, usegmt=True)}, 0),
    ({"ratelimit": '"api";r=0;t=7'}, 7),
]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(("headers", "seconds"), PAUSES)
def test_trouble_may_pass(
    server: ByteServer, client: RangeClient, status: int, headers: dict[str, str], seconds: float | None
) -> None:
    server.fault(status=status, headers=headers)
    with pytest.raises(TransientSourceError, match=str(status)) as caught:
        client.open(server.url(PATH), 0, 10)
    assert caught.value.retry_after == seconds
    assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]


@pytest.mark.parametrize("version", ["quoted", "bare", "weak"])
def test_the_version_is_asked_for(server: ByteServer, client: RangeClient, version: str) -> None:
    etag = server.etag(PATH)
    asked = {"quoted": etag, "bare": etag.strip('"'), "weak": f"W/{etag}"}[version]
    assert fetch(client, server.url(PATH), 0, 10, version=asked) == CONTENT[:10]
    assert server.seen[0].headers.get("if-match") == (None if version == "weak" else etag)
    server.fault(replace=b"something else")
    with pytest.raises(ChangedError):
        client.open(server.url(PATH), 0, 10, version=asked)


# redirects and credentials

SECRETS = {
    "Authorization": f"Bearer {TOKEN}",
    "Cookie": TOKEN,
    "X-Amz-Security-Token": TOKEN,
    "X-Auth": TOKEN,
    "Private": TOKEN,
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_credential_stays_with_its_origin(server: ByteServer, client: RangeClient, status: int) -> None:
    with ByteServer({PATH: CONTENT}) as other:
        server.redirect("/a", "/b", status=status)
        server.redirect("/b", f"{other.url('/c')}?{SIGNATURE}", status=status)
        other.redirect("/c", PATH, status=status)
        opened = client.open(server.url("/a"), 0, 10, headers={**SECRETS, "Accept": "text/html"})
        assert (drain(opened), opened.url) == (CONTENT[:10], other.url(PATH))
        for seen in server.seen:
            assert {seen.headers[name.lower()] for name in SECRETS} == {f"Bearer {TOKEN}", TOKEN}
        assert [seen.path for seen in other.seen] == ["/c", PATH]
        assert TOKEN not in str(other.seen)
        assert other.seen[1].headers["accept"] == "text/html"
        assert other.seen[1].range == (0, 10)


def test_another_port_and_another_name_are_other_origins(server: ByteServer, client: RangeClient) -> None:
    server.redirect("/a", f"http://localhost:{server.port}{PATH}")
    assert fetch(client, server.url("/a"), 0, 10, headers=SECRETS) == CONTENT[:10]
    assert TOKEN in str(server.seen[0])
    assert TOKEN not in str(server.seen[1])


CIRCLES = {
    "itself": ("/a", "circle"),
    "growing": ("/a?{}", "more than 5"),
    "nowhere": ("", "nowhere"),
    "file": ("file:///etc/passwd", "only http"),
    "ftp": ("ftp://127.0.0.1/a", "only http"),
    "no host": ("http:///a", "circle"),
    "no port": ("http://127.0.0.1:99999/a", "cannot be used"),
    "no address": ("http://[::1/a", "nowhere"),
    "space": ("/a b", "no spaces"),
    "eight bit": ("/\xe4", "no spaces"),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_redirects_that_lead_nowhere(server: ByteServer, client: RangeClient, name: str) -> None:
    location, words = CIRCLES[name]
    server.redirect("/a", location)
    with pytest.raises(SourceError, match=words) as caught:
        client.open(server.url("/a"), 0, 1)
    assert not isinstance(caught.value, TransientSourceError)
    assert len(server.seen) <= 6


@pytest.mark.parametrize("count", [5, 6])
def test_five_redirects_are_followed(server: ByteServer, client: RangeClient, count: int) -> None:
    for index in range(count):
        server.redirect(f"/{index}", PATH if index == count - 1 else f"/{index + 1}")
    if count == 5:
        assert fetch(client, server.url("/0"), 0, 10) == CONTENT[:10]
    else:
        with pytest.raises(SourceError, match="more than 5"):
            client.open(server.url("/0"), 0, 10)


def test_https_never_becomes_http(
    server: ByteServer, secure: ByteServer, client: RangeClient, certificate: Certificate, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    secure.redirect("/a", server.url(PATH))
    with pytest.raises(SourceError, match="from https to http"):
        client.open(secure.url("/a"), 0, 10)
    assert server.seen == []
    server.redirect("/b", secure.url(PATH))
    assert fetch(client, server.url("/b"), 0, 10) == CONTENT[:10]


# what may not be sent, and what may not be shown

BAD_URLS = {
    "newline": "http://127.0.0.1/a\r\nX: y",
    "space": "http://127.0.0.1/a b",
    "nul": "http://127.0.0.1/\0",
    "letter": "http://127.0.0.1/\u00e4",
    "scheme": "file:///etc/passwd",
    "none": "127.0.0.1/a",
    "host": "http:///a",
    "port": "http://127.0.0.1:99999/a",
    "port 0": "http://127.0.0.1:0/a",
    "word as port": "http://127.0.0.1:word/a",
    "bracket": "http://[::1/a",
    "label": f"http://{'a' * 70}.test/a",
    "empty label": "http://a..test/a",
}


@pytest.mark.parametrize("name", BAD_URLS)
def test_a_url_that_cannot_be_used(client: RangeClient, name: str) -> None:
    with pytest.raises(SourceError) as caught:
        client.open(f"{BAD_URLS[name]}?{SIGNATURE}", 0, 1)
    assert not isinstance(caught.value, TransientSourceError)
    assert "Unique" not in str(caught.value)


BAD_HEADERS = {
    "injected": {"Authorization": f"{TOKEN}\r\nX: y"},
    "folded": {"Authorization": f"{TOKEN}\r\n X: y"},
    "nul": {"Authorization": f"{TOKEN}\0"},
    "letter": {"Authorization": f"{TOKEN}\u20ac"},
    "name": {f"X\r\n{TOKEN[:2]}": "y"},
    "colon": {"X:": "y"},
    "empty": {"": "y"},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_cannot_be_sent(server: ByteServer, client: RangeClient, name: str) -> None:
    with pytest.raises(SourceError, match="cannot be sent") as caught:
        client.open(server.url(PATH), 0, 1, headers=BAD_HEADERS[name])
    assert not isinstance(caught.value, TransientSourceError)
    assert TOKEN not in str(caught.value)
    assert server.seen == []


def test_a_version_cannot_inject(server: ByteServer, client: RangeClient) -> None:
    with pytest.raises(SourceError, match="cannot be sent"):
        client.open(server.url(PATH), 0, 1, version='"a"\r\n X: y')
    assert server.seen == []


def test_the_caller_does_not_decide_over_the_framing(server: ByteServer, client: RangeClient) -> None:
    mine = {"range": "bytes=5-6", "HOST": "other", "Content-Length": "9", "User-Agent": "acme/1"}
    assert fetch(client, server.url(PATH), 0, 10, headers=mine) == CONTENT[:10]
    seen = server.seen[0]
    assert (seen.range, seen.headers["host"], seen.headers["user-agent"]) == (
        (0, 10),
        f"127.0.0.1:{server.port}",
        "acme/1",
    )
    assert "content-length" not in seen.headers


LEAKS: dict[str, dict[str, Any]] = {
    "refusal": {"status": 403, "body": b"<Code>AccessDenied</Code>"},
    "trouble": {"status": 503},
    "changed": {"status": 412},
    "broken": {"cut": "reset", "at": 3},
    "ended": {"cut": "fin", "at": 3},
    "whole": {"whole": True},
    "lie": {"headers": {"Content-Range": None}},
    "circle": {"status": 302, "headers": {"Location": f"/a?{SIGNATURE}"}},
    "downwards": {"status": 302, "headers": {"Location": f"ftp://x/?{SIGNATURE}"}},
    "echo": {"raw": f"GET {PATH}?{SIGNATURE} {TOKEN}\r\n\r\n".encode()},
}


@pytest.mark.parametrize("name", LEAKS)
def test_no_error_shows_a_signature_or_a_token(server: ByteServer, client: RangeClient, name: str) -> None:
    server.fault(PATH, times=-1, **LEAKS[name])
    url = server.url(PATH).replace("//", f"//me:{TOKEN}@")
    with pytest.raises(SourceError) as caught:
        fetch(client, f"{url}?{SIGNATURE}", 1, 10, headers={"Authorization": f"Bearer {TOKEN}"})
    text = f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"
    assert "Unique" not in text
    assert f"127.0.0.1:{server.port}{PATH}" in text or name in {"circle", "downwards"}


def test_a_range_does_not_show_its_url(server: ByteServer, client: RangeClient) -> None:
    opened = client.open(f"{server.url(PATH)}?{SIGNATURE}", 0, 1)
    assert repr(opened) == f"HttpRange({server.url(PATH)})"
    opened.close()


# certificates and proxies


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_of_ones_own(
    secure: ByteServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with pytest.raises(SourceError, match="not trusted") as caught:
        RangeClient(timeout=5).open(secure.url(PATH), 0, 10)
    assert "SSL_CERT_FILE" in (caught.value.hint or "")
    assert not isinstance(caught.value, TransientSourceError)
    monkeypatch.setenv(variable, str(certificate.chain))
    assert fetch(RangeClient(timeout=5), secure.url(PATH)) == CONTENT


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("beside", [None, "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_directory_of_authorities(
    secure: ByteServer,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    beside: str | None,
) -> None:
    folder, other = tmp_path / "authorities", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (folder / "mine.pem").write_bytes(certificate.chain.read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    if beside == "SSL_CERT_FILE" and variable == "SSL_CERT_DIR":
        monkeypatch.setenv(beside, str(make_certificate(other, "another").chain))
    elif beside == "SSL_CERT_DIR" and variable != beside:
        monkeypatch.setenv(beside, str(other))
    monkeypatch.setenv(variable, str(folder))
    assert fetch(RangeClient(timeout=5), secure.url(PATH), 0, 10) == CONTENT[:10]


def test_certificates_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(SourceError, match="SSL_CERT_FILE names certificates that cannot be read") as caught:
        RangeClient().open("https://127.0.0.1:9/a", 0, 1)
    assert not isinstance(caught.value, TransientSourceError)


def test_a_certificate_for_another_name(
    secure: ByteServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, client: RangeClient
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    with Proxy(to=("127.0.0.1", secure.port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        with pytest.raises(SourceError, match="not trusted"):
            client.open(f"https://another.test{PATH}", 0, 10, headers=SECRETS)
    assert secure.seen == []


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_through_a_proxy(
    secure: ByteServer,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    client: RangeClient,
    variable: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    with Proxy(user="me:s%cret", to=("127.0.0.1", secure.port)) as proxy:
        monkeypatch.setenv(variable, proxy.url("me:s%25cret"))
        for _ in range(2):
            assert fetch(client, f"https://origin.test{PATH}", headers=SECRETS) == CONTENT
        assert [(seen.method, seen.target) for seen in proxy.seen] == [("CONNECT", "origin.test:443")]
        assert TOKEN not in str(proxy.seen)
    assert secure.seen[0].headers["host"] == "origin.test"
    assert "proxy-authorization" not in secure.seen[0].headers


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_http_through_a_proxy(
    server: ByteServer, client: RangeClient, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with Proxy(user="me:secret") as proxy:
        monkeypatch.setenv(variable, proxy.url("me:secret"))
        url = server.url(PATH).replace("//", "//user:word@") + f"?{SIGNATURE}"
        assert fetch(client, url, 0, 1000) == CONTENT[:1000]
        assert [seen.target for seen in proxy.seen] == [f"{server.url(PATH)}?{SIGNATURE}"]
    assert "proxy-authorization" not in server.seen[0].headers


@pytest.mark.parametrize("bypass", ["127.0.0.1", "other.test,127.0.0.1", "*"])
def test_no_proxy(server: ByteServer, client: RangeClient, monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        monkeypatch.setenv("NO_PROXY", bypass)
        assert fetch(client, server.url(PATH), 0, 10) == CONTENT[:10]
        assert proxy.seen == []


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"user": "me:secret"}, SourceError, "407"),
        ({"refusal": 403}, SourceError, "403"),
        ({"refusal": 503}, TransientSourceError, "503"),
        ({"refusal": 429}, TransientSourceError, "429"),
    ],
    ids=["password", "forbidden", "trouble", "limit"],
)
def test_a_proxy_that_refuses(
    client: RangeClient, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: type[SourceError], words: str
) -> None:
    with Proxy(**options) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url(f"me:{TOKEN}"))
        with pytest.raises(SourceError, match=words) as caught:
            client.open("https://origin.test/a", 0, 1)
    assert type(caught.value) is kind
    assert TOKEN not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "proxy", [f"socks5://me:{TOKEN}@127.0.0.1:9", f"http://me:{TOKEN}@127.0.0.1:word", f"http://[{TOKEN}", "http://"]
)
def test_a_proxy_that_cannot_be_used(client: RangeClient, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(SourceError, match="proxy") as caught:
        client.open("http://origin.test/a", 0, 1)
    assert not isinstance(caught.value, TransientSourceError)
    assert TOKEN not in f"{caught.value} {caught.value.hint}"
    assert "NO_PROXY" in (caught.value.hint or "")


def test_http_client_still_keeps_what_we_read_beside_it() -> None:
    """The body is read past http.client: its names that we use are looked at, for a new Python."""
    names = set(vars(http.client.HTTPResponse)) | {"fp", "chunked", "will_close", "length"}
    assert {"read1", "close", "fp", "chunked"} <= names
