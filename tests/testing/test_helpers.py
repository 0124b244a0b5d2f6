"""What the conformance classes are made of."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vllmrt.testing
from vllmrt.events import Event
from vllmrt.testing import FakeSource, RecordingProgress, assert_import_light, corrupt, fake_dist, make_model
from vllmrt.testing.network import cut_network
from vllmrt.testing.reading import digest_of
from vllmrt.types import ModelRequest, Skip

if TYPE_CHECKING:
    from pathlib import Path

CHECK = b"123456789"


@pytest.mark.parametrize(
    ("algorithm", "content", "value"),
    [
        ("crc32c", CHECK, "e3069283"),  # RFC 3720, B.4, and the catalogue of CRCs
        ("crc64nvme", CHECK, "ae8b14860a799888"),
        ("git-sha1", b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
        ("sha256", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_digests_are_those_of_their_specifications(algorithm: str, content: bytes, value: str) -> None:
    assert digest_of(algorithm, content) == value


def test_a_digest_that_nobody_can_check_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="etag is none of the algorithms"):
        digest_of("etag", b"")


def test_without_network_every_try_is_refused_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        tried = cut_network(monkeypatch)
        with pytest.raises(ConnectionRefusedError), socket.socket() as stream:
            stream.connect(address)
        with socket.socket() as stream:
            assert stream.connect_ex(address) != 0
        with pytest.raises(ConnectionRefusedError), socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"x", 0, address)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("localhost", 80)
    assert tried == [f"connect {address}", f"connect {address}", f"send to {address}", "look up localhost"]


def test_sockets_of_this_machine_alone_are_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a path of a socket may have no more than 107 bytes
    tried = cut_network(monkeypatch)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours,
    ):
        log.bind("log")
        ours.sendto(b"hello", "log")
        assert log.recv(10) == b"hello"
        ours.connect("log")
        ours.send(b"again")
        assert log.recv(10) == b"again"
    assert tried == []


def test_a_module_that_cannot_be_imported_is_told_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_dist(tmp_path / "site", "acme", "1.0", {}, {"acme_broken": "raise ValueError('sorry')"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(AssertionError, match=r"(?s)acme_broken cannot be imported:.*ValueError: sorry"):
        assert_import_light("acme_broken")


def test_a_module_may_import_what_its_author_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dist(tmp_path / "site", "acme", "1.0", {}, {"acme_yaml": "import yaml, json, vllmrt"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert_import_light("acme_yaml", allowed=["yaml"])
    with pytest.raises(AssertionError, match=r"importing acme_yaml imports yaml: "):
        assert_import_light("acme_yaml")


def test_the_helpers_need_no_pytest(tmp_path: Path) -> None:
    script = (
        "import sys; from vllmrt.testing import make_model, ByteServer, FakeSource; assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_every_name_is_there_and_no_other() -> None:
    for name in vllmrt.testing.__all__:
        assert getattr(vllmrt.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vllmrt.testing.Nothing  # type: ignore[attr-defined]  # noqa: B018 - the access is the test


def test_progress_is_remembered_and_may_interrupt() -> None:
    progress = RecordingProgress(interrupt_at="b")
    progress(Event("a", "first", "text"))
    with pytest.raises(KeyboardInterrupt):
        progress(Event("b", "second", "more"))
    assert [event.label for event in progress.named("b")] == ["second"]
    assert progress.text == "first text\nsecond more"


def test_files_are_spoilt_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for asked, expected in (({}, b"abb"), ({"flip": 0}, b"`bc"), ({"cut": 2}, b"a")):
        file.write_bytes(b"abc")
        assert corrupt(file, **asked).read_bytes() == expected  # type: ignore[arg-type]


def test_a_fake_source_tells_what_it_was_asked_for(tmp_path: Path) -> None:
    make_model(tmp_path / "org" / "name")
    source = FakeSource(tmp_path)
    answer = source.probe(ModelRequest("org/name"))
    assert not isinstance(answer, Skip)
    source.open(answer[0], answer[0].files[0], 1, 3).close()
    assert source.asked == [("config.json", 1, 3)]
