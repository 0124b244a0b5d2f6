"""Installs the examples as a stranger would, each alone: outside the environment that the tests run in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))


def example(name: str) -> Path:
    """Return the directory of one example."""
    return ROOT / "examples" / "plugins" / name


def install(project: Path, target: Path) -> Path:
    """Install a project without its dependencies, which are in the tests' own environment; return `target`."""
    command = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(project)]
    done = subprocess.run([sys.executable, "-m", "pip", *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def environ_with(site: Path, home: Path) -> dict[str, str]:
    """Return the environment of a user who has just this installed besides vllmrt."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_", "XDG_", "PYTEST"))}
    return kept | {"PYTHONPATH": str(site), "HOME": str(home), "VLLM_MODELS_DIR": str(home / "models")}
