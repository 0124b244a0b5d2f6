"""The pages say what the code says; their blocks and links can be used."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from textwrap import dedent
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
import typer
from mdkit import ROOT, anchors, blocks, inline, links, pages

from vllmrt import layers
from vllmrt.cli.app import COMMANDS, app
from vllmrt.errors import ExitCode
from vllmrt.preflight.decision import PortAction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REFERENCE = ROOT / "docs" / "reference"


def test_the_settings_page_is_what_the_table_makes() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "settings_page.py"], capture_output=True, text=True, check=True
    )
    assert (REFERENCE / "settings.md").read_text() == made.stdout, "make settings-page"


def test_the_settings_page_has_every_variable() -> None:
    page = (REFERENCE / "settings.md").read_text()
    assert [name for row in layers.rows() for name in row.names if f"`{name}`" not in page] == []


def test_the_page_of_the_command_line_is_its_help() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli_page.py"], capture_output=True, text=True, check=True
    )
    assert (REFERENCE / "cli.md").read_text() == made.stdout, "make cli-page"


def test_every_exit_code_is_explained() -> None:
    page = (REFERENCE / "exit-codes.md").read_text()
    assert [code for code in ExitCode if not re.search(rf"\b{code.value}\b", page)] == []


def emitted() -> set[str]:
    """The names of all events in the code: the first argument of ``Event``."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Event" and node.args:
                first = node.args[0]
                names.add(first.value if isinstance(first, ast.Constant) else "transfer.progress")
    return names


def test_every_event_is_documented_and_no_other() -> None:
    page = (REFERENCE / "events.md").read_text()
    table = page[page.index("| event | further fields |") :]
    documented = {
        name for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert documented == emitted()


def doctors_codes() -> set[str]:
    """The codes of all problems in the code: the first argument of ``add``, and those made of values."""
    codes = {"not-looked-at", *(f"port-{action.value.replace('_', '-')}" for action in PortAction)}
    for path in (ROOT / "src" / "vllmrt" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "section.add":
                codes |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return codes - {"port-noop", "port-stop"}


def test_every_problem_of_the_doctor_has_its_row_and_no_other() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    table = page[page.index("| code | what | what to do |") : page.index("## In JSON")]
    first = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    documented = {name for cell in first for name in re.findall(r"`([\w-]+)`", cell)}
    of_gpus = set(re.findall(r"`(gpu-[a-z]+)`", (ROOT / "docs" / "gpus.md").read_text()))
    assert documented - of_gpus == doctors_codes()


def test_every_section_of_the_doctor_has_its_row(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [f"{sys.prefix}/bin/vllmrt", "doctor", "--json"]
    told = json.loads(subprocess.run(command, env=environ, capture_output=True, text=True, check=False).stdout)
    page = (ROOT / "docs" / "doctor.md").read_text()
    fields = page[page.index("## In JSON") :]
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", fields, re.MULTILINE)}
    assert list(rows) == [name for name in told if name not in {"ok", "code", "notes", "problems"}]
    for name, row in rows.items():
        facts = told[name][0] if isinstance(told[name], list) and told[name] else told[name]
        if name != "gpus" and facts:
            assert [fact for fact in facts if f"`{fact}`" not in row] == []


def test_every_exit_code_has_a_remedy_in_troubleshooting() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    explained = {int(number) for heading in headings for number in re.findall(r"\b\d+\b", heading)}
    assert explained == {code.value for code in ExitCode} - {0}


def test_the_readme_shows_every_command_and_no_other() -> None:
    lines = [words for block in blocks(ROOT / "README.md") for words in list(words_for_us(block.text))]
    assert {words[0] for words in lines} == {*COMMANDS}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = ROOT / "docs"
    assert {str(page.relative_to(docs)) for page in pages() if page.is_relative_to(docs)} == listed, "mkdocs.yml"


def test_every_command_is_in_the_docs() -> None:
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [command for command in COMMANDS if f"vllmrt {command}" not in text] == []


def read_yaml(text: str) -> list[Any]:
    """Read all documents of a block; whatever is wrong with them is a ValueError, as of the other languages."""
    import yaml

    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ValueError(error) from error


DATA = {"toml": tomllib.loads, "yaml": read_yaml, "json": json.loads}
LANGUAGES = {*DATA, "sh", "python", "text", "promql"}
"""What a fence may name; ``text`` is what is shown and not typed: output, a layout of files."""

every_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_every_block_is_fenced_and_names_its_language(page: Path) -> None:
    assert [f"{block.where}: {block.language!a}" for block in blocks(page) if block.language not in LANGUAGES] == []


@every_page
def test_every_block_of_data_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language in DATA:
            try:
                DATA[block.language](block.text)
            except ValueError as error:
                pytest.fail(f"{block.where}: {error}")


@every_page
def test_every_block_of_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(dedent(block.text), block.where)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllmrt":
                    module = importlib.import_module(node.module or "")
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == [], block.where
                elif isinstance(node, ast.Import):
                    for name in node.names:
                        assert name.name.split(".")[0] != "vllmrt" or importlib.import_module(name.name)


@every_page
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        assert target.exists(), f"{link}: there is no such file"
        if parts.fragment:
            assert parts.fragment in anchors(target.resolve()), f"{link}: there is no such heading"


def words_for_us(text: str) -> Iterator[list[str]]:
    """Return what follows ``vllmrt`` on each command line of a block, up to ``--`` and again behind it."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"\bvllmrt\s", line) or line.startswith("pip "):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        word: list[str] | None = None
        for part in lexer:
            if re.fullmatch(r"(\S*/)?vllmrt", part):
                word = []
                yield word
            elif part == "--" or set(part) <= set("();<>|&"):
                word = None
            elif word is not None:
                word.append(part)


def understand(words: list[str]) -> None:
    """Raise unless there is such a command, with such options; what their values mean is left to others."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) is not None and words and not words[0].startswith("-"):
        found = command.get_command(None, words[0])
        if found is None and command.no_args_is_help:
            pytest.fail(f"there is no command {words[0]}")
        if found is None:
            break
        command, words = found, words[1:]
    context = command.make_context("_", [], resilient_parsing=True)
    context.resilient_parsing = False
    command.make_parser(context).parse_args(list(words))


@every_page
def test_every_command_line_is_one_that_vllmrt_understands(page: Path) -> None:
    lines = [words for block in blocks(page) if block.language == "sh" for words in words_for_us(block.text)]
    for token in inline(page, "code_inline"):
        if re.match(r"vllmrt \w", token.content) and not re.search(r"…|[|<>]|\b[A-Z]+\b", token.content):
            lines += words_for_us(token.content)
    for words in lines:
        understand(words)
