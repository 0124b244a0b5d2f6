"""docs/compatibility.md, held against the code: what is public stays as it was told."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "public_api.txt"
SCRIPT = ROOT / "scripts" / "public_api.py"
PUBLIC = runpy.run_path(str(SCRIPT))["PUBLIC"]
PLUGINS = sorted([*(ROOT / "plugins").glob("vllmrt-[!m]*/src"), *(ROOT / "examples" / "plugins").glob("*")])
PROJECTS = sorted(
    [*(ROOT / "plugins").glob("vllmrt-[!m]*/pyproject.toml"), *(ROOT / "examples" / "plugins").glob("*/pyproject.toml")]
)


class Difference(NamedTuple):
    """What became of the promise.

    Attributes:
        broken: lines that are gone or read otherwise, and fields that old plugins do not know to give.
        new: lines that harm nobody.
    """

    broken: list[str]
    new: list[str]


def compare(then: str, now: str) -> Difference:
    before, after = then.splitlines(), now.splitlines()
    classes = {line.split("(")[0].removeprefix("class ") for line in before if line.startswith("class ")}
    added = [line for line in after if line not in before]
    demanding = [line for line in added if is_required(line) and line.rpartition(":")[0].rpartition(".")[0] in classes]
    gone = [f"- {line}" for line in before if line not in after]
    return Difference(
        gone + [f"+ {line}" for line in demanding], [f"+ {line}" for line in added if line not in demanding]
    )


def is_required(line: str) -> bool:
    """Tell a field without a default, as of a value or a protocol."""
    return bool(re.fullmatch(r"[\w.]+: (?!property|FixtureFunction)[^=]+", line))


def test_what_is_public_is_as_it_was() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    broken, new = compare(SNAPSHOT.read_text(), done.stdout)
    assert not broken, "\n".join(["these break plugins; keep what was there, see docs/compatibility.md:", *broken])
    assert not new, "\n".join(["these are new, and promised from now on with make public-api:", *new])


THEN = "class a.Value()\na.Value.x: int\na.function(x: 'int') -> 'int'\nclass a.Asks(Protocol)"
CHANGES = {
    "nothing": (THEN, [], []),
    "a field with a default": (f"{THEN}\na.Value.y: int = 0", [], ["+ a.Value.y: int = 0"]),
    "a field without one": (f"{THEN}\na.Value.y: int", ["+ a.Value.y: int"], []),
    "a class": (f"{THEN}\nclass a.New()\na.New.x: int", [], ["+ class a.New()", "+ a.New.x: int"]),
    "an attribute that a protocol asks for": (f"{THEN}\na.Asks.x: str", ["+ a.Asks.x: str"], []),
    "a field that is gone": (THEN.replace("a.Value.x: int\n", ""), ["- a.Value.x: int"], []),
    "another type": (THEN.replace("x: int\n", "x: str\n"), ["- a.Value.x: int", "+ a.Value.x: str"], []),
    "an argument": (
        THEN.replace("(x: 'int')", "(x: 'int', y)"),
        ["- a.function(x: 'int') -> 'int'"],
        ["+ a.function(x: 'int', y) -> 'int'"],
    ),
}


@pytest.mark.parametrize(("now", "broken", "new"), CHANGES.values(), ids=CHANGES)
def test_which_changes_break_plugins(now: str, broken: list[str], new: list[str]) -> None:
    assert compare(THEN, now) == Difference(broken, new)


def imported(source: Path) -> set[tuple[str, str]]:
    """Return what the code below a directory takes out of vllmrt: module and name."""
    found = set()
    files = [file for file in source.rglob("*.py") if "tests" not in file.relative_to(source).parts]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("vllmrt."):
            found |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if f"{alias.name}.".startswith("vllmrt.")}
    return found


def is_public(module: str, name: str) -> bool:
    if (module, name) == ("vllmrt.settings", "Settings") or f"{module}.{name}" in PUBLIC:
        return True
    return module in PUBLIC and (not name or not PUBLIC[module] or name in PUBLIC[module])


@pytest.mark.parametrize("source", PLUGINS, ids=lambda path: path.parent.name if path.name == "src" else path.name)
def test_plugins_use_what_is_public_and_nothing_else(source: Path) -> None:
    used = imported(source)
    assert used
    assert sorted(f"{module}.{name}" for module, name in used if not is_public(module, name)) == []


def test_every_public_module_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert [module for module in [*PUBLIC, "vllmrt.settings"] if f"`{module}`" not in page] == []


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_plugins_ask_for_a_version_as_the_docs_say(project: Path) -> None:
    told = tomllib.loads(project.read_text())["project"]
    (asked,) = [one for one in told["dependencies"] if re.match(r"vllmrt\W", one)]
    lowest, next_major = re.fullmatch(r"vllmrt>=(\d+\.\d+),<(\d+)", asked).groups()  # type: ignore[union-attr]
    assert int(next_major) == int(lowest.partition(".")[0]) + 1
