"""The examples, treated as strangers: installed on their own, used through the command line."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from strangerkit import EXAMPLES, environ_with, example, install

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_LINES = 60
each = pytest.mark.parametrize("project", EXAMPLES, ids=lambda path: path.name)


def vllmrt(environ: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("vllmrt")), *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@each
@pytest.mark.timeout(300)
def test_an_example_passes_its_own_suite(project: Path, tmp_path: Path) -> None:
    environ = environ_with(install(project, tmp_path / "site"), tmp_path)
    listed = json.loads(vllmrt(environ, "plugins", "--json").stdout)["plugins"]
    assert project.name in {plugin["distribution"] for plugin in listed}
    # its own pyproject.toml, and none of the plugins and options that this run of pytest has
    command = ["-m", "pytest", "-q", "-rs", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--rootdir", str(project), "-c", str(project / "pyproject.toml"), str(project / "tests")]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    if skipped := re.search(r"\d+ skipped", done.stdout):
        pytest.skip(f"{skipped[0]} in {project.name}: " + done.stdout[-500:])


def test_the_share_gives_a_model(tmp_path: Path) -> None:
    environ = environ_with(install(example("acme-share"), tmp_path / "site"), tmp_path)
    model = make_model(tmp_path / "share" / "acme" / "llama")
    found = vllmrt(environ, "resolve", "acme/llama", "--sources", "local,acme-share")
    assert found.stdout.strip() == str(model)
    missing = vllmrt(environ, "resolve", "acme/other", "--sources", "acme-share")
    assert missing.returncode == 10
    assert "mount the share at" in missing.stderr


def test_an_unsigned_model_is_not_served(tmp_path: Path) -> None:
    environ = environ_with(install(example("vllmrt-model-signing"), tmp_path / "site"), tmp_path)
    make_model(tmp_path / "models" / "llama")
    refused = vllmrt(environ, "resolve", "acme/llama", "--sources", "local")
    assert refused.returncode == 11
    assert "set MODEL_SIGNING_KEY to a public key" in refused.stderr


@each
def test_an_example_is_short(project: Path) -> None:
    modules = [path for path in project.glob("*.py") if len(list(lines_of_code(path))) >= MOST_LINES]
    assert modules == []


def lines_of_code(path: Path) -> Iterator[int]:
    """Yield the lines that are code: without imports, docstrings, comments and blank ones."""
    source = path.read_text()
    aside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            aside |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(source.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#") and number not in aside:
            yield number
