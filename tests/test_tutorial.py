"""The tutorial, as a new user would follow it: every block, in order, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from typing import TYPE_CHECKING

import pytest
from mdkit import ROOT, blocks

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which vllmrt is installed, and into which pip installs without touching ours."""
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


def test_the_tutorial_leads_from_nothing_to_a_plugin_that_works(environ: dict[str, str], tmp_path: Path) -> None:
    here = tmp_path / "empty"
    here.mkdir()
    said = {}
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        assert block.language == "sh", block.where
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{block.where}:\n{block.text}\n{done.stdout}{done.stderr}"
        said[block.text.splitlines()[-1].split(" --sources")[0]] = done.stdout + done.stderr
    assert "acme-zip" in said["vllmrt plugins"]
    published = tmp_path / "home" / ".local" / "share" / "vllmrt" / "models" / "tiny"
    assert said["vllmrt resolve acme/tiny"].splitlines()[0] == str(published)
    assert f"vllm serve {published}" in said["vllmrt up acme/tiny"]
    assert "copy the archive there" in said["vllmrt up acme/other"]
    assert " passed" in said["python -m pytest acme-zip/tests"]
