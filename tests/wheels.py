"""The packages of this repository as a release has them, installed into an environment that has nothing else."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]


def run(*command: str | Path, cwd: Path = ROOT, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build all packages, each wheel from its source archive, as `make dist` does."""
    out = tmp_path_factory.mktemp("dist")
    tools = ["--all-packages", "--no-build-isolation", "--python", sys.executable]
    run(Path(sys.executable).with_name("uv"), "build", "--quiet", *tools, "--out-dir", out)
    (out / ".gitignore").unlink()
    return out


def install(dist: Path, path: Path) -> Path:
    """Install all wheels into a new environment, and return its directory of programs.

    It gets what is not ours from the tests' own environment: what requirements/runtime.txt names, and nothing else.
    """
    venv.create(path)
    _link_dependencies(path)
    pip = [sys.executable, "-m", "pip", "--python", path / "bin" / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-index", "--find-links", dist, *sorted(dist.glob("*.whl")))
    run(*pip, "check")
    return path / "bin"


def _link_dependencies(path: Path) -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    for line in (ROOT / "requirements" / "runtime.txt").read_text().splitlines():
        name, pinned, _ = line.partition("==")
        if not pinned or line.startswith((" ", "#")):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:  # it is for other systems
            continue
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (site / top).symlink_to(found.locate_file(top))
