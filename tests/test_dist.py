"""What a release consists of: complete, in lockstep, and of use where nothing else of this repository is."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from strangerkit import EXAMPLES
from wheels import PROJECTS, ROOT, dist, install, run  # noqa: F401 - pytest finds the fixture by its name here

from vllmrt.scaffold import requirement

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ENGINE = """\
#!/bin/sh
test "$2" = --help=all && printf '  --%s A\\n' config port host gpu-memory-utilization uvicorn-log-level
exit 0
"""


def project(path: Path) -> dict[str, Any]:
    return dict(tomllib.loads(path.read_text())["project"])


VERSION = project(ROOT / "pyproject.toml")["version"]


def wheel_name(path: Path) -> str:
    return project(path)["name"].replace("-", "_")


def test_every_package_has_a_wheel_and_a_source_archive(dist: Path) -> None:  # noqa: F811 - the fixture
    expected = [f"{wheel_name(path)}-{VERSION}{kind}" for path in PROJECTS for kind in ("-py3-none-any.whl", ".tar.gz")]
    assert sorted(path.name for path in dist.iterdir()) == sorted(expected)
    assert not (ROOT / "uv.lock").exists()


@pytest.mark.parametrize("path", PROJECTS, ids=wheel_name)
def test_a_wheel_has_its_module_its_licence_and_its_types_and_no_tests(dist: Path, path: Path) -> None:  # noqa: F811
    with zipfile.ZipFile(dist / f"{wheel_name(path)}-{VERSION}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
    info = f"{wheel_name(path)}-{VERSION}.dist-info"
    assert {name.partition("/")[0] for name in names} == {wheel_name(path), info}
    assert f"{info}/licenses/LICENSE" in names
    typed = f"{wheel_name(path)}/py.typed" in names
    assert typed or wheel_name(path) == "vllmrt_model_tiny"
    assert [name for name in names if "/tests/" in name or name.endswith(".pyc")] == []


def test_a_source_archive_has_one_package(dist: Path) -> None:  # noqa: F811 - the fixture
    with tarfile.open(dist / f"vllmrt-{VERSION}.tar.gz") as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops == {"src", "tests", "docs", *("README.md", "CHANGELOG.md", "LICENSE")} | {
        "PKG-INFO",
        "pyproject.toml",
        ".gitignore",
    }


@pytest.mark.timeout(300)
def test_they_are_of_use_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    programs = install(dist, tmp_path / "venv")
    engine = tmp_path / "vllm"
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "VLLMRT_VLLM": str(engine),
        "VLLM_PREFLIGHT_LOCKFILE": str(tmp_path / "lock"),
    }

    def vllmrt(*args: str) -> str:
        return run(programs / "vllmrt", *args, cwd=tmp_path, environ=environ)

    assert vllmrt("--version") == f"vllmrt {VERSION}\n"
    checked = json.loads(vllmrt("plugins", "check", "--json"))["plugins"]
    assert {plugin["distribution"] for plugin in checked} == {project(path)["name"] for path in PROJECTS}
    told = json.loads(vllmrt("up", "--dry-run", "--json", "--no-preflight"))
    served = Path(told["argv"][2])
    assert served.is_relative_to(tmp_path / "venv")
    assert (served / "model.safetensors.index.json").is_file()
    vllmrt("plugins", "new", "acme", "--kind", "validator")
    assert (tmp_path / "acme" / "src" / "acme" / "__init__.py").is_file()
    for program in ("vllm-preflight", "vllm-resolve-model", "vllm-serve"):
        assert run(programs / program, "--help", cwd=tmp_path, environ=environ)


def test_all_versions_are_in_lockstep() -> None:
    assert {str(path.relative_to(ROOT)): project(path)["version"] for path in PROJECTS} == {
        str(path.relative_to(ROOT)): VERSION for path in PROJECTS
    }
    assert re.search(rf"^## {re.escape(VERSION)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_plugin_needs_this_minor_version_or_a_later_one_of_the_same_major() -> None:
    plugins = [*PROJECTS[1:], *(path / "pyproject.toml" for path in EXAMPLES)]
    asked = {
        str(path.relative_to(ROOT)): [one for one in project(path)["dependencies"] if one.startswith("vllmrt")]
        for path in plugins
        if project(path)["name"] != "vllmrt-model-tiny"  # weights that anybody may read
    }
    assert {path for path, needs in asked.items() if needs != [requirement(VERSION)]} == set()


def test_no_lock_file_and_no_address_of_a_registry_is_kept() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in {Path(name).name for name in files}
    text = "".join(path.read_text() for path in [*WORKFLOWS, *PROJECTS, *(ROOT / "requirements").glob("*.txt")])
    assert re.findall(r"pypi\.org|pythonhosted|index-url|registry\.", text) == []


def workflow(path: Path) -> dict[str, Any]:
    from yaml import safe_load

    return dict(safe_load(path.read_text()))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_every_action_by_its_commit(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    assert [one for one in uses if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []


def test_the_release_publishes_what_was_built_tried_and_attested_without_a_stored_secret() -> None:
    release = workflow(ROOT / ".github" / "workflows" / "release.yml")
    jobs = release["jobs"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads the word "on" as true
    assert release["permissions"] == {}
    assert set(jobs["publish"]["needs"]) == {"build", "try", "attest"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert jobs["attest"]["permissions"] == {"id-token": "write", "attestations": "write", "contents": "read"}
    for name in ("build", "try"):
        assert jobs[name]["permissions"] == {"contents": "read"}
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert not re.search(r"secrets\.|password|cache:", text)


def test_the_tag_has_to_be_the_version() -> None:
    check = next(
        step["run"]
        for step in workflow(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["build"]["steps"]
        if "GITHUB_REF_NAME" in step.get("run", "")
    )
    for tag, code in ((f"v{VERSION}", 0), ("v9.9.9", 1), (VERSION, 1), ("", 1)):
        environ = {"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag}
        done = subprocess.run(["bash", "-ec", check], cwd=ROOT, env=environ, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
