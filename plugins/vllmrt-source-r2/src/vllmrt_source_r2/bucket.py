"""A bucket, reached with the usual AWS credential chain."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vllmrt.types import Skip
from vllmrt_source_r2 import faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ASKING = 16
"""How many connections ask for metadata at once."""
URL_VALID = 3600
"""Seconds; a URL is used at once, but a slow clock may take some of it."""

_R2 = ".r2.cloudflarestorage.com"
_CONNECT_TIMEOUT, _READ_TIMEOUT, _ATTEMPTS = 3, 15, 3
_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role;"
    " for R2, make an API token with Object Read on the bucket"
)


class Bucket:
    """A bucket and a client for it; all methods may be called from any thread.

    Args:
        name: its name.
        client: an S3 client of botocore.
        followed: as the attribute.
    """

    def __init__(self, name: str, client: Any, followed: str | None = None) -> None:
        self.name = name
        self.followed = followed
        """The region that the bucket is in, where it is another one than was configured."""
        self._client = client

    @property
    def location(self) -> str:
        """``s3://bucket/``."""
        return f"s3://{self.name}/"

    @property
    def host(self) -> str:
        """The store's host and port, without what else may stand in its URL."""
        parts = urlsplit(self._client.meta.endpoint_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    @property
    def etags_are_md5(self) -> bool:
        """Whether every single-part ETag is an MD5, whatever the encryption: R2 has no KMS, and S3 has."""
        return is_r2(self._client.meta.endpoint_url)

    def pages(self, prefix: str) -> Iterator[list[Mapping[str, Any]]]:
        """Yield the objects whose keys begin with `prefix`, page by page.

        Raises:
            SourceError: the bucket cannot be listed.
            TransientSourceError: not now.
        """
        with self._asking("list"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                self._follow_region(page)
                yield page.get("Contents", [])

    def head(self, key: str) -> Mapping[str, Any] | None:
        """Return what the store knows of an object, None where it will not say.

        Raises:
            SourceError: the object may not be read.
            TransientSourceError: not now.
        """
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        with self._asking("read"):
            try:
                answer: Mapping[str, Any] = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") in {400, 404, 405, 501}:
                    return None
                raise
            return answer

    def sign(self, key: str) -> str:
        """Return a URL that gives an object to whoever has it.

        Raises:
            SourceError: the credentials cannot be renewed.
        """
        with self._asking("read"):
            where = {"Bucket": self.name, "Key": key}
            return str(self._client.generate_presigned_url("get_object", Params=where, ExpiresIn=URL_VALID))

    def close(self) -> None:
        """Give up all connections."""
        self._client.close()

    def _follow_region(self, page: Mapping[str, Any]) -> None:
        """Sign for the region that a bucket of Amazon's is in: a request that went astray is led there, a URL not."""
        region = page["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        here = self._client.meta
        if region and region != here.region_name and _is_amazon(here.endpoint_url):
            session = _session()
            self._client = _settled(session, _client(session, region, None, self.name), None, self.name)
            self.followed = region

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise faults.of_boto(error, bucket=self.name, host=self.host, doing=doing) from None


def connect(name: str, endpoint: str | None, *, region: str | None = None) -> Bucket | Skip:
    """Return a bucket, or why there are no credentials for it; nothing is asked of the store yet.

    Args:
        name: of the bucket.
        endpoint: None for what the AWS configuration says.
        region: of Amazon's, where the bucket was found to be; None for what is configured.

    Raises:
        SourceError: the endpoint is no URL.
    """
    from botocore.exceptions import BotoCoreError

    try:
        session = _session()
        credentials = session.get_credentials()
        frozen = credentials and credentials.get_frozen_credentials()
        if not frozen or not frozen.access_key:
            return Skip("no AWS credentials", hint=_REMEDY)
        endpoint = None if region else endpoint
        client = _client(session, region or _region(session, endpoint), endpoint, name)
        client = _settled(session, client, endpoint, name)
    except BotoCoreError as error:
        # Not its text: that may be what a credential process printed.
        return Skip(f"the AWS credentials cannot be loaded ({type(error).__name__})", hint=_REMEDY)
    except ValueError:
        raise faults.endpoint_is_no_url() from None
    return Bucket(name, client, region)


def is_r2(endpoint: str) -> bool:
    """Tell whether an endpoint is Cloudflare's."""
    return str(urlsplit(endpoint).hostname).endswith(_R2)


def is_directory_bucket(name: str) -> bool:
    """Tell whether a bucket is one of S3 Express (Amazon S3 user guide, "Directory bucket naming rules")."""
    return name.endswith("--x-s3")


def _session() -> Any:
    from botocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    # No timestamp of a listing is looked at, and to parse them takes as long as the rest of it.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return session


def _region(session: Any, endpoint: str | None) -> str | None:
    """Return the region to sign for: R2 knows one, other stores than Amazon's take the one that S3 began with."""
    if endpoint and is_r2(endpoint):
        return "auto"
    return session.get_config_variable("region") or ("us-east-1" if endpoint else None)


def _settled(session: Any, client: Any, endpoint: str | None, name: str) -> Any:
    """Return a client that also suits an endpoint which only the AWS configuration knew."""
    url, meta = client.meta.endpoint_url, client.meta
    if is_r2(url) and meta.region_name != "auto":
        return _client(session, "auto", endpoint, name)
    if _is_amazon(url) and (meta.config.s3 or {}).get("addressing_style", "auto") == "auto":
        # Else botocore signs URLs for the host of all regions, which sends who asks for a new bucket elsewhere, and
        # there the signature is wrong. Names that cannot be hosts become paths all the same.
        return _client(session, meta.region_name, endpoint, name, s3={"addressing_style": "virtual"})
    return client


def _is_amazon(endpoint: str) -> bool:
    return str(urlsplit(endpoint).hostname).endswith(".amazonaws.com")


def _client(session: Any, region: str | None, endpoint: str | None, name: str, s3: dict[str, str] | None = None) -> Any:
    from botocore.config import Config  # type: ignore[import-untyped]

    # How buckets are addressed is left to the AWS configuration, which says nothing as a rule: as paths then.
    # R2 rejects or ignores some of the newer default checksums.
    config = Config(
        # Left to botocore for a directory bucket, which wants a session: any version that is named switches that off.
        signature_version=None if is_directory_bucket(name) else "s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=ASKING,
        s3=s3,
    )
    return session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config)
