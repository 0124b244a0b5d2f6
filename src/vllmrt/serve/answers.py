"""What of the OpenAI API's answers is looked at."""

from __future__ import annotations

from typing import Any

import msgspec


class Model(msgspec.Struct):
    """An entry of ``/v1/models``."""

    id: str


class Models(msgspec.Struct):
    """The answer of ``/v1/models``."""

    data: list[Model]


class Message(msgspec.Struct):
    """A message, or in a stream a piece of one. A reasoning model may have thought without saying anything yet."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def said(self) -> str:
        """What there is of it."""
        return self.content or self.reasoning or self.reasoning_content or ""


class Choice(msgspec.Struct):
    """One of the answers that were asked for; the request decides which field is filled."""

    text: str = ""
    message: Message = msgspec.field(default_factory=Message)
    delta: Message = msgspec.field(default_factory=Message)


class Answer(msgspec.Struct):
    """The answer of ``/v1/completions`` and ``/v1/chat/completions``, or one event of its stream."""

    choices: list[Choice] = []
    error: Any = None
