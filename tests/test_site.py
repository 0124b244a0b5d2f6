"""The site is built strictly, without the network, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from mdkit import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built)]
    environ = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return built


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = {}
    for page in site.rglob("*.html"):
        tags = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\" >]+", page.read_text()
        )
        loaded.update({str(page.relative_to(site)): tags} if tags else {})
    assert loaded == {}


def test_the_reference_is_made_from_the_docstrings(site: Path) -> None:
    reference = site / "reference"
    hooks = (reference / "hooks.html").read_text()
    assert all(f'id="vllmrt.hookspecs.{hook}"' in hooks for hook in ("vllmrt_sources", "vllmrt_classify_process"))
    assert "acme_share.py" in hooks
    assert "::</p>" not in hooks
    assert 'id="vllmrt.types.Candidate"' in (reference / "types.html").read_text()
    assert 'id="vllmrt.errors.ChangedError"' in (reference / "errors.html").read_text()
    assert 'id="vllmrt.transfer.http.RangeClient.open"' in (reference / "transfer-http.html").read_text()


def test_every_link_leads_to_something_in_the_site(site: Path) -> None:
    links = {
        (page, link)
        for page in site.rglob("*.html")
        for link in re.findall(r'href="([^"#?]+)', page.read_text())
        if not re.match(r"(https?:|mailto:|data:|/)", link)
    }
    assert [(page, link) for page, link in links if not (page.parent / link).exists()] == []
