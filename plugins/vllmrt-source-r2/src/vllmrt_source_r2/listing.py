"""From the objects below a prefix to files, with a digest of the whole content where the store has one.

A listing has ETags only. One without a dash is the MD5 of the content, unless the object is encrypted with a key from a
KMS or from its owner, and that only HEAD tells. So HEAD is asked of what is worth it: of every large object, for which
it may bring a checksum too, and of the largest of the others. What was not asked has no digest, and the core notes its
own; `If-Match` holds the version all the same.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

from vllmrt.errors import SourceError
from vllmrt.types import Digest, RemoteFile
from vllmrt_source_r2.bucket import is_directory_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllmrt_source_r2.bucket import Bucket

LARGE = 16 << 20
"""Bytes from which an object takes so long to fetch that a HEAD does not matter."""
ASKED = 64
"""How many objects are asked for at least, if there are as many: more than most models have."""
MOST = 1_000_000

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_CRCS = (("crc64nvme", "ChecksumCRC64NVME", 8), ("crc32c", "ChecksumCRC32C", 4))
_ENCRYPTED_BY_THE_STORE = (None, "AES256")


def files(bucket: Bucket, prefix: str) -> tuple[RemoteFile, ...]:
    """Return the files below a prefix, in the order of their keys.

    Raises:
        SourceError: the bucket cannot be listed or read, or has no end.
        TransientSourceError: not now.
    """
    found: list[RemoteFile] = []
    for page in bucket.pages(prefix):
        found += listed(page, prefix, etags_are_md5=bucket.etags_are_md5)
        if len(found) > MOST:
            raise SourceError(f"more than {MOST:,} objects below {bucket.location}{prefix}", hint="that is no model")
    asked = worth_asking(found)
    digests = _ask(bucket, prefix, asked)
    return tuple(_with(file, digests.get(file.path)) for file in found)


def listed(page: Iterable[Mapping[str, Any]], prefix: str, *, etags_are_md5: bool) -> list[RemoteFile]:
    """Return the files of one page of a listing; what some tools store to mark a directory is none."""
    return [
        RemoteFile(
            entry["Key"].removeprefix(prefix),
            size=entry["Size"],
            version=entry.get("ETag", ""),
            digest=_md5(entry.get("ETag", "")) if etags_are_md5 else None,
        )
        for entry in page
        if entry["Size"] or not entry["Key"].endswith("/")
    ]


def worth_asking(found: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files for which HEAD may bring a digest, and is worth a round trip."""
    largest = sorted((file for file in found if file.size and file.digest is None), key=lambda file: -file.size)
    return [file for number, file in enumerate(largest) if number < ASKED or file.size >= LARGE]


def digest_of(head: Mapping[str, Any], bucket_name: str = "") -> Digest | None:
    """Return the digest of the whole content that an answer to HEAD gives, the strongest of them.

    A checksum of several parts' checksums (COMPOSITE, or with ``-N`` behind it) is none.
    """
    md5 = _md5(head.get("ETag", ""))
    whole = head.get("ChecksumType", "FULL_OBJECT" if md5 else None) == "FULL_OBJECT"
    if whole and (sha256 := _hexadecimal(head.get("ChecksumSHA256"), 32)):
        return Digest("sha256", value=sha256)
    if md5 and _etag_is_md5(head, bucket_name):
        return md5
    for algorithm, field, length in _CRCS:
        if whole and (value := _hexadecimal(head.get(field), length)):
            return Digest(algorithm, value=value)
    return None


def _ask(bucket: Bucket, prefix: str, asked: Sequence[RemoteFile]) -> dict[str, Digest | None]:
    from concurrent.futures import ThreadPoolExecutor

    from vllmrt_source_r2.bucket import ASKING

    def ask(file: RemoteFile) -> Digest | None:
        head = bucket.head(prefix + file.path)
        return digest_of(head, bucket.name) if head and head.get("ETag") == file.version else None

    if not asked:
        return {}
    first = ask(asked[0])  # alone: where reading is not allowed, one refusal is enough
    with ThreadPoolExecutor(ASKING, "vllmrt r2") as pool:
        rest = list(pool.map(ask, asked[1:]))
    return {file.path: digest for file, digest in zip(asked, [first, *rest], strict=True)}


def _with(file: RemoteFile, digest: Digest | None) -> RemoteFile:
    return RemoteFile(file.path, size=file.size, version=file.version, digest=digest) if digest else file


def _etag_is_md5(head: Mapping[str, Any], bucket_name: str) -> bool:
    return (
        head.get("ServerSideEncryption") in _ENCRYPTED_BY_THE_STORE
        and not head.get("SSECustomerAlgorithm")
        and not head.get("SSEKMSKeyId")
        # its ETags are random (Amazon S3 user guide, "Directory buckets: differences")
        and not is_directory_bucket(bucket_name)
    )


def _md5(etag: str) -> Digest | None:
    match = _MD5.fullmatch(etag)
    return Digest("md5", value=match[1]) if match else None


def _hexadecimal(text: str | None, length: int) -> str | None:
    try:
        raw = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == length else None
