"""What a store refuses, told by botocore and told by a signed URL; the stub answers as the stores' manuals say."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
from s3stub import Reply

from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt.types import Candidate, ModelRequest, RemoteFile, Skip

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3stub import Stub
    from vllmrt_source_r2 import R2Source

    Make = Callable[..., R2Source]

REQUEST = ModelRequest("meta/Llama-3")
SECRET_TEXT = "AKIDstub/20261123/auto/s3/aws4_request stub-secret-5f0e"


def error(code: str, extra: str = "") -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{SECRET_TEXT}</Message>{extra}</Error>"


EMPTY = "<ListBucketResult></ListBucketResult>"
REFUSED: list[tuple[int, str, str, str | None]] = [
    (403, "InvalidAccessKeyId", "127.0.0.1:PORT does not know the access key", "AWS_ACCESS_KEY_ID"),
    (401, "Unauthorized", "127.0.0.1:PORT does not know the access key", "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", "the secret access key is wrong", "AWS_SECRET_ACCESS_KEY"),
    (400, "ExpiredToken", "the session token of the AWS credentials has expired", "AWS_SESSION_TOKEN"),
    (403, "AccessDenied", "the credentials may not list bucket models", "s3:GetObject"),
    (404, "NoSuchBucket", "there is no bucket models at 127.0.0.1:PORT", "R2_BUCKET"),
    (404, "NoSuchKey", "there is no bucket models at 127.0.0.1:PORT", "R2_BUCKET"),
    (403, "RequestTimeTooSkewed", "the clock of this machine is wrong", "timedatectl"),
    (400, "AuthorizationHeaderMalformed", "bucket models is not in the region", "AWS_DEFAULT_REGION"),
    (400, "InvalidRegionName", "bucket models is not in the region", "AWS_DEFAULT_REGION"),
    (403, "SomethingNew", "the credentials may not list bucket models", "s3:ListBucket"),
    (400, "SomethingNew\x1b[31m".replace("\x1b", "&#x9b;"), "refuses: SomethingNew31m (HTTP 400)", None),
    (400, "A" * 5000, "refuses: " + "A" * 60 + " (HTTP 400)", None),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[1][:20]}")
def test_a_refused_listing(stub: Stub, environ: object, sources: Make, case: tuple[int, str, str, str | None]) -> None:
    del environ
    status, code, words, remedy = case
    stub.answer = lambda _method, _path: Reply(status, error(code))
    with pytest.raises(SourceError) as caught:
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert not isinstance(caught.value, TransientSourceError)
    assert words.replace("PORT", stub.endpoint.rpartition(":")[2]) in str(caught.value)
    assert remedy in str(caught.value.hint) if remedy else caught.value.hint is None
    assert "stub-secret" not in f"{caught.value!r} {caught.value.hint}"


@pytest.mark.parametrize(
    ("offset", "words"),
    [(-7200, "120 minutes fast"), (3600, "60 minutes slow"), (100, "the secret access key is wrong")],
)
def test_a_wrong_clock_is_told_by_the_date(
    stub: Stub, environ: object, sources: Make, offset: float, words: str
) -> None:
    """Not every store has a code for it; what its clock says, it always says."""
    del environ
    date = formatdate(time.time() + offset, usegmt=True)
    stub.answer = lambda _method, _path: Reply(403, error("SignatureDoesNotMatch"), date=date)
    with pytest.raises(SourceError, match=words):
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Nov 2026 12:00:00 GMT", "0" * 3000])
def test_a_date_that_is_none(stub: Stub, environ: object, sources: Make, date: str) -> None:
    del environ
    stub.answer = lambda _method, _path: Reply(403, error("AccessDenied"), date=date)
    with pytest.raises(SourceError, match="may not list"):
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)


def test_the_region_is_named_where_the_store_names_it(stub: Stub, environ: object, sources: Make) -> None:
    del environ
    said = error("PermanentRedirect", "<Endpoint>x</Endpoint>")
    stub.answer = lambda _method, _path: Reply(301, said, headers=(("x-amz-bucket-region", "eu-central-1"),))
    with pytest.raises(SourceError, match="bucket models is in region eu-central-1") as caught:
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert caught.value.hint == "set AWS_DEFAULT_REGION=eu-central-1"


@pytest.mark.parametrize(
    ("reply", "retry_after"),
    [
        (Reply(503, error("SlowDown"), (("Retry-After", "1"),)), 1.0),
        (Reply(500, error("InternalError")), None),
        (Reply(429, error("TooManyRequests"), (("Retry-After", "soon"),)), None),
        (Reply(502, ""), None),
    ],
)
def test_an_overloaded_store_may_be_asked_later(
    stub: Stub, environ: object, sources: Make, reply: Reply, retry_after: float | None
) -> None:
    del environ
    stub.answer = lambda _method, _path: reply
    began = time.monotonic()
    with pytest.raises(TransientSourceError, match="overloaded or broken") as caught:
        sources(r2_endpoint_url=stub.endpoint).probe(REQUEST)
    assert caught.value.retry_after == retry_after
    assert len(stub.requests) <= 3
    assert time.monotonic() - began < 10


def test_what_passes_is_tried_again(stub: Stub, environ: object, sources: Make) -> None:
    del environ
    replies = iter([Reply(503, error("SlowDown")), Reply(500, error("InternalError")), Reply(200, EMPTY)])
    stub.answer = lambda _method, _path: next(replies)
    assert isinstance(sources(r2_endpoint_url=stub.endpoint).probe(REQUEST), Skip)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "no url", "ftp//x", "https://"])
def test_an_endpoint_that_is_no_url(environ: object, sources: Make, endpoint: str) -> None:
    del environ
    with pytest.raises(SourceError) as caught:
        sources(r2_endpoint_url=endpoint).probe(REQUEST)
    assert "R2_ENDPOINT_URL" in f"{caught.value} {caught.value.hint}"
    assert not isinstance(caught.value, TransientSourceError)


@pytest.mark.parametrize("body", ["", "no xml", "<html><body>hello</body></html>", "<ListBucketResult/>", "{}"])
def test_something_else_than_a_store(stub: Stub, environ: object, sources: Make, body: str) -> None:
    """A web server's welcome page has the status of success."""
    del environ
    stub.answer = lambda _method, _path: Reply(200, body)
    try:
        assert isinstance(sources(r2_endpoint_url=stub.endpoint).probe(REQUEST), Skip)
    except SourceError as refused:
        assert "127.0.0.1" in str(refused)  # noqa: PT017 - either will do


OPENED: list[tuple[int, str, str | None, bool]] = [
    (403, "AccessDenied", "the credentials may not read bucket models", False),
    (403, "InvalidObjectState", "an object in bucket models is archived", False),
    (404, "NoSuchKey", "an object is no longer in bucket models", False),
    (404, "NoSuchBucket", "there is no bucket models", False),
    (403, "RequestTimeTooSkewed", "the clock of this machine is wrong", False),
    (503, "SlowDown", None, True),
]


@pytest.mark.parametrize("case", OPENED, ids=lambda case: case[1])
def test_a_refused_range(stub: Stub, environ: object, sources: Make, case: tuple[int, str, str | None, bool]) -> None:
    del environ
    status, code, words, transient = case
    stub.answer = lambda _method, _path: Reply(status, error(code))
    source = sources(r2_endpoint_url=stub.endpoint)
    file = RemoteFile("x", size=10, version='"etag"')
    with pytest.raises(SourceError, match=words) as caught:
        source.open(Candidate("s3://models/llm/Llama-3/", files=(file,)), file, 0, 10)
    assert isinstance(caught.value, TransientSourceError) is transient
    assert not isinstance(caught.value, ChangedError)
    said = f"{caught.value!r} {caught.value.hint}"
    assert not re.search("stub-secret|Signature=|AKIDstub", said)
    retried = status in {400, 401, 403}
    assert len(stub.requests) == 1 + retried
