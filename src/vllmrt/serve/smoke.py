"""Whether a running server does what it is for: seven short requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from vllmrt.serve.answers import Answer, Models
from vllmrt.serve.client import Failed, Refused, Reply, Server, ask, parse_url

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_TOKENS = 16
_DETAIL = 160
_PROMPT = "Once upon a time"
_MESSAGES = [{"role": "user", "content": f"Go on: {_PROMPT}"}]


class Check(NamedTuple):
    """What one request showed.

    Attributes:
        name: health, auth, models, completion, chat, streaming or metrics.
        ok: whether the server did what it should.
        detail: one line; never holds the API key.
        seconds: how long it took.
    """

    name: str
    ok: bool
    detail: str
    seconds: float


class _Session(msgspec.Struct):
    """A server, and the model that it turned out to have."""

    server: Server
    api_key: str | None
    timeout: float
    model: str | None = None


def run_checks(base_url: str, api_key: str | None, *, timeout: float) -> list[Check]:
    """Ask a running vLLM for everything that a client asks it for.

    Without an API key there is no ``auth`` check. A failed check does not stop the next one, unless nothing listens.

    Args:
        base_url: ``http://host:port``, as clients have it without ``/v1``.
        api_key: the bearer token, or None.
        timeout: seconds that each check may take altogether.

    Raises:
        ConfigError: `base_url` is no such address.
    """
    session = _Session(parse_url(base_url), api_key, timeout)
    results: list[Check] = []
    refused = False
    for name, check in _CHECKS.items():
        if name == "auth" and not api_key:
            continue
        if refused:
            results.append(Check(name, ok=False, detail="not tried: nothing listens there", seconds=0.0))
            continue
        started = time.monotonic()
        try:
            ok, detail = True, check(session)
        except Failed as failure:
            ok, detail = False, str(failure)
            refused = name == "health" and isinstance(failure, Refused)
        results.append(Check(name, ok, _one_line(detail, api_key), time.monotonic() - started))
    return results


def wait_healthy(base_url: str, *, seconds: float) -> bool:
    """Wait until ``/health`` answers 200; False when it did not within so many seconds.

    Raises:
        ConfigError: `base_url` is no address of a server.
    """
    server = parse_url(base_url)
    deadline = time.monotonic() + seconds
    pause = 0.1
    while (left := deadline - time.monotonic()) > 0:
        try:
            _health(_Session(server, None, min(left, 5.0)))
        except Failed:
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.5, 1.0)
        else:
            return True
    return False


def _health(session: _Session) -> str:
    _expect(_get(session, "/health", key=None), 200)
    return "answers"


def _auth(session: _Session) -> str:
    _expect(_get(session, "/v1/models", key=None), 401)
    return "401 without the key"


def _models(session: _Session) -> str:
    models = _decode(_expect(_get(session, "/v1/models", key=session.api_key), 200), Models).data
    if not models:
        raise Failed("the list is empty")
    session.model = models[0].id
    return ", ".join(model.id for model in models)


def _completion(session: _Session) -> str:
    answer = _decode(_post(session, "/v1/completions", {"prompt": _PROMPT}), Answer)
    return _quoted("".join(choice.text for choice in answer.choices))


def _chat(session: _Session) -> str:
    answer = _decode(_post(session, "/v1/chat/completions", {"messages": _MESSAGES}), Answer)
    return _quoted("".join(choice.message.said for choice in answer.choices))


def _streaming(session: _Session) -> str:
    body = _post(session, "/v1/chat/completions", {"messages": _MESSAGES, "stream": True})
    events = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
    if not events or events[-1] != b"[DONE]":
        raise Failed(f"the stream broke off after {len(events)} events, without [DONE]")
    answers = [_decode(event, Answer) for event in events[:-1]]
    if any(answer.error is not None for answer in answers):
        raise Failed("an error came in the stream")
    said = [choice.delta.said for answer in answers for choice in answer.choices if choice.delta.said]
    return f"{len(said)} pieces: {_quoted(''.join(said))}"


def _metrics(session: _Session) -> str:
    lines = _expect(_get(session, "/metrics", key=session.api_key), 200).splitlines()
    names = {line.partition(b"{")[0].partition(b" ")[0] for line in lines if line.startswith(b"vllm:")}
    if not names:
        raise Failed("no metric is called vllm:…")
    return f"{len(names)} metrics of vLLM"


_CHECKS: dict[str, Callable[[_Session], str]] = {
    "health": _health,
    "auth": _auth,
    "models": _models,
    "completion": _completion,
    "chat": _chat,
    "streaming": _streaming,
    "metrics": _metrics,
}


def _get(session: _Session, path: str, *, key: str | None) -> Reply:
    return ask(session.server, path, key=key, body=None, seconds=session.timeout)


def _post(session: _Session, path: str, body: dict[str, Any]) -> bytes:
    # A model that ends at once has said nothing to check: ignore_eos is vLLM's own.
    fixed = {"max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
    named = {"model": session.model} if session.model else {}
    data = msgspec.json.encode({**named, **fixed, **body})
    return _expect(ask(session.server, path, key=session.api_key, body=data, seconds=session.timeout), 200)


def _expect(reply: Reply, status: int) -> bytes:
    if reply.status != status:
        raise Failed(f"answered {reply.status} instead of {status}: {reply.body.decode(errors='replace')}")
    return reply.body


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Failed(f"not what the API promises: {error}") from None


def _quoted(text: str) -> str:
    if not text:
        raise Failed("an answer without text")
    return f'"{text}"'


def _one_line(detail: str, api_key: str | None) -> str:
    """Make a text fit for a terminal, whatever the server wrote; it may have sent the key back."""
    for secret in (api_key, msgspec.json.encode(api_key)[1:-1].decode()) if api_key else ():
        detail = detail.replace(secret, "***")
    line = " ".join("".join(char if char.isprintable() else " " for char in detail[: 8 * _DETAIL]).split())
    return line if len(line) <= _DETAIL else f"{line[: _DETAIL - 1]}…"
