"""What a store's refusal means, and what to do about it. Only codes are taken from an answer, never its text."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmrt.errors import SourceError, TransientSourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmrt.types import Skip

SKEW = 900
"""Seconds that S3 lets a clock be wrong (Amazon S3 API reference, RequestTimeTooSkewed)."""

_CLOCK = "set it right: timedatectl set-ntp true"
_KEY = "check AWS_ACCESS_KEY_ID (or the profile): it must be one of this store"
_SECRET = "check AWS_SECRET_ACCESS_KEY: it must be whole, and the one that belongs to the access key"  # noqa: S105
_SESSION = "get new ones, or unset AWS_SESSION_TOKEN where the access key needs none"
_RIGHTS = "allow s3:ListBucket on the bucket and s3:GetObject below the prefix; on R2, Object Read for this bucket"
_REGION = "set AWS_DEFAULT_REGION to the bucket's region"
_RESTORE = "restore it to a storage class that can be read at once"


class _Meaning(NamedTuple):
    """A refusal in words; ``{bucket}``, ``{host}`` and ``{doing}`` are put in."""

    text: str
    hint: str


_UNKNOWN_KEY = _Meaning("{host} does not know the access key", _KEY)
_OLD_SESSION = _Meaning("the session token of the AWS credentials has expired, or is not valid", _SESSION)
_DENIED = _Meaning("the credentials may not {doing} bucket {bucket}", _RIGHTS)
_NO_BUCKET = _Meaning(
    "there is no bucket {bucket} at {host}", "check R2_BUCKET and R2_ENDPOINT_URL, which does not contain the bucket"
)
_BAD_REGION = _Meaning("bucket {bucket} is not in the region that the request was signed for", _REGION)
_SKEWED = _Meaning("the clock of this machine is wrong: {host} refuses its requests", _CLOCK)

_MEANINGS = {
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "Unauthorized": _UNKNOWN_KEY,  # R2
    "SignatureDoesNotMatch": _Meaning("the secret access key is wrong: {host} refuses the signature", _SECRET),
    "ExpiredToken": _OLD_SESSION,
    "InvalidToken": _OLD_SESSION,
    "TokenRefreshRequired": _OLD_SESSION,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _Meaning("{bucket} cannot be the name of a bucket", "check R2_BUCKET"),
    "RequestTimeTooSkewed": _SKEWED,
    "RequestExpired": _SKEWED,
    "PermanentRedirect": _BAD_REGION,
    "AuthorizationHeaderMalformed": _BAD_REGION,
    "AuthorizationQueryParametersError": _BAD_REGION,
    "IllegalLocationConstraintException": _BAD_REGION,
    "InvalidRegionName": _BAD_REGION,  # R2
    "InvalidObjectState": _Meaning("an object in bucket {bucket} is archived", _RESTORE),
    "NoSuchKey": _Meaning("an object is no longer in bucket {bucket}", "was the model replaced? run it again"),
    "301": _BAD_REGION,
    "401": _UNKNOWN_KEY,
    "403": _DENIED,
    "404": _NO_BUCKET,
}
_TRANSIENT = frozenset({
    "InternalError", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded",
})  # fmt: skip


def of_boto(error: Exception, *, bucket: str, host: str, doing: str) -> SourceError:
    """Return what an exception of botocore's means.

    Args:
        error: a BotoCoreError or ClientError.
        bucket: its name.
        host: the store, as in a URL.
        doing: ``list`` or ``read``.
    """
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    if not isinstance(error, ClientError):
        return _of_connection(error, host)
    answer = error.response
    metadata = answer.get("ResponseMetadata", {})
    status, headers = metadata.get("HTTPStatusCode", 0), metadata.get("HTTPHeaders", {})
    code = str(answer.get("Error", {}).get("Code", status))
    if _passes(code, status):
        text = f"{host} is overloaded or broken: {_shown(code, status)}"
        return TransientSourceError(text, retry_after=_retry_after(headers))
    skew = _skew(headers, time.time())
    if status in {400, 401, 403} and abs(skew) > SKEW:
        text = f"the clock of this machine is {_minutes(skew)}, so {host} refuses its requests"
        return SourceError(text, hint=_CLOCK)
    region = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region")
    return _refusal(code, status, {"bucket": bucket, "host": host, "doing": doing}, region=_region(region))


def of_status(status: int, code: str | None, location: str) -> SourceError:
    """Return what the answer to a signed URL means.

    Args:
        status: of HTTP.
        code: of S3, None where the answer has none.
        location: ``s3://bucket/key``.
    """
    if _passes(code, status):
        return TransientSourceError(f"the store is overloaded or broken: {_shown(code or '', status)}")
    bucket = location.removeprefix("s3://").partition("/")[0]
    if status == 404 and code != "NoSuchBucket":  # noqa: PLR2004 - RFC 9110
        code = "NoSuchKey"
    return _refusal(code or str(status), status, {"bucket": bucket, "host": "the store", "doing": "read"})


def unusable(skip: Skip) -> SourceError:
    """Return the error for credentials that were there at first and are no longer."""
    return SourceError(skip.reason, hint=skip.hint)


def endpoint_is_no_url() -> SourceError:
    """Return the error for an endpoint that botocore does not take. Its value may hold a password."""
    return SourceError("R2_ENDPOINT_URL is no URL", hint="write it as https://<account>.r2.cloudflarestorage.com")


def _passes(code: str | None, status: int) -> bool:
    return code in _TRANSIENT or status == 429 or status >= 500  # noqa: PLR2004 - RFC 6585, RFC 9110


def _of_connection(error: Exception, host: str) -> SourceError:
    from botocore import exceptions  # type: ignore[import-untyped]

    if isinstance(error, exceptions.SSLError):
        text = f"the certificate of {host} is not trusted"
        return SourceError(text, hint="name the authority's file in AWS_CA_BUNDLE and SSL_CERT_FILE")
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError)):
        text = f"{host} cannot be reached ({type(error).__name__})"
        return TransientSourceError(text, hint="check R2_ENDPOINT_URL, the network and HTTPS_PROXY")
    if isinstance(error, exceptions.ParamValidationError):
        return SourceError("R2_BUCKET cannot be the name of a bucket", hint="check R2_BUCKET")
    hint = "check R2_ENDPOINT_URL, R2_BUCKET and the AWS credentials"
    return SourceError(f"{host} cannot be asked ({type(error).__name__})", hint=hint)


def _refusal(code: str, status: int, names: Mapping[str, str], *, region: str | None = None) -> SourceError:
    if code == "NoSuchKey" and names["doing"] == "list":
        code = "NoSuchBucket"  # the endpoint has the bucket, or a path, behind it: what is listed there is an object
    meaning = _MEANINGS.get(code) or _MEANINGS.get(str(status))
    if meaning is None:
        return SourceError(f"{names['host']} refuses: {_shown(code, status)}")
    if meaning is _BAD_REGION and region:
        return SourceError(f"bucket {names['bucket']} is in region {region}", hint=f"set AWS_DEFAULT_REGION={region}")
    return SourceError(meaning.text.format_map(names), hint=meaning.hint)


def _shown(code: str, status: int) -> str:
    word = re.sub(r"[^A-Za-z0-9.]", "", code)[:60]
    return f"{word} (HTTP {status})" if word and word != str(status) else f"HTTP {status}"


def _region(text: object) -> str | None:
    return text if isinstance(text, str) and re.fullmatch(r"[a-z0-9-]{2,40}", text) else None


def _skew(headers: Mapping[str, Any], now: float) -> float:
    """Return by how many seconds this machine's clock is ahead of the store's; 0 where the store does not say."""
    try:
        return now - parsedate_to_datetime(str(headers.get("date"))).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0


def _minutes(skew: float) -> str:
    return f"{abs(skew) / 60:,.0f} minutes {'fast' if skew > 0 else 'slow'}"


def _retry_after(headers: Mapping[str, Any]) -> float | None:
    text = str(headers.get("retry-after", ""))
    return float(text) if re.fullmatch(r"\d{1,6}", text) else None
