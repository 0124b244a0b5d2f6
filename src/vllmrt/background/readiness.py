"""Waits until a server that was started in the background has made its first token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from vllmrt.background.logs import last_lines
from vllmrt.errors import ServerFailed
from vllmrt.serve.client import Failed, Refused, ask, parse_url

if TYPE_CHECKING:
    from vllmrt.background.control import Started
    from vllmrt.masking import Masker
    from vllmrt.settings import Settings

_PROMPT = {"prompt": "Once upon a time", "max_tokens": 1, "ignore_eos": True}
_PAUSE, _LONGEST = 0.25, 60.0
_OK = 200
_NO_TEXT = frozenset({404, 501})  # vllm/entrypoints: the route is not there, or its handler is not


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Answer(msgspec.Struct):
    usage: _Usage


def wait(started: Started, settings: Settings, masker: Masker) -> str:
    """Wait until the server is healthy and has made one token; return what it did, for people.

    A model that makes no text, for embeddings or scores, is ready when it is healthy.

    Args:
        started: the server; its parent has to be us.
        settings: the API key, and how long it has.
        masker: takes secrets out of the lines of its log.

    Raises:
        ServerFailed: it ended, or the time did.
    """
    deadline = time.monotonic() + settings.ready_timeout
    reason = "it does not listen"
    while (left := deadline - time.monotonic()) > 0:
        status = started.process.poll()
        if status is not None:
            raise _ended(started, 128 - status if status < 0 else status, masker)
        try:
            return _first_token(started.server.url, settings.api_key, min(left, _LONGEST))
        except Refused:
            pass
        except Failed as failure:
            reason = masker.text(str(failure))
        time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))
    raise ServerFailed(
        f"the server is not ready after {settings.ready_timeout:g} s: {reason}{_quoted(started, masker)}",
        hint="it goes on: vllmrt status and vllmrt logs look at it, vllmrt down stops it; --ready-timeout waits longer",
        facts=_facts(started, None, masker),
    )


def _first_token(url: str, key: str | None, seconds: float) -> str:
    server = parse_url(url)
    health = ask(server, "/health", key=None, body=None, seconds=seconds)
    if health.status != _OK:
        raise Failed(f"/health answers {health.status}")
    reply = ask(server, "/v1/completions", key=key, body=msgspec.json.encode(_PROMPT), seconds=seconds)
    if reply.status in _NO_TEXT:
        return "it is healthy; its model makes no text"
    try:
        if reply.status == _OK and msgspec.json.decode(reply.body, type=_Answer).usage.completion_tokens:
            return "it is healthy, and made its first token"
    except msgspec.MsgspecError:
        pass
    raise Failed(f"it is healthy, but answers {reply.status} to a prompt: {reply.body[:200].decode(errors='replace')}")


def _ended(started: Started, status: int, masker: Masker) -> ServerFailed:
    return ServerFailed(
        f"the server ended with status {status} before it was ready{_quoted(started, masker)}",
        hint=f"what it says of it is in {started.server.log}: vllmrt logs",
        facts=_facts(started, status, masker),
    )


def _quoted(started: Started, masker: Masker) -> str:
    return "".join(f"\n| {line}" for line in _lines(started, masker))


def _facts(started: Started, status: int | None, masker: Masker) -> dict[str, object]:
    server = started.server
    return {"pid": server.pid, "log": server.log, "status": status, "lines": _lines(started, masker)}


def _lines(started: Started, masker: Masker) -> list[str]:
    return [masker.text(line) for line in last_lines(started.log)]
