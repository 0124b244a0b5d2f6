from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vllmrt.hubcache import repository, snapshots
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from pathlib import Path

OLD, MIDDLE, NEW = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Three snapshots, of which the middle one is the branch ``main``."""
    path = repository(tmp_path, ModelRequest("org/name"))
    for age, commit in enumerate([NEW, MIDDLE, OLD]):
        (path / "snapshots" / commit).mkdir(parents=True)
        os.utime(path / "snapshots" / commit, (1000 - age, 1000 - age))
    write_ref(path, "main", MIDDLE)
    return path


def write_ref(repo: Path, name: str, content: str) -> None:
    path = repo / "refs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def names(repo: Path, revision: str | None = None) -> list[str]:
    return [path.name[0] for path in snapshots(repo, revision)]


def test_directory_of_a_model(tmp_path: Path) -> None:
    assert repository(tmp_path, ModelRequest("org/name")) == tmp_path / "models--org--name"


def test_main_comes_first_then_the_newest(repo: Path) -> None:
    assert names(repo) == ["b", "c", "a"]


def test_without_main_the_newest_comes_first(repo: Path) -> None:
    (repo / "refs" / "main").unlink()
    assert names(repo) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("main", ["b"]),
        ("v1.0", ["a"]),
        ("refs/pr/3", ["c"]),
        (OLD, ["a"]),
        (OLD[:7], []),
        ("v2.0", []),
        ("snapshots", []),
    ],
)
def test_a_revision_is_a_ref_or_a_whole_commit(repo: Path, revision: str, expected: list[str]) -> None:
    write_ref(repo, "v1.0", f"{OLD}\n")
    write_ref(repo, "refs/pr/3", NEW)
    assert names(repo, revision) == expected


def test_a_ref_counts_before_a_snapshot_of_that_name(repo: Path) -> None:
    (repo / "snapshots" / "v1").mkdir()
    write_ref(repo, "v1", NEW)
    assert names(repo, "v1") == ["c"]


@pytest.mark.parametrize("content", ["", "../../../elsewhere", "d" * 40, "x" * 100_000, "\0", f"{OLD}\n{NEW}"])
def test_a_ref_that_leads_nowhere_chooses_nothing(repo: Path, content: str) -> None:
    write_ref(repo, "main", content)
    assert names(repo) == ["c", "b", "a"]
    assert names(repo, "main") == []


def test_a_ref_that_is_no_text_chooses_nothing(repo: Path) -> None:
    (repo / "refs" / "main").write_bytes(b"\xff\xfe" * 20)
    assert names(repo) == ["c", "b", "a"]


def test_a_ref_that_is_a_directory_chooses_nothing(repo: Path) -> None:
    write_ref(repo, "refs/pr/3", NEW)
    assert names(repo, "refs/pr") == []


def test_files_and_dangling_links_are_no_snapshots(repo: Path) -> None:
    (repo / "snapshots" / ".DS_Store").touch()
    (repo / "snapshots" / ("d" * 40)).symlink_to("gone")
    assert names(repo) == ["b", "c", "a"]


@pytest.mark.parametrize("revision", [None, "main", OLD])
def test_a_model_that_is_not_cached_has_no_snapshots(tmp_path: Path, revision: str | None) -> None:
    assert snapshots(repository(tmp_path / "nowhere", ModelRequest("org/name")), revision) == []


def test_a_download_that_only_began_has_no_snapshots(tmp_path: Path) -> None:
    write_ref(tmp_path / "models--org--name", "main", OLD)
    assert snapshots(tmp_path / "models--org--name", None) == []
