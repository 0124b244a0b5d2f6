"""The source against stores of several kinds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from s3server import PART, POWERLESS_KEY, POWERLESS_SECRET
from vllmrt_source_fsspec import FsspecSource, address, backend, entries, reading, vllmrt_sources

from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt.settings import Settings
from vllmrt.types import Candidate, Digest, ModelRequest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3server import Bucket, S3Server

    Put = Callable[[str, bytes], None]

REQUEST = ModelRequest("meta/Llama-3")
DATA = bytes(range(256)) * 40_000  # 10 MB: several pieces
STORES = ["memory", "file", "s3_url", "gcs_url", "sftp_url", "ftp_url"]


def probe(source: FsspecSource, request: ModelRequest = REQUEST) -> Candidate:
    answer = source.probe(request)
    assert not isinstance(answer, Skip), answer
    (candidate,) = answer
    return candidate


def read(source: FsspecSource, candidate: Candidate, path: str, start: int = 0, stop: int | None = None) -> bytes:
    file = next(file for file in candidate.files if file.path == path)
    opened = source.open(candidate, file, start, file.size if stop is None else stop)
    try:
        buffer = memoryview(bytearray(1 << 20))
        parts = []
        while count := opened.readinto(buffer):
            parts.append(bytes(buffer[:count]))
        return b"".join(parts)
    finally:
        opened.close()
        opened.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return (tmp_path / "files").as_uri()


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest) -> str:
    """A place in each kind of store."""
    return f"{request.getfixturevalue(request.param)}/models/Llama-3"


def test_it_skips_without_its_setting() -> None:
    (source,) = vllmrt_sources(Settings())
    assert source.probe(REQUEST) == Skip("VLLMRT_MODEL_URL is not set")


def test_listing_and_ranges(url: str, put: Put) -> None:
    put(f"{url}/config.json", b"{}")
    put(f"{url}/sub/x.bin", DATA)
    put(f"{url}-70B/config.json", b"{ }")
    source = FsspecSource(url)
    candidate = probe(source)
    assert {file.path: file.size for file in candidate.files} == {"config.json": 2, "sub/x.bin": len(DATA)}
    assert all(file.version for file in candidate.files)
    assert candidate == probe(source), "a version is the same as long as the file is"
    for start, stop in [(0, 1), (len(DATA) - 1, len(DATA)), (1_000_000, 9_999_999), (0, len(DATA))]:
        assert read(source, candidate, "sub/x.bin", start, stop) == DATA[start:stop]


def test_a_sibling_is_another_model(url: str, put: Put) -> None:
    put(f"{url}-70B/config.json", b"{}")
    answer = FsspecSource(url).probe(REQUEST)
    assert isinstance(answer, Skip)
    assert answer.reason.startswith("nothing at ")


def test_eight_threads_at_once(url: str, put: Put) -> None:
    put(f"{url}/x", DATA)
    source = FsspecSource(url)
    candidate = probe(source)
    step = 1_500_000
    with ThreadPoolExecutor(8) as pool:
        ranges = range(0, len(DATA), step)
        parts = pool.map(lambda start: read(source, candidate, "x", start, min(start + step, len(DATA))), ranges)
        assert b"".join(parts) == DATA


def test_a_file_that_is_replaced_before_a_range(url: str, put: Put) -> None:
    put(f"{url}/x", DATA)
    source = FsspecSource(url)
    candidate = probe(source)
    assert read(source, candidate, "x", 0, 10) == DATA[:10]
    time.sleep(1.1)  # SFTP tells whole seconds
    put(f"{url}/x", DATA[::-1])
    with pytest.raises(ChangedError, match="x was replaced"):
        source.open(candidate, candidate.files[0], 10, 20)


def test_a_file_that_is_replaced_within_a_range(url: str, put: Put) -> None:
    put(f"{url}/x", DATA)
    source = FsspecSource(url)
    candidate = probe(source)
    opened = source.open(candidate, candidate.files[0], 0, len(DATA))
    buffer = memoryview(bytearray(1 << 20))
    opened.readinto(buffer)
    time.sleep(1.1)
    put(f"{url}/x", DATA[::-1])
    with pytest.raises(ChangedError):
        sum(iter(lambda: opened.readinto(buffer), 0))
    opened.close()


def test_a_file_that_is_gone(memory: str, put: Put) -> None:
    import fsspec

    put(f"{memory}/x", b"1")
    source = FsspecSource(memory)
    candidate = probe(source)
    fsspec.filesystem("memory").rm(f"{memory}/x")
    with pytest.raises(SourceError, match="any more") as caught:
        read(source, candidate, "x")
    assert not isinstance(caught.value, TransientSourceError)


@pytest.mark.parametrize("name", ["a b.bin", "é.bin", "日本/語", "a+b", "%41", "a;b", "a&b=c"])
def test_names_that_need_care(url: str, put: Put, name: str) -> None:
    put(f"{url}/{name}", name.encode())
    source = FsspecSource(url)
    candidate = probe(source)
    assert [file.path for file in candidate.files] == [name]
    assert read(source, candidate, name) == name.encode()


def test_empty_files_and_markers(bucket: Bucket, s3_url: str) -> None:
    bucket.put("models/Llama-3/", b"")
    bucket.put("models/Llama-3/sub/", b"")
    bucket.put("models/Llama-3/empty", b"")
    candidate = probe(FsspecSource(f"{s3_url}/models/Llama-3/"))
    assert [(file.path, file.size) for file in candidate.files] == [("empty", 0)]


def test_a_url_serves_many_models(memory: str, put: Put) -> None:
    put(f"{memory}/meta/Llama-3/x", b"1")
    put(f"{memory}/meta/mine/y", b"2")
    url = f"{memory}/{{org}}/{{name}}"
    assert [file.path for file in probe(FsspecSource(url)).files] == ["x"]
    assert [file.path for file in probe(FsspecSource(url, "mine")).files] == ["y"]


def test_special_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    assert [file.path for file in probe(FsspecSource(tmp_path.as_uri())).files] == ["config.json"]


def test_several_parts_have_a_version_and_no_digest(bucket: Bucket, s3_url: str) -> None:
    etag = bucket.put_multipart("m/x", DATA, PART)
    source = FsspecSource(f"{s3_url}/m")
    candidate = probe(source)
    (found,) = candidate.files
    assert (found.version.strip('"'), found.digest) == (etag, None)
    assert read(source, candidate, "x", 5_000_000, 6_000_000) == DATA[5_000_000:6_000_000]


def test_the_digest_of_google_is_hexadecimal(gcs_url: str, put: Put) -> None:
    put(f"{gcs_url}/m/x", DATA)
    (found,) = probe(FsspecSource(f"{gcs_url}/m")).files
    assert found.digest == Digest("md5", value=hashlib.md5(DATA).hexdigest())  # noqa: S324
    assert found.version.isdigit()


@pytest.mark.parametrize(
    "credentials",
    [(POWERLESS_KEY, POWERLESS_SECRET), ("AKIDnobody", "s3cr3t-nobody")],
    ids=["no rights", "no such key"],
)
def test_wrong_credentials(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credentials: tuple[str, str]
) -> None:
    for name, value in s3_server.environ(tmp_path, *credentials).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match="access denied") as caught:
        FsspecSource(f"{s3_url}/m").probe(REQUEST)
    assert credentials[1] not in f"{caught.value!r} {caught.value.hint}"


def test_no_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceError, match="no credentials"):
        FsspecSource(f"{s3_url}/m").probe(REQUEST)


@pytest.mark.parametrize("password", ["s3cr3t-pw", "wrong-s3cr3t"])
def test_a_password_in_the_url_is_shown_nowhere(sftp_url: str, put: Put, password: str) -> None:
    put(f"{sftp_url}/m/x", b"1")
    source = FsspecSource(sftp_url.replace("s3cr3t-pw", password) + "/m")
    try:
        said = repr(source.probe(REQUEST))
    except SourceError as error:
        assert password != "s3cr3t-pw"
        said = f"{error!r} {error.hint} {error.__cause__!r} {error.__context__ and error.__suppress_context__}"
    assert "s3cr3t" not in said
    assert "s3cr3t" not in repr(source)


@pytest.mark.parametrize("call", ["find", "info", "open"])
def test_what_a_backend_writes_into_its_errors_is_shown_nowhere(
    memory: str, put: Put, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    put(f"{memory}/x", b"1")
    source = FsspecSource(memory)
    candidate = probe(source)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("GET https://host/x?sig=s3cr3t")

    monkeypatch.setattr(backend.connect(memory)[0], call, fail)
    with pytest.raises(SourceError) as caught:
        source.probe(REQUEST) if call == "find" else read(source, candidate, "x")
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value)) + str(caught.value.hint)
    assert "ValueError" in str(caught.value)


def test_a_wrong_port_is_told(sftp_url: str) -> None:
    with pytest.raises(TransientSourceError, match=r"sftp://\*\*\*@127\.0\.0\.1:1/m gives no answer"):
        FsspecSource("sftp://user:s3cr3t-pw@127.0.0.1:1/m").probe(REQUEST)
    assert sftp_url


REFUSED = [
    ("gopher://x/y", "fsspec knows no gopher://", "driver"),
    ("/models/x", "VLLMRT_MODEL_URL is no URL", "gs://"),
    ("https://user:s3cr3t@host/x?sig=s3cr3t", "https:// cannot list", "s3://"),
    ("simplecache::s3://k:s3cr3t@b/x", "no URL", "gs://"),
    ("zip://x::s3://k:s3cr3t@b/x", "several URLs in a chain", "gs://"),
    ("webdav://host/x", "no driver for webdav:// beside vllmrt: Install webdav4", "pip install webdav4"),
    ("smb://user:s3cr3t@host/x", "no driver for smb:// beside vllmrt", "pip install smbprotocol"),
    ("az://container/x", "no driver for az:// beside vllmrt: Install adlfs", "pip install adlfs"),
    ("oss://bucket/x", "no driver for oss:// beside vllmrt: Install ossfs", "pip install ossfs"),
]


@pytest.mark.parametrize(("url", "words", "remedy"), REFUSED)
def test_urls_that_cannot_be_used(url: str, words: str, remedy: str) -> None:
    with pytest.raises(SourceError) as caught:
        FsspecSource(url).probe(REQUEST)
    assert words in str(caught.value)
    assert remedy in str(caught.value.hint)
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.hint}"


@pytest.mark.parametrize(("url", "asked"), [("gs://bucket/x", False), ("file:///nowhere", True)])
def test_offline_only_this_machine_is_asked(url: str, *, asked: bool) -> None:
    answer = FsspecSource(url).probe(ModelRequest("meta/Llama-3", offline=True))
    assert isinstance(answer, Skip)
    assert answer.reason.startswith("nothing at" if asked else "offline")


SHOWN = [
    ("gs://bucket/models/x", "gs://bucket/models/x"),
    ("s3://AKID:s3cr3t@bucket/x", "s3://***@bucket/x"),
    ("s3://AKID:s3c/r3t+s3cr3t@bucket/x", "s3://***@bucket/x"),
    ("s3://AKID:s3c?r3t#s3cr3t@bucket/x", "s3://***@bucket/x"),
    ("sftp://user:p@s3cr3t@host:22/x", "sftp://***@host:22/x"),
    ("sftp://s3cr3t@host/x", "sftp://***@host/x"),
    ("sftp://host:22/x", "sftp://host:22/x"),
    ("gs://bucket/a@b/c", "gs://bucket/a@b/c"),
    ("az://container/x?sig=s3cr3t", "az://container/x"),
    ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
    ("abfs://container:s3cr3t@account.dfs.core.windows.net/x", "abfs://***@account.dfs.core.windows.net/x"),
    ("oss://bucket/x#s3cr3t", "oss://bucket/x"),
    ("file:///srv/models/a b?c", "file:///srv/models/a b?c"),
    ("user:s3cr3t@host", "VLLMRT_MODEL_URL"),
    ("gs://a\nb", "gs://a?b"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert address.shown(url) == shown


ENTRIES = [
    ("google", {"generation": "17", "etag": "CJ", "md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="}, "17", "md5"),
    ("google, composed", {"generation": "17", "crc32c": "AAAAAQ=="}, "17", "crc32c"),
    ("amazon", {"ETag": '"5d41402abc4b2a76b9719d911017c592"'}, "5d41402abc4b2a76b9719d911017c592", None),
    ("azure, one file of an old driver", {"etag": '"0x8D"'}, "0x8D", None),
    ("azure", {"etag": "0x8D", "content_settings": {"content_md5": bytearray(16)}}, "0x8D", "md5"),
    ("azure, without", {"etag": "0x8D", "content_settings": {"content_md5": None}}, "0x8D", None),
    ("hugging face", {"blob_id": "ab", "lfs": {"sha256": "0" * 64}}, "ab", "sha256"),
    ("hugging face, small", {"blob_id": "ab", "lfs": None}, "ab", None),
    ("local", {"mtime": 1.5}, "1.500000-3", None),
    ("ftp", {"modify": "20260101120000"}, "20260101120000-3", None),
    ("webhdfs", {"modificationTime": 1_700_000_000_123, "fileId": 17}, "1700000000123.000000-3", None),
    ("nothing", {}, "", None),
    ("bad base64", {"md5Hash": "!"}, "!", None),
]


@pytest.mark.parametrize(("entry", "version", "algorithm"), [case[1:] for case in ENTRIES], ids=[c[0] for c in ENTRIES])
def test_what_backends_say(entry: dict[str, object], version: str, algorithm: str | None) -> None:
    (found,) = entries.files({"m/x": {"type": "file", "size": 3, **entry}}, "m")
    assert (found.path, found.version) == ("x", version)
    assert (found.digest.algorithm if found.digest else None) == algorithm


def test_what_only_begins_like_the_directory_is_left_out() -> None:
    """Some backends list by prefix."""
    found = {name: {"type": "file", "size": 1} for name in ("m/x", "m-70B/y", "m")}
    assert [file.path for file in entries.files(found, "m")] == ["x"]


def test_hostile_names_are_given_to_the_core_as_they_are() -> None:
    names = ["../x", "/etc/passwd", "a\\b", "a//b", "x/", "a\0b"]
    found = entries.files({f"m/{name}": {"type": "file", "size": 1} for name in names}, "m")
    assert [file.path for file in found] == sorted(names)


@pytest.mark.parametrize("call", ["_info", "_cat_file"])
def test_a_backend_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, s3_url: str, put: Put, call: str) -> None:
    from fsspec.asyn import sync

    put(f"{s3_url}/m/x", b"1")
    source = FsspecSource(f"{s3_url}/m")
    candidate = probe(source)
    store, _ = backend.connect(s3_url)

    async def hang(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(backend, "TIMEOUT", 0.3)
    blocking = call.removeprefix("_")
    monkeypatch.setattr(store, blocking, lambda path, **named: sync(store.loop, hang, path, **named))
    began = time.monotonic()
    with pytest.raises(TransientSourceError, match="gives no answer"):
        read(source, candidate, "x")
    assert time.monotonic() - began < 5


def test_a_file_that_was_not_listed() -> None:
    file = RemoteFile("x", size=1, version="1")
    with pytest.raises(SourceError, match="was not listed before"):
        FsspecSource("memory://x").open(Candidate("memory://x", files=(file,)), file, 0, 1)


def test_pieces_grow_and_stay_small_enough_for_eight_ranges() -> None:
    sizes: list[int] = []

    class Opened:
        def piece(self, start: int, stop: int) -> bytes:
            sizes.append(stop - start)
            return bytes(stop - start)

        def close(self) -> None:
            """Nothing to close."""

    opened = reading.Range(Opened(), 0, 30 << 20, lambda: None)
    buffer = memoryview(bytearray(1 << 20))
    assert sum(iter(lambda: opened.readinto(buffer), 0)) == 30 << 20
    assert (min(sizes), max(sizes)) == (1 << 20, reading.LARGEST)


def test_a_store_that_ignores_ranges_is_refused() -> None:
    class Opened:
        def piece(self, start: int, stop: int) -> bytes:
            return bytes(stop - start + 1)

        def close(self) -> None:
            """Nothing to close."""

    with pytest.raises(SourceError, match="more than was asked for"):
        reading.Range(Opened(), 0, 10, lambda: None).readinto(memoryview(bytearray(20)))
