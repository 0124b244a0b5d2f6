"""What ``vllmrt plugins new`` writes installs, lints, type-checks and passes its tests, as it is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from strangerkit import environ_with, install

from vllmrt import scaffold
from vllmrt.errors import ConfigError

BIN = Path(sys.executable).parent
KINDS = list(scaffold.Kind)


def run(*command: str | Path, cwd: Path, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(300)
def test_a_new_plugin_passes_everything_that_it_is_held_to(kind: scaffold.Kind, tmp_path: Path) -> None:
    name = f"acme-{kind}"
    told = json.loads(run(BIN / "vllmrt", "plugins", "new", name, "--kind", kind, "--json", cwd=tmp_path))
    project = tmp_path / name
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert told["files"] == sorted(written)
    assert not [path for path in written if re.search(r"@\w+@", (project / path).read_text())]

    environ = environ_with(install(project, tmp_path / "site"), tmp_path)
    run(BIN / "ruff", "check", "--no-cache", cwd=project)
    run(BIN / "ruff", "format", "--no-cache", "--check", cwd=project)
    run(BIN / "mypy", "--cache-dir", tmp_path / "mypy", cwd=project, environ=environ)
    closing = run(sys.executable, "-m", "pytest", "-q", cwd=project, environ=environ).splitlines()[-1]
    assert re.search(r"\d\d? passed", closing)
    assert "skipped" not in closing
    checked = json.loads(run(BIN / "vllmrt", "plugins", "check", name, "--json", cwd=project, environ=environ))
    assert [plugin["checks"] for plugin in checked["plugins"]] == [{"import": None, "contract": None, "speed": None}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "a1-b2", "abcdefghi-abcdefghi-abcdefghi-abcdefghij"])
def test_it_is_well_formatted_under_any_name(kind: scaffold.Kind, name: str, tmp_path: Path) -> None:
    scaffold.write(name, kind, tmp_path / "new", "0.1.0")
    run(BIN / "ruff", "check", "--no-cache", cwd=tmp_path / "new")
    run(BIN / "ruff", "format", "--no-cache", "--check", cwd=tmp_path / "new")


def test_the_commands_that_follow_are_printed(tmp_path: Path) -> None:
    command = [BIN / "vllmrt", "plugins", "new", "acme-share", "--kind", "source", "--directory", "my plugins/one"]
    lines = run(*command, cwd=tmp_path).splitlines()
    assert lines[0] == "cd 'my plugins/one'"
    assert lines[-1] == ".venv/bin/vllmrt plugins check acme-share"
    assert (tmp_path / "my plugins" / "one" / "pyproject.toml").is_file()


BAD = ["", "Acme", "acme_share", "-acme", "acme-", "1acme", "a--b", "a/b", "../a", "a b", "a\n", "ä", "x" * 41, "a.b"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        scaffold.write(name, scaffold.Kind.SOURCE, tmp_path / "new", "0.1.0")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["json", "class", "vllmrt", "vllmrt-x", "r2"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        scaffold.write(name, scaffold.Kind.SOURCE, tmp_path / "new", "0.1.0")


def test_a_name_is_free_for_another_kind(tmp_path: Path) -> None:
    assert scaffold.write("r2", scaffold.Kind.GPU_PROBE, tmp_path / "new", "0.1.0")


def test_where_the_user_is_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for here in (Path(), tmp_path):
        with pytest.raises(ConfigError, match="that you are in") as raised:
            scaffold.write("acme", scaffold.Kind.SOURCE, here, "0.1.0")
        assert raised.value.hint
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    scaffold.write("acme", scaffold.Kind.SOURCE, target, "0.1.0")  # an empty directory will do
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for there in (target, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ConfigError, match="nothing is overwritten"):
            scaffold.write("other", scaffold.Kind.SOURCE, there, "0.1.0")
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "new"]


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        scaffold.write("acme", scaffold.Kind.SOURCE, tmp_path / "new", "0.1.0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "needs"), [("0.1.0", "vllmrt>=0.1,<1"), ("1.4.2", "vllmrt>=1.4,<2"), ("2.0", "vllmrt>=2.0,<3")]
)
def test_it_needs_the_version_that_it_is_written_for(version: str, needs: str, tmp_path: Path) -> None:
    scaffold.write("acme", scaffold.Kind.SOURCE, tmp_path / "new", version)
    project = tomllib.loads((tmp_path / "new" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [needs]


def test_its_workflow_names_every_action_by_its_commit(tmp_path: Path) -> None:
    from yaml import safe_load

    scaffold.write("acme", scaffold.Kind.SOURCE, tmp_path / "new", "0.1.0")
    workflow = safe_load((tmp_path / "new" / ".github" / "workflows" / "ci.yml").read_text())
    uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert uses
    assert [one for one in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one)] == []
    assert workflow["permissions"] == {"contents": "read"}
