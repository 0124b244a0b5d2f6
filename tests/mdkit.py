"""The pages of this repository as Markdown: their blocks, links and headings."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
_REASON = re.compile(r"<!-- not run: (.+) -->")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: its file.
        line: the first one, counted from 1.
        language: the word after the fence; empty where it is only indented.
        text: what it holds.
        not_run: what the comment before it says of why it cannot be run here.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        """Where it is, for people and test ids."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def pages() -> tuple[Path, ...]:
    """Return every Markdown file that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file())


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Return the parsed page."""
    return tuple(MarkdownIt().enable("table").parse(page.read_text()))


def blocks(page: Path) -> Iterator[Block]:
    """Return the blocks of a page, in order."""
    reason = None
    for token in tokens(page):
        if token.type in {"fence", "code_block"}:
            language = (token.info.split() or [""])[0]
            yield Block(page, (token.map or [0])[0] + 1, language, token.content, reason)
        said = _REASON.search(token.content) if token.type == "html_block" else None
        reason = said[1] if said else None


def inline(page: Path, kind: str) -> Iterator[Token]:
    """Return the inline tokens of one kind: ``code_inline``, ``link_open``, …"""
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def links(page: Path) -> Iterator[str]:
    """Return where a page's links and pictures lead."""
    yield from (str(token.attrs["href"]) for token in inline(page, "link_open"))
    yield from (str(token.attrs["src"]) for token in inline(page, "image"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = [after for before, after in pairwise(tokens(page)) if before.type == "heading_open"]
    texts = ["".join(part.content for part in heading.children or ()) for heading in headings]
    return frozenset(re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts)
