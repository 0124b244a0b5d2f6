"""What a URL says by itself, and how to show it: it may hold a password, a key and its secret, or a signature."""

from __future__ import annotations

import re

from vllmrt.errors import SourceError

_LOCAL = frozenset({"file", "local", "memory"})
_UNLISTED = frozenset({"http", "https", "data"})
_CONTAINER_AT_ACCOUNT = re.compile(r"(abfss?|az|adl)://[^:@/]+@[^:@/]+\.[^:@/]+(/[^@]*)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")


def scheme(url: str) -> str:
    """Return the scheme in lower case, an empty text where there is none."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def is_local(url: str) -> bool:
    """Tell whether a URL leads to no other machine, as far as we can know."""
    return scheme(url) in _LOCAL


def check(url: str) -> None:
    """Refuse what can be no model's directory.

    Raises:
        SourceError: no URL, one inside another, or one of a store that lists nothing.
    """
    hint = "VLLMRT_MODEL_URL is a directory, as in gs://bucket/models/llama"
    found = scheme(url)
    if not found:
        raise SourceError(f"{shown(url)} is no URL", hint=hint)
    if "::" in url:
        raise SourceError(f"{shown(url)} is several URLs in a chain, which is not supported", hint=hint)
    if found in _UNLISTED:
        what = f"{found}:// cannot list the files of a model"
        raise SourceError(what, hint="give the store's own URL: s3://, gs://, az://, sftp://, webdav://")


def shown(url: str) -> str:
    """Return a URL as logs may have it: without user, password, query and fragment."""
    found = scheme(url)
    if not found:
        return "VLLMRT_MODEL_URL"
    if found in _LOCAL:
        return _printable(url)
    if _CONTAINER_AT_ACCOUNT.fullmatch(url):  # Azure writes the container where others write the user
        return _printable(url)
    rest = re.split(r"[?#]", url[len(found) + 3 :], maxsplit=1)[0] if "@" not in url else _behind_secret(url, found)
    return _printable(f"{found}://{rest}")


def _behind_secret(url: str, found: str) -> str:
    # A secret key may hold slashes, ? and # itself, so of a URL with a user nothing before the last @ is shown.
    rest = url[len(found) + 3 :]
    first = rest.partition("/")[0]
    if "@" in first or ":" in first:
        rest = "***@" + rest.rpartition("@")[2]
    return re.split(r"[?#]", rest, maxsplit=1)[0]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
