"""The examples, treated as strangers: installed on their own, used through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "plugins").iterdir())


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    def run(example: Path) -> dict[str, str]:
        target = tmp_path / "site"
        command = [
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(target),
            str(example),
        ]
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_", "XDG_"))}
        return kept | {"PYTHONPATH": str(target), "HOME": str(tmp_path), "VLLM_MODELS_DIR": str(tmp_path / "models")}

    return run


def vllmrt(environ: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("vllmrt")), *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_listed_once_it_is_installed(example: Path, install: Callable[[Path], dict[str, str]]) -> None:
    listed = json.loads(vllmrt(install(example), "plugins", "--json").stdout)["plugins"]
    assert example.name in {plugin["distribution"] for plugin in listed}


def test_the_share_gives_a_model(install: Callable[[Path], dict[str, str]], tmp_path: Path) -> None:
    environ = install(ROOT / "examples" / "plugins" / "acme-share")
    model = make_model(tmp_path / "share" / "acme" / "llama")
    found = vllmrt(environ, "resolve", "acme/llama", "--sources", "local,acme-share")
    assert found.stdout.strip() == str(model)
    missing = vllmrt(environ, "resolve", "acme/other", "--sources", "acme-share")
    assert missing.returncode == 10
    assert "mount the share at" in missing.stderr
