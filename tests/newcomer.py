"""A new user's machine: an empty home, vllmrt installed, and pip, which installs without touching our environment."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from mdkit import Block

ENGINE = '#!/bin/sh\necho "vllm $*"\n'


@pytest.fixture
def newcomer(tmp_path: Path) -> dict[str, str]:
    """Return the environment of such a user."""
    root = tmp_path / "venv"
    venv.create(root, symlinks=True)
    (site,) = root.glob("lib/python*/site-packages")
    ours = sysconfig.get_path("purelib")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, module in (("vllmrt", "vllmrt.cli"), ("pip", "pip._internal.cli.main")):
        script = root / "bin" / name
        script.write_text(f"#!{root}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    engine = root / "bin" / "vllm"
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **pip, "HOME": str(tmp_path / "home"), "PATH": f"{root}/bin:/usr/bin:/bin"}


def run(block: Block, here: Path, environ: dict[str, str]) -> str:
    """Run a block of shell as it stands, and return what it says; it must succeed."""
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{block.where}:\n{block.text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
