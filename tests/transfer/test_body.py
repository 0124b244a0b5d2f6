"""Bodies over TLS, whose records are small."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from proxies import Certificate, make_certificate

from vllmrt.errors import TransientSourceError
from vllmrt.testing import ByteServer
from vllmrt.transfer.http import RangeClient

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = os.urandom(300_000)
PATH = "/model.safetensors"
RECORD = 16 << 10


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[ByteServer]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    with ByteServer({PATH: CONTENT}, tls=certificate.context()) as server:
        yield server
        assert server.crashed == []


@pytest.fixture
def client() -> Iterator[RangeClient]:
    with closing(RangeClient(timeout=20)) as client:
        yield client


def test_the_records_that_are_there_come_at_once(server: ByteServer, client: RangeClient) -> None:
    stream = client.open(server.url(PATH), 0, len(CONTENT))
    deadline = time.monotonic() + 10
    while server.sent[PATH] < len(CONTENT) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # from the sender's buffers into ours
    buffer, counts = memoryview(bytearray(len(CONTENT))), []
    while sum(counts) < len(CONTENT):
        counts.append(stream.readinto(buffer[sum(counts) :]))
    assert buffer == CONTENT
    assert max(counts) > 4 * RECORD


def test_nothing_is_waited_for_behind_what_is_there(server: ByteServer, client: RangeClient) -> None:
    server.fault(PATH, cut="stall", at=50_000)
    stream = client.open(server.url(PATH), 0, len(CONTENT))
    buffer, count = memoryview(bytearray(len(CONTENT))), 0
    begin = time.monotonic()
    while count < 50_000:
        count += stream.readinto(buffer[count:])
    assert time.monotonic() - begin < 10
    stream.close()


@pytest.mark.parametrize("cut", ["fin", "reset"])
def test_an_end_takes_nothing_away_of_what_came_before(server: ByteServer, client: RangeClient, cut: str) -> None:
    server.fault(PATH, cut=cut, at=50_000)
    stream = client.open(server.url(PATH), 0, len(CONTENT))
    buffer, came = memoryview(bytearray(len(CONTENT))), [0]

    def read() -> None:
        for _ in range(100):
            came.append(came[-1] + stream.readinto(buffer[came[-1] :]))

    with pytest.raises(TransientSourceError, match="bytes early"):
        read()
    assert buffer[: came[-1]] == CONTENT[: came[-1]]
    assert came[-1] == 50_000 or cut == "reset"
