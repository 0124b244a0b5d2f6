"""A griffe extension: literal blocks of docstrings, which end a line with ``::``, become fenced ones for Markdown."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from griffe import Extension, Object

_LITERAL = re.compile(r"::\n\n((?:    .*\n|\n)+)")
_FILE = re.compile(r"^# ([\w.]+\.(?:py|toml))\n", re.MULTILINE)


class LiteralBlocks(Extension):
    """Writes each file of a literal block, which begins with its name in a comment, as a block with that title."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _LITERAL.sub(
                lambda found: ":\n\n" + _fenced(dedent(found[1])), obj.docstring.value + "\n"
            )


def _fenced(text: str) -> str:
    first, *files = _FILE.split(text)
    blocks = [f"```python\n{first.strip()}\n```\n"] if first.strip() else []
    for name, content in zip(files[::2], files[1::2], strict=True):
        language = "toml" if name.endswith(".toml") else "python"
        blocks.append(f'```{language} title="{name}"\n{content.strip()}\n```\n')
    return "\n".join(blocks) + "\n"
