"""The fixtures of these tests."""

from standin import as_other, machine, only_orphans, port  # noqa: F401 - pytest finds fixtures by their names here
