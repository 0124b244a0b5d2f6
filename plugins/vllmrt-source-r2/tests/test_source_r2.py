"""The source against a real S3 server."""

from __future__ import annotations

import hashlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from s3server import DOMAIN, KEY, POWERLESS_KEY, POWERLESS_SECRET, SECRET
from vllmrt_source_r2 import bucket as bucket_module
from vllmrt_source_r2 import vllmrt_sources

from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt.settings import Settings
from vllmrt.transfer.http import HttpStatusError
from vllmrt.types import Candidate, Digest, ModelRequest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3server import Bucket, S3Server
    from vllmrt_source_r2 import R2Source

    Make = Callable[..., R2Source]

REQUEST = ModelRequest("meta/Llama-3")
DATA = bytes(range(256)) * 1000


def probe(source: R2Source, request: ModelRequest = REQUEST) -> Candidate:
    answer = source.probe(request)
    assert not isinstance(answer, Skip), answer
    (candidate,) = answer
    return candidate


def files(source: R2Source) -> dict[str, RemoteFile]:
    return {file.path: file for file in probe(source).files}


def read(source: R2Source, candidate: Candidate, path: str, start: int = 0, stop: int | None = None) -> bytes:
    file = next(file for file in candidate.files if file.path == path)
    stop = file.size if stop is None else stop
    opened = source.open(candidate, file, start, stop)
    try:
        buffer = memoryview(bytearray(70_000))
        parts = []
        while count := opened.readinto(buffer):
            parts.append(bytes(buffer[:count]))
        return b"".join(parts)
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "R2_BUCKET is not set"),
        ({"r2_models_prefix": "llm"}, "R2_BUCKET is not set"),
        ({"r2_bucket": "b"}, "R2_MODELS_PREFIX is not set"),
    ],
)
def test_it_skips_without_its_settings(settings: dict[str, str], reason: str) -> None:
    (source,) = vllmrt_sources(Settings(**settings))
    assert source.probe(REQUEST) == Skip(reason)


def test_it_skips_offline(sources: Make) -> None:
    answer = sources().probe(ModelRequest("meta/Llama-3", offline=True))
    assert isinstance(answer, Skip)
    assert answer.reason.startswith("offline")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (None, "no AWS credentials"),
        (("AWS_PROFILE", "absent"), "the AWS credentials cannot be loaded (ProfileNotFound)"),
    ],
)
def test_it_skips_without_credentials(
    sources: Make, environ: pytest.MonkeyPatch, setting: tuple[str, str] | None, reason: str
) -> None:
    environ.delenv("AWS_ACCESS_KEY_ID")
    environ.delenv("AWS_SECRET_ACCESS_KEY")
    if setting:
        environ.setenv(*setting)
    answer = sources(r2_endpoint_url="http://127.0.0.1:9").probe(REQUEST)
    assert isinstance(answer, Skip)
    assert answer.reason == reason
    assert answer.hint
    assert "AWS_ACCESS_KEY_ID" in answer.hint


def test_what_a_credential_process_prints_is_not_repeated(
    sources: Make, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ.delenv("AWS_ACCESS_KEY_ID")
    environ.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "aws-config").write_text("[default]\ncredential_process = sh -c 'echo s3cr3t-out >&2; exit 1'\n")
    answer = sources().probe(REQUEST)
    assert isinstance(answer, Skip)
    assert "s3cr3t" not in repr(answer)
    assert "CredentialRetrievalError" in answer.reason


def test_listing_has_sizes_versions_and_digests(bucket: Bucket, real: Make) -> None:
    large = DATA * 25
    bucket.put("llm/Llama-3/config.json", b"{}")
    bucket.put("llm/Llama-3/sub/part.bin", DATA)
    bucket.put("llm/Llama-3/empty", b"")
    etag = bucket.put_multipart("llm/Llama-3/model.safetensors", large)
    found = probe(real())
    assert found.location == f"s3://{bucket.name}/llm/Llama-3/"
    assert found.revision is None
    by_path = {file.path: file for file in found.files}
    assert {path: file.size for path, file in by_path.items()} == {
        "config.json": 2,
        "empty": 0,
        "model.safetensors": len(large),
        "sub/part.bin": len(DATA),
    }
    assert by_path["model.safetensors"].version.strip('"') == etag
    assert etag.endswith("-2")
    assert by_path["model.safetensors"].digest is None
    assert by_path["sub/part.bin"].digest == Digest("md5", value=hashlib.md5(DATA).hexdigest())  # noqa: S324


def test_the_directory_is_that_of_the_setting(bucket: Bucket, real: Make) -> None:
    bucket.put("llm/mine/config.json", b"{}")
    assert probe(real(model="mine")).location.endswith("/llm/mine/")


@pytest.mark.parametrize("prefix", ["llm", "llm/", "/llm", "//llm//"])
def test_slashes_around_the_prefix_do_not_matter(bucket: Bucket, real: Make, prefix: str) -> None:
    bucket.put("llm/Llama-3/config.json", b"{}")
    assert files(real(r2_models_prefix=prefix)).keys() == {"config.json"}


def test_a_prefix_may_be_the_top_or_deep(bucket: Bucket, real: Make) -> None:
    bucket.put("Llama-3/config.json", b"{}")
    bucket.put("a/b/Llama-3/params.json", b"{}")
    assert files(real(r2_models_prefix="/")).keys() == {"config.json"}
    assert files(real(r2_models_prefix="a/b")).keys() == {"params.json"}


def test_a_sibling_is_another_model(bucket: Bucket, real: Make) -> None:
    bucket.put("llm/Llama-3-70B/config.json", b"{}")
    answer = real().probe(REQUEST)
    assert isinstance(answer, Skip)
    assert answer.reason == f"nothing under s3://{bucket.name}/llm/Llama-3/"
    bucket.put("llm/Llama-3/config.json", b"{}")
    assert files(real()).keys() == {"config.json"}


def test_directory_markers_are_no_files(bucket: Bucket, real: Make) -> None:
    for key in ("llm/Llama-3/", "llm/Llama-3/sub/"):
        bucket.put(key, b"")
    bucket.put("llm/Llama-3/sub/x", b"1")
    assert files(real()).keys() == {"sub/x"}


def test_all_pages_are_listed(bucket: Bucket, real: Make) -> None:
    names = {f"{number:05}" for number in range(2500)}
    bucket.put_many(f"llm/Llama-3/{name}" for name in names)
    began = time.monotonic()
    assert files(real()).keys() == names
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (0, 256_000), (1, 2), (100_000, 228_000), (255_999, 256_000)],
)
def test_ranges(bucket: Bucket, real: Make, start: int, stop: int) -> None:
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    assert read(source, probe(source), "x", start, stop) == DATA[start:stop]


def test_a_range_past_the_end_is_refused(bucket: Bucket, real: Make) -> None:
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    with pytest.raises(TransientSourceError):
        read(source, probe(source), "x", len(DATA), len(DATA) + 10)


def test_eight_threads_at_once(bucket: Bucket, real: Make) -> None:
    data = DATA * 30
    bucket.put_multipart("llm/Llama-3/x", data)
    source = real()
    candidate = probe(source)
    step = 500_000
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(
            lambda start: read(source, candidate, "x", start, min(start + step, len(data))), range(0, len(data), step)
        )
        assert b"".join(parts) == data


@pytest.mark.parametrize(
    "name", ["a b.bin", "é.bin", "e\u0301.bin", "日本/語", "a+b", "%41", "a&b=c?d#e", "x;y", "~!$'()*,:@", "a\tb"]
)
def test_names_that_need_care(bucket: Bucket, real: Make, name: str) -> None:
    bucket.put(f"llm/Llama-3/{name}", name.encode())
    source = real()
    candidate = probe(source)
    assert [file.path for file in candidate.files] == [name]
    assert read(source, candidate, name) == name.encode()


def test_an_object_that_is_replaced_between_two_ranges(bucket: Bucket, real: Make) -> None:
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    candidate = probe(source)
    assert read(source, candidate, "x", 0, 10) == DATA[:10]
    bucket.put("llm/Llama-3/x", DATA[::-1])
    with pytest.raises(ChangedError):
        read(source, candidate, "x", 10, 20)


def test_an_object_that_is_gone(bucket: Bucket, real: Make) -> None:
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    candidate = probe(source)
    bucket.delete("llm/Llama-3/x")
    with pytest.raises(SourceError, match="no longer in bucket") as caught:
        read(source, candidate, "x", 0, 10)
    assert not isinstance(caught.value, TransientSourceError)


def test_a_url_is_signed_for_every_range(bucket: Bucket, real: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that is valid for a second serves a transfer of any length."""
    monkeypatch.setattr(bucket_module, "URL_VALID", 1)
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    candidate = probe(source)
    old = source._connect().sign("llm/Llama-3/x")  # noqa: SLF001
    assert read(source, candidate, "x", 0, 10) == DATA[:10]
    time.sleep(2.2)
    with pytest.raises(HttpStatusError) as caught:
        source._client().open(old, 0, 10)  # noqa: SLF001
    assert caught.value.status == 403
    assert read(source, candidate, "x", 10, 20) == DATA[10:20]


def test_credentials_that_were_exchanged_are_loaded_anew(
    s3_server: S3Server, bucket: Bucket, real: Make, environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a pod's mounted credentials are, in the middle of a transfer."""
    bucket.put("llm/Llama-3/x", DATA)
    source = real()
    candidate = probe(source)
    for name, value in s3_server.environ(tmp_path, POWERLESS_KEY, POWERLESS_SECRET).items():
        environ.setenv(name, value)
    before, closed = source._connect(), []  # noqa: SLF001
    environ.setattr(before, "close", lambda: closed.append(before))
    source._connect(again=True)  # noqa: SLF001
    assert closed == [before]
    for name, value in s3_server.environ(tmp_path).items():
        environ.setenv(name, value)
    assert read(source, candidate, "x", 0, 10) == DATA[:10]


WRONG = [
    (KEY, SECRET[:-1], "the secret access key is wrong", "AWS_SECRET_ACCESS_KEY"),
    ("AKIDnobody", SECRET, "does not know the access key", "AWS_ACCESS_KEY_ID"),
    (POWERLESS_KEY, POWERLESS_SECRET, "the credentials may not list bucket", "s3:ListBucket"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[2])
def test_wrong_credentials(
    s3_server: S3Server, real: Make, environ: pytest.MonkeyPatch, tmp_path: Path, case: tuple[str, str, str, str]
) -> None:
    key, secret, words, remedy = case
    for name, value in s3_server.environ(tmp_path, key, secret).items():
        environ.setenv(name, value)
    source = real()
    with pytest.raises(SourceError) as caught:
        source.probe(REQUEST)
    assert words in str(caught.value)
    assert remedy in str(caught.value.hint)
    assert not isinstance(caught.value, TransientSourceError)
    for said in (str(caught.value), repr(caught.value), str(caught.value.hint), repr(source)):
        assert secret not in said
        assert key not in said


def test_wrong_bucket(real: Make) -> None:
    with pytest.raises(SourceError, match=r"there is no bucket no-such-bucket at 127\.0\.0\.1:\d+") as caught:
        real(r2_bucket="no-such-bucket").probe(REQUEST)
    assert "R2_BUCKET" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a b", "../x", "x" * 300])
def test_a_bucket_name_that_cannot_be(real: Make, name: str) -> None:
    with pytest.raises(SourceError, match=r"bucket") as caught:
        real(r2_bucket=name).probe(REQUEST)
    assert "R2_BUCKET" in str(caught.value.hint)


def test_an_endpoint_that_nobody_answers(sources: Make, environ: pytest.MonkeyPatch) -> None:
    del environ
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        began = time.monotonic()
        with pytest.raises(TransientSourceError, match="cannot be reached") as caught:
            sources(r2_endpoint_url=f"http://user:s3cr3t@127.0.0.1:{taken.getsockname()[1]}").probe(REQUEST)
    assert time.monotonic() - began < 12
    assert "R2_ENDPOINT_URL" in str(caught.value.hint)
    assert "s3cr3t" not in repr(caught.value)


def test_virtual_addressing(
    s3_server: S3Server, bucket: Bucket, real: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the profile says; in a test, <bucket>.s3.test has to resolve."""
    resolve = socket.getaddrinfo

    def local(host: str, *rest: object, **named: object) -> object:
        return resolve("127.0.0.1" if str(host).endswith(DOMAIN) else host, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local)
    (tmp_path / "no-config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    bucket.put("llm/Llama-3/a b", DATA)
    source = real(r2_endpoint_url=f"http://{DOMAIN}:{s3_server.port}")
    candidate = probe(source)
    assert urlsplit(source._connect().sign("x")).hostname == f"{bucket.name}.{DOMAIN}"  # noqa: SLF001
    assert read(source, candidate, "a b", 5, 15) == DATA[5:15]
