"""The fixtures of these tests."""

from standin import machine, port  # noqa: F401 - pytest finds fixtures by their names here
