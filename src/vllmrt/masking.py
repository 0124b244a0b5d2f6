"""Takes secrets out of what is shown or kept, whatever brought them there: a path, the message of a plugin, a URL.

What is known to be secret is looked for as it is; what looks like a credential is taken out besides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from vllmrt import layers
from vllmrt.settings import MASK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllmrt.settings import Settings

_SECRET_NAME = re.compile(
    r"(?:.*[_-])?(?:\w*KEY|TOKEN|SECRET|\w*PASSWORD|\w*PASSWD|CREDENTIALS?)(?:[_-].*)?", re.IGNORECASE
)
_SHORTEST = 6
"""Characters of a secret; what is shorter is also a part of ordinary words, and never shown by itself."""
_NAME = r"[\w.-]*(?:key|token|secret|signature|password|passwd|credentials?)"
_FLAG = re.compile(rf"--?{_NAME}", re.IGNORECASE)
_VALUE = re.compile(rf"(?<![\w-])(--?{_NAME}[=\s]|{_NAME}=)[^\s'\"]+", re.IGNORECASE)
_MEMBER = re.compile(rf"((\\?['\"]){_NAME}\2\s*:\s*(\\?['\"]))(?:(?!\3)\\.|(?!\3).)*", re.IGNORECASE | re.DOTALL)
# Without the limits, many "://" take minutes. A password may hold what ends a host; a port is none.
_USER = re.compile(r"(?<=://)(?:[^/?#\s'\"]*|[^/?#\s'\"@:]{0,500}:(?!\d+[/?#])[^\s'\"]{0,500})@")
# "url: /" is how urllib3 says it
_QUERY = re.compile(r"((?:://|url: /)[^\s'\"?#]{0,500})[?#][^\s'\"]*")
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|AKIA\w{12,}|Bearer \S{8,})")


class Masker:
    """Knows the secrets of one run.

    Args:
        environ: every variable whose name speaks of a secret has one, and every URL with a user or a query.
        settings: the same, where they come from the settings file.
    """

    def __init__(self, environ: Mapping[str, str], settings: Settings) -> None:
        found = {*_of_variables(environ), *_of_settings(settings)}
        known = sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def text(self, text: str) -> str:
        """Return a text without secrets, and without what cannot be printed as UTF-8."""
        return redact(self._known.sub(MASK, text)).encode(errors="backslashreplace").decode()

    def values(self, value: Any) -> Any:
        """Return lists, mappings and texts, nested as they may be, without secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.values(one) for key, one in value.items()}
        return [self.values(one) for one in value] if isinstance(value, list | tuple) else value

    def argv(self, words: Sequence[str]) -> list[str]:
        """Return a command line without secrets."""
        return redact_argv([self.text(word) for word in words])


def redact(text: str) -> str:
    """Return a text without tokens, users and queries of URLs, and what flags, variables and JSON call a secret."""
    text = _MEMBER.sub(rf"\1{MASK}", text)
    text = _QUERY.sub(rf"\1?{MASK}", _USER.sub(f"{MASK}@", _VALUE.sub(rf"\1{MASK}", text)))
    return _TOKEN.sub(MASK, text)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """Return a command line without what looks like a secret; a flag may have its values in the words after it."""
    shown, follows, is_secret = [], False, False
    for word in argv:
        is_secret = follows or (is_secret and not word.startswith("-"))
        shown.append(MASK if is_secret else redact(word))
        follows = not is_secret and _FLAG.fullmatch(word) is not None
    return shown


def place(url: str) -> str:
    """Return of a URL, or of a proxy without a scheme, only what is no secret: scheme, host and port."""
    scheme, slashes, rest = url.rpartition("://") if "://" in url else ("", "", url)
    user, at, rest = rest.rpartition("@")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return f"{scheme}{slashes}{MASK if user else ''}{at}{host}"


def _of_variables(environ: Mapping[str, str]) -> Iterator[str]:
    secret = {name for row in layers.rows() if row.var.secret for name in row.names}
    for name, value in environ.items():
        if name in secret or _SECRET_NAME.fullmatch(name):
            yield value.strip()
        yield from _of_url(value, proxy=name.lower().endswith("_proxy"))


def _of_settings(settings: Settings) -> Iterator[str]:
    for row in layers.rows():
        value = getattr(settings, row.field)
        if isinstance(value, str):
            yield from [value] if row.var.secret else ()
            yield from _of_url(value, proxy=False)


def _of_url(value: str, *, proxy: bool) -> Iterator[str]:
    """Yield what is secret in a URL: user, password, values of the query. A password may hold any character."""
    _, slashes, rest = value.partition("://")
    if not slashes and not proxy:
        return
    user, at, _ = (rest if slashes else value).rpartition("@")
    if at:
        parts = [user, *user.split(":", 1)]
        yield from (*parts, *map(unquote, parts))
    query = re.split(r"[?#]", rest, maxsplit=1)[1:]
    for pair in re.split(r"[&;]", query[0]) if query else ():
        secret = pair.partition("=")[2] or pair
        yield from (secret, unquote(secret))
