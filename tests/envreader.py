"""A reader of env files that takes the subset of the reference's chapter "Env file loading" and nothing else.

It is written from that chapter alone and imports nothing of vllmrt: what it can read, the old vllm-serve can.
"""

from __future__ import annotations

import string

NAME = frozenset(string.ascii_letters + string.digits + "_")
ESCAPES = {"\\": "\\", '"': '"', "n": "\n", "t": "\t"}
PLAIN = frozenset(string.ascii_letters + string.digits + "_@%+=:,./-")


class OutsideTheSubset(ValueError):
    """A line that the reference does not allow."""


def read(text: str) -> dict[str, str]:
    """Return the variables of an env file."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            try:
                key, value = _assignment(stripped)
            except OutsideTheSubset as error:
                raise OutsideTheSubset(f"line {number}: {error}") from None
            values[key] = value
    return values


def _assignment(line: str) -> tuple[str, str]:
    key, equals, rest = line.removeprefix("export ").lstrip().partition("=")
    if not equals or not key or not NAME.issuperset(key) or key[0].isdigit():
        raise OutsideTheSubset("neither KEY=VALUE nor export KEY=VALUE")
    if rest[:1] == "'":
        value, tail = _until_quote(rest[1:])
    elif rest[:1] == '"':
        value, tail = _double_quoted(rest[1:])
    else:
        value, _, tail = rest.partition(" ")
        if not PLAIN.issuperset(value):
            raise OutsideTheSubset("an unquoted value with what a shell would interpret")
    tail = tail.strip()
    if tail and not tail.startswith("#"):
        raise OutsideTheSubset("something behind the value")
    return key, value


def _until_quote(rest: str) -> tuple[str, str]:
    value, quote, tail = rest.partition("'")
    if not quote:
        raise OutsideTheSubset("a value of several lines")
    return value, tail


def _double_quoted(rest: str) -> tuple[str, str]:
    value, characters = "", iter(rest)
    for character in characters:
        if character == '"':
            return value, "".join(characters)
        if character in "$`":
            raise OutsideTheSubset("interpolation")
        if character == "\\":
            character = next(characters, "")  # noqa: PLW2901 - the character that is escaped
            if character not in ESCAPES:
                raise OutsideTheSubset("an escape that is not one of the four")
            character = ESCAPES[character]  # noqa: PLW2901 - the same
        value += character
    raise OutsideTheSubset("a value of several lines")
