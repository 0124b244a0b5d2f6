"""The tutorial, as a new user would follow it: every block, in order, in an empty directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdkit import ROOT, blocks
from newcomer import newcomer, run  # noqa: F401 - pytest finds the fixture by its name here

if TYPE_CHECKING:
    from pathlib import Path


def test_the_tutorial_leads_to_a_plugin_that_works(newcomer: dict[str, str], tmp_path: Path) -> None:  # noqa: F811 - the fixture
    here = tmp_path / "empty"
    here.mkdir()
    said = {}
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        assert block.language == "sh", block.where
        said[block.text.splitlines()[-1].split(" --sources")[0]] = run(block, here, newcomer)
    assert "acme-zip" in said["vllmrt plugins"]
    published = tmp_path / "home" / ".local" / "share" / "vllmrt" / "models" / "tiny"
    assert said["vllmrt resolve acme/tiny"].splitlines()[0] == str(published)
    assert f"vllm serve {published}" in said["vllmrt up acme/tiny"]
    assert "copy the archive there" in said["vllmrt up acme/other"]
    assert " passed" in said["python -m pytest acme-zip/tests"]
