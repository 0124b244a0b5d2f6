"""What the pages let a user type is typed: every block of shell, with a machine that has models and no network."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from mdkit import ROOT, blocks, pages
from newcomer import newcomer, run  # noqa: F401 - pytest finds fixtures by their names here
from standin import only_orphans, port  # noqa: F401 - as above

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from pathlib import Path

TUTORIAL = ROOT / "docs" / "tutorial.md"  # tests/test_tutorial.py follows it
PAGES = [page for page in pages() if page == ROOT / "README.md" or page.is_relative_to(ROOT / "docs")]
SHELL = [block for page in PAGES if page != TUTORIAL for block in blocks(page) if block.language == "sh"]
REASONS = {
    "it starts a real server: tests/e2e",
    "it needs a server that runs: tests/e2e",
    "it installs from a registry",
    "it needs Flox",
    "it needs a cluster",
    "it needs root",
    "it needs GPUs",
    "it needs Prometheus",
}
"""All there is of excuses; a page has one as a comment before the block: ``<!-- not run: it needs Flox -->``."""


@pytest.fixture
def machine(
    newcomer: dict[str, str],  # noqa: F811 - the fixture
    port: int,  # noqa: F811
    only_orphans: None,  # noqa: ARG001, F811 - a page stops all there are
    tmp_path: Path,
) -> dict[str, str]:
    models = tmp_path / "home" / ".local" / "share" / "vllmrt" / "models"
    for name in ("name", "Qwen2.5-7B-Instruct"):
        make_model(models / name)
    own = {"VLLM_PORT": str(port), "VLLM_PREFLIGHT_LOCKFILE": str(tmp_path / "preflight.lock")}
    return {**newcomer, "HF_HUB_OFFLINE": "1", **own}


def test_every_excuse_is_a_known_one_and_they_are_the_lesser_part() -> None:
    excused = Counter(block.not_run for block in SHELL if block.not_run)
    assert set(excused) <= REASONS
    assert excused.total() < len(SHELL) - excused.total()


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda page: page.name)
def test_every_block_of_shell_can_be_typed(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    typed = [block for block in blocks(page) if block.language == "sh" and not block.not_run]
    if not typed:
        return
    environ = request.getfixturevalue("machine")
    here = tmp_path / "here"
    here.mkdir()
    (here / "start.sh").write_text("#!/bin/sh\n")
    (here / "start.sh").chmod(0o755)
    for block in typed:
        run(block, here, environ)
