"""What is made of listings, and for which objects a store is asked again."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

import pytest
from s3stub import Reply
from vllmrt_source_r2 import R2Source, listing
from vllmrt_source_r2 import bucket as bucket_module

from vllmrt.errors import SourceError
from vllmrt.settings import Settings
from vllmrt.types import Digest, ModelRequest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from s3stub import Stub

    Make = Callable[..., R2Source]

MD5 = "5d41402abc4b2a76b9719d911017c592"
SHA256 = hashlib.sha256(b"hello").digest()
REQUEST = ModelRequest("meta/Llama-3")
PREFIX = "llm/Llama-3/"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


HEADS: list[tuple[str, dict[str, Any], Digest | None]] = [
    ("single part", {"ETag": f'"{MD5}"'}, Digest("md5", value=MD5)),
    ("key of the store", {"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, Digest("md5", value=MD5)),
    ("key of a KMS", {"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:x"}, None),
    ("two keys of a KMS", {"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms:dsse"}, None),
    ("key of the owner", {"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"}, None),
    ("several parts", {"ETag": f'"{MD5}-3"'}, None),
    ("another kind of ETag", {"ETag": '"0x8D1"'}, None),
    ("weak", {"ETag": f'W/"{MD5}"'}, None),
    ("no ETag", {}, None),
    (
        "a checksum beats the ETag",
        {"ETag": f'"{MD5}"', "ChecksumSHA256": encoded(SHA256), "ChecksumType": "FULL_OBJECT"},
        Digest("sha256", value=SHA256.hex()),
    ),
    (
        "a store that does not tell the type, one part",
        {"ETag": f'"{MD5}"', "ChecksumSHA256": encoded(SHA256)},
        Digest("sha256", value=SHA256.hex()),
    ),
    (
        "a store that does not tell the type, several parts",
        {"ETag": f'"{MD5}-2"', "ChecksumSHA256": encoded(SHA256)},
        None,
    ),
    ("of parts", {"ETag": f'"{MD5}-2"', "ChecksumSHA256": encoded(SHA256), "ChecksumType": "COMPOSITE"}, None),
    ("of parts, by its form", {"ETag": f'"{MD5}"', "ChecksumSHA256": f"{encoded(SHA256)}-2"}, Digest("md5", value=MD5)),
    (
        "several parts, whole checksum",
        {"ETag": f'"{MD5}-2"', "ChecksumCRC64NVME": encoded(b"12345678"), "ChecksumType": "FULL_OBJECT"},
        Digest("crc64nvme", value=b"12345678".hex()),
    ),
    (
        "encrypted, with a checksum",
        {
            "ETag": f'"{MD5}"',
            "ServerSideEncryption": "aws:kms",
            "ChecksumCRC32C": encoded(b"1234"),
            "ChecksumType": "FULL_OBJECT",
        },
        Digest("crc32c", value=b"1234".hex()),
    ),
    ("too short", {"ChecksumSHA256": encoded(b"1234"), "ChecksumType": "FULL_OBJECT"}, None),
    ("no base64", {"ChecksumSHA256": "ü!", "ChecksumType": "FULL_OBJECT"}, None),
]


@pytest.mark.parametrize(("head", "digest"), [case[1:] for case in HEADS], ids=[case[0] for case in HEADS])
def test_digests(head: Mapping[str, Any], digest: Digest | None) -> None:
    assert listing.digest_of(head) == digest


def test_a_directory_buckets_etags_are_random() -> None:
    assert listing.digest_of({"ETag": f'"{MD5}"'}, "models--usw2-az1--x-s3") is None


def test_what_is_worth_asking() -> None:
    def file(number: int, size: int, digest: Digest | None = None) -> RemoteFile:
        return RemoteFile(str(number), size=size, version="v", digest=digest)

    shards = [file(number, listing.LARGE) for number in range(100)]
    small = [file(1000 + number, number) for number in range(200)]
    known = [file(2000, listing.LARGE * 2, Digest("md5", value=MD5))]
    assert listing.worth_asking([*small, *shards, *known]) == shards
    assert len(listing.worth_asking([*small, *shards[:10]])) == listing.ASKED
    assert listing.worth_asking(small)[0].size == 199
    assert len(listing.worth_asking([file(1, 5), file(2, 0)])) == 1


def entry(key: str, size: int = 3, etag: str = f'"{MD5}"') -> str:
    return f"<Contents><Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag><Size>{size}</Size></Contents>"


def page(*entries: str, token: str | None = None) -> str:
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"<ListBucketResult>{''.join(entries)}{more}<EncodingType>url</EncodingType></ListBucketResult>"


def answering(stub: Stub, listed: str, heads: Mapping[str, Reply] | None = None) -> None:
    def answer(method: str, path: str) -> Reply:
        if method == "GET":
            return Reply(200, listed)
        key = path.partition("?")[0].removeprefix("/models/")
        return (heads or {}).get(key, Reply(404))

    stub.answer = answer


HOSTILE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a\\b",
    "a//b",
    "x/",
    "a\0b",
    "a\nb",
    "k" * 4000,
    "con",
    "A",
    "a",
]


def test_hostile_names_are_given_to_the_core_as_they_are(stub: Stub, environ: object, sources: Make) -> None:
    """They are refused there (`vllmrt.paths.safe_join`); nothing here may make a good name of a bad one."""
    del environ
    answering(stub, page(*(entry(quote(PREFIX + name)) for name in HOSTILE)))
    (candidate,) = sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert [file.path for file in candidate.files] == HOSTILE


def test_only_empty_objects_are_directory_markers(stub: Stub, environ: object, sources: Make) -> None:
    del environ
    answering(stub, page(entry(PREFIX, 0), entry(f"{PREFIX}a/", 0), entry(f"{PREFIX}b", 0), entry(f"{PREFIX}c/", 1)))
    (candidate,) = sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert [file.path for file in candidate.files] == ["b", "c/"]


def head(etag: str = f'"{MD5}"', size: int = 3, **headers: str) -> Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(200, "", (("ETag", etag), ("Content-Length", str(size)), *named))


@pytest.mark.parametrize(
    ("reply", "digest"),
    [
        (head(), Digest("md5", value=MD5)),
        (head(x_amz_server_side_encryption="aws:kms"), None),
        (head('"' + "0" * 32 + '"'), None),
        (head(x_amz_checksum_sha256=encoded(SHA256)), Digest("sha256", value=SHA256.hex())),
        (Reply(404), None),
        (Reply(501), None),
    ],
    ids=["md5", "kms", "replaced since", "sha256", "gone", "unknown"],
)
def test_head_decides(stub: Stub, environ: object, sources: Make, reply: Reply, digest: Digest | None) -> None:
    del environ
    answering(stub, page(entry(f"{PREFIX}x")), {f"{PREFIX}x": reply})
    (candidate,) = sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    (file,) = candidate.files
    assert (file.version, file.digest) == (f'"{MD5}"', digest)


def test_one_refusal_is_enough(stub: Stub, environ: object, sources: Make) -> None:
    """Listing is allowed and reading is not: known before the first byte."""
    del environ
    names = [f"{PREFIX}{number}" for number in range(50)]
    answering(stub, page(*map(entry, names)), dict.fromkeys(names, Reply(403)))
    with pytest.raises(SourceError, match="may not read bucket models"):
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert len(stub.requests) == 2


def test_r2_is_not_asked_what_is_known(
    stub: Stub, environ: object, sources: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    del environ
    monkeypatch.setattr(bucket_module, "is_r2", lambda _endpoint: True)
    answering(
        stub, page(entry(f"{PREFIX}a"), entry(f"{PREFIX}b", etag=f'"{MD5}-2"')), {f"{PREFIX}b": head(f'"{MD5}-2"')}
    )
    (candidate,) = sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert [file.digest for file in candidate.files] == [Digest("md5", value=MD5), None]
    assert [urlsplit(path).path for method, path in stub.requests if method == "HEAD"] == [f"/models/{PREFIX}b"]


def test_a_listing_that_leads_in_a_circle(stub: Stub, environ: object, sources: Make) -> None:
    del environ
    answering(stub, page(entry(f"{PREFIX}x"), token="again"))
    with pytest.raises(SourceError):
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert len(stub.requests) < 5


def test_a_listing_without_end(stub: Stub, environ: object, sources: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    del environ
    monkeypatch.setattr(listing, "MOST", 10)
    pages = iter(range(100))
    stub.answer = lambda _method, _path: Reply(200, page(entry(f"{PREFIX}x"), token=f"t{next(pages)}"))
    with pytest.raises(SourceError, match="more than 10 objects"):
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)


@pytest.mark.parametrize(
    ("endpoint", "configured", "region"),
    [
        ("https://account.r2.cloudflarestorage.com", "eu-west-1", "auto"),
        ("https://account.eu.r2.cloudflarestorage.com", None, "auto"),
        ("http://127.0.0.1:1", None, "us-east-1"),
        ("http://127.0.0.1:1", "eu-west-1", "eu-west-1"),
        (None, "eu-west-1", "eu-west-1"),
    ],
)
def test_the_region_that_is_signed_for(
    environ: pytest.MonkeyPatch, endpoint: str | None, configured: str | None, region: str
) -> None:
    if configured:
        environ.setenv("AWS_DEFAULT_REGION", configured)
    bucket = bucket_module.connect("models", endpoint)
    assert not isinstance(bucket, Skip)
    (credential,) = parse_qs(urlsplit(bucket.sign("llm/x")).query)["X-Amz-Credential"]
    assert credential.split("/")[2] == region
    bucket.close()


def test_r2_by_the_aws_configuration(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("AWS_ENDPOINT_URL_S3", "https://account.r2.cloudflarestorage.com")
    environ.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    bucket = bucket_module.connect("models", None)
    assert not isinstance(bucket, Skip)
    assert bucket.etags_are_md5
    assert "%2Fauto%2Fs3%2F" in bucket.sign("x")
    bucket.close()


@pytest.mark.parametrize(
    ("endpoint", "config", "url"),
    [
        (None, "", "https://models.s3.eu-west-1.amazonaws.com/llm/a%20b?"),
        (None, "s3 =\n  addressing_style = auto\n", "https://models.s3.eu-west-1.amazonaws.com/llm/a%20b?"),
        (None, "s3 =\n  addressing_style = path\n", "https://s3.eu-west-1.amazonaws.com/models/llm/a%20b?"),
        ("http://store:9000", "", "http://store:9000/models/llm/a%20b?"),
        ("http://store:9000", "s3 =\n  addressing_style = virtual\n", "http://models.store:9000/llm/a%20b?"),
    ],
)
def test_addressing(environ: pytest.MonkeyPatch, tmp_path: Any, endpoint: str | None, config: str, url: str) -> None:
    (tmp_path / "aws-config").write_text(f"[default]\nregion = eu-west-1\n{config}")
    bucket = bucket_module.connect("models", endpoint)
    assert not isinstance(bucket, Skip)
    assert bucket.sign("llm/a b").startswith(url)
    assert environ
    bucket.close()


def test_a_bucket_of_amazons_in_another_region(environ: pytest.MonkeyPatch) -> None:
    """botocore follows the redirection of a listing; the URLs that are signed afterwards have to follow as well."""
    environ.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = bucket_module.connect("models", None)
    assert not isinstance(bucket, Skip)
    bucket._follow_region({"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-central-1"}}})  # noqa: SLF001
    assert "%2Feu-central-1%2Fs3%2F" in bucket.sign("x")
    bucket.close()


def test_the_region_that_was_found_outlives_a_renewal_of_the_credentials(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("AWS_DEFAULT_REGION", "us-east-1")
    source = R2Source(Settings(r2_bucket="models", r2_models_prefix="llm"))
    bucket = source._connect()  # noqa: SLF001
    assert not isinstance(bucket, Skip)
    bucket._follow_region({"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-central-1"}}})  # noqa: SLF001
    for _ in range(2):
        renewed = source._connect(again=True)  # noqa: SLF001
        assert not isinstance(renewed, Skip)
        assert renewed is not bucket
        assert "%2Feu-central-1%2Fs3%2F" in renewed.sign("x")
    source.close()


def test_a_directory_bucket_is_signed_with_a_session(environ: pytest.MonkeyPatch) -> None:
    """As botocore does where no version of the signature is named: first it asks for the session."""
    environ.setenv("AWS_DEFAULT_REGION", "us-east-1")
    asked = []

    def refuse(request: Any, **_: Any) -> None:
        asked.append(request.url)
        raise ConnectionRefusedError

    for name in ("models--use1-az4--x-s3", "models"):
        bucket = bucket_module.connect(name, None)
        assert not isinstance(bucket, Skip)
        bucket._client.meta.events.register("before-send.s3", refuse)  # noqa: SLF001
        with pytest.raises((SourceError, ConnectionRefusedError)):
            next(bucket.pages("llm/"))
        bucket.close()
    assert "?session" in asked[0]
    assert "?list-type=2" in asked[-1]
