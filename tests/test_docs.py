"""The reference pages say what the code says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllmrt import layers
from vllmrt.cli.app import COMMANDS
from vllmrt.errors import ExitCode
from vllmrt.preflight.decision import PortAction

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"


def test_the_settings_page_is_what_the_table_makes() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "settings_page.py"], capture_output=True, text=True, check=True
    )
    assert (REFERENCE / "settings.md").read_text() == made.stdout, "make settings-page"


def test_the_settings_page_has_every_variable() -> None:
    page = (REFERENCE / "settings.md").read_text()
    assert [name for row in layers.rows() for name in row.names if f"`{name}`" not in page] == []


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
    command = [Path(sys.executable).with_name("vllmrt"), "doctor", "--json"]
    told = json.loads(subprocess.run(command, env=environ, capture_output=True, text=True, check=False).stdout)
    page = (ROOT / "docs" / "doctor.md").read_text()
    fields = page[page.index("## In JSON") :]
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", fields, re.MULTILINE)}
    assert list(rows) == [name for name in told if name not in {"ok", "code", "notes", "problems"}]
    for name, row in rows.items():
        facts = told[name][0] if isinstance(told[name], list) and told[name] else told[name]
        if name != "gpus" and facts:
            assert [fact for fact in facts if f"`{fact}`" not in row] == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_exit_code_has_a_remedy_in_troubleshooting() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    explained = {int(number) for heading in headings for number in re.findall(r"\b\d+\b", heading)}
    assert explained == {code.value for code in ExitCode} - {0}


def test_every_command_is_in_the_docs() -> None:
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [command for command in COMMANDS if f"vllmrt {command}" not in text] == []
