"""Whom we ask, and as whom: the endpoint and the token, from where users of the Hub set them.

Reference: hub-facts, "What a client asks for": HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from vllmrt import hubcache
from vllmrt.errors import SourceError

if TYPE_CHECKING:
    from vllmrt.settings import Settings

DEFAULT_ENDPOINT = "https://huggingface.co"
_LONGEST_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Token:
    """A token, which no text made from this value shows, and where it comes from."""

    value: str = field(repr=False)
    origin: str


class Access(NamedTuple):
    """An endpoint without its last slash, and the token that it may be sent."""

    endpoint: str
    token: Token | None

    @property
    def headers(self) -> dict[str, str]:
        """What every request to the endpoint carries, and no request to anybody else."""
        return {"Authorization": f"Bearer {self.token.value}"} if self.token else {}

    @property
    def suffix(self) -> str:
        """Where, for people: nothing for the Hub itself."""
        return "" if self.endpoint == DEFAULT_ENDPOINT else f" at {self.endpoint}"


def find(settings: Settings) -> Access:
    """Return whom to ask.

    Raises:
        SourceError: the endpoint is no plain http URL, or what should be a token is none.
    """
    return Access(_endpoint(settings.hf_endpoint), _token(settings))


def _endpoint(text: str) -> str:
    hint = "set HF_ENDPOINT to a URL such as https://huggingface.co, or unset it"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isascii() or parts.query or parts.fragment:
        raise SourceError("HF_ENDPOINT is no http or https URL", hint=hint)
    if "@" in parts.netloc:
        raise SourceError("HF_ENDPOINT has a user name or a password in it", hint="use HF_TOKEN for credentials")
    return text.rstrip("/")


def _token(settings: Settings) -> Token | None:
    if settings.hf_token:
        return _checked(settings.hf_token, "HF_TOKEN")
    home = hubcache.home(settings.hf_home)
    path = settings.hf_token_path or (home and home / "token")
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return _checked(file.read(_LONGEST_TOKEN + 2), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        if settings.hf_token_path is None:
            return None  # somebody else's home: public models need no token
        raise SourceError(
            f"HF_TOKEN_PATH={path} cannot be read: {error.strerror}", hint="make the file readable, or set HF_TOKEN"
        ) from None


def _checked(text: str, origin: str) -> Token | None:
    """Refuse what cannot be a header's value: an error of the HTTP library would quote it."""
    value = text.strip()
    if not value:
        return None
    if len(value) > _LONGEST_TOKEN or not re.fullmatch(r"[!-~]+", value):
        raise SourceError(f"{origin} does not hold a token", hint="a token is one word that begins with hf_")
    return Token(value, origin)
