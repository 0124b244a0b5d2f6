"""What mkdocs is told besides mkdocs.yml."""

from __future__ import annotations

import re

_OUT = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+(?!reference/|howto/)[\w./-]+)(?:#[\w-]*)?\)")


def on_page_markdown(markdown: str, **context: object) -> str:
    """Make plain text of a link that leads out of docs/, which only a reader of the repository can follow."""
    depth = str(getattr(context["page"], "file").src_uri).count("/")  # noqa: B009 - mkdocs has no types here
    outside = "../" * (depth + 1)
    return _OUT.sub(lambda link: link[1] if link[2].startswith(outside) else link[0], markdown)
