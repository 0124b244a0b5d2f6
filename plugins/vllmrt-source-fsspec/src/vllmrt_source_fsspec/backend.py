"""fsspec, called so that threads can share it, that calls end, and that nothing it raises shows a credential.

fsspec gives each thread its own instance of a blocking backend, and all threads the same of an asynchronous one, so
every call here asks for the instance anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllmrt.errors import ChangedError, SourceError, TransientSourceError
from vllmrt_source_fsspec import address, entries, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.types import ReadableRange, RemoteFile

LISTING_TIMEOUT, TIMEOUT = 50.0, 20.0
"""Seconds; only asynchronous backends keep to them."""


def listing(url: str) -> tuple[RemoteFile, ...]:
    """Return the files below a URL, in the order of their names; nothing where there is nothing.

    Raises:
        SourceError: no driver, no access, no such store.
        TransientSourceError: not now.
    """
    with _asking(url, at_once=True):
        store, root = connect(url)
        store.invalidate_cache()
        try:
            found = store.find(root, detail=True, **_limit(store, LISTING_TIMEOUT))
        except FileNotFoundError:
            return ()
        # Whatever it learnt would hide that a file has changed.
        store.invalidate_cache()
        return entries.files(found, root)


def open_range(url: str, file: RemoteFile, start: int, stop: int) -> ReadableRange:
    """Open a range of a file of the listing.

    The version is compared before and after, because few backends can ask for a certain one.

    Raises:
        SourceError: it cannot be read.
        ChangedError: it is another file now.
        TransientSourceError: not now.
    """

    def unchanged() -> None:
        with _asking(url):
            store.invalidate_cache()  # some answer from the listing of the directory
            now = store.info(path, **_limit(store, TIMEOUT))
        if (now["size"], entries.version(now)) != (file.size, file.version):
            raise ChangedError(f"{file.path} was replaced at {address.shown(url)}")

    with _asking(url):
        store, root = connect(url)
        path = f"{root}/{file.path}" if root else file.path
    unchanged()
    with _asking(url):
        opened: reading.Opened
        if store.async_impl:
            opened = reading.Calls(store, path, TIMEOUT)
        else:
            opened = reading.Handle(store.open(path, "rb", cache_type="none", block_size=reading.LARGEST))
    return _Told(reading.Range(opened, start, stop, unchanged), url)


def connect(url: str) -> tuple[Any, str]:
    """Return the backend for a URL and the path in it.

    Raises:
        SourceError: there is no driver for it.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    from fsspec.registry import available_protocols, get_filesystem_class  # type: ignore[import-untyped]

    protocol = address.scheme(url)
    if protocol not in available_protocols():
        raise SourceError(f"fsspec knows no {protocol}://", hint="install the package that has its driver")
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        raise _no_driver(protocol, error) from None
    store, path = url_to_fs(url)
    return store, str(path).rstrip("/")


class _Told:
    """A range whose faults are told without what backends write into theirs."""

    def __init__(self, opened: reading.Range, url: str) -> None:
        self._range = opened
        self._url = url

    def readinto(self, buffer: memoryview, /) -> int:
        with _asking(self._url):
            return self._range.readinto(buffer)

    def close(self) -> None:
        self._range.close()


@contextmanager
def _asking(url: str, *, at_once: bool = False) -> Iterator[None]:
    """Turn whatever a backend raises into our errors: its text may hold a key, a token, a signed URL."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - there are as many kinds as backends
        raise _told(error, address.shown(url), at_once=at_once) from None


def _told(error: Exception, where: str, *, at_once: bool) -> SourceError:
    kind = type(error).__name__
    reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror and error.errno else ""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"nothing at {where} any more", hint="was the model replaced? run it again")
    if isinstance(error, PermissionError):
        return SourceError(f"{where}: access denied", hint="check the credentials of this store and their rights")
    if "Credential" in kind:
        return SourceError(f"{where}: no credentials, or none that work ({kind})", hint="see the driver's own manual")
    if isinstance(error, (TimeoutError, ConnectionError)) or "Connect" in kind or not at_once:
        return TransientSourceError(f"{where} gives no answer ({kind}{reason})")
    return SourceError(f"{where} cannot be listed ({kind}{reason})", hint="check VLLMRT_MODEL_URL and the credentials")


def _no_driver(protocol: str, error: ImportError) -> SourceError:
    from fsspec.registry import known_implementations

    known = known_implementations.get(protocol, {})
    missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else None
    package = entries.package(known.get("class", ""), known.get("err", ""), missing)
    text = f"there is no driver for {protocol}:// beside vllmrt"
    return SourceError(f"{text}: {known['err']}" if known.get("err") else text, hint=f"pip install {package}")


def _limit(store: Any, seconds: float) -> dict[str, float]:
    return {"timeout": seconds} if store.async_impl else {}
