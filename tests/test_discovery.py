"""What is installed, from the metadata alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vllmrt import discovery
from vllmrt.discovery import EntryPoint, entry_points, normalise
from vllmrt.testing import fake_dist
from vllmrt.testing.distributions import entry_points_txt

GROUPS = (discovery.SOURCES, discovery.GPU_PROBES, discovery.PLUGINS, discovery.MODELS)
SOURCE = {discovery.SOURCES: {"acme": "acme_module"}}
ACME = EntryPoint(discovery.SOURCES, "acme", "acme_module", "acme", "1.0")


def found(*directories: Path) -> list[EntryPoint]:
    return entry_points([str(directory) for directory in directories])


def by_importlib(search_path: list[str]) -> set[EntryPoint]:
    """Return what the standard library finds, the first of a distribution's name only."""
    import importlib.metadata

    first: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=search_path):
        first.setdefault(normalise(distribution.metadata["Name"]), distribution)
    return {
        EntryPoint(point.group, point.name, point.value, name, distribution.version)
        for name, distribution in first.items()
        for point in distribution.entry_points
        if point.group in GROUPS
    }


def test_the_running_environment_is_seen_as_importlib_sees_it() -> None:
    ours = {point for point in entry_points() if point.group in GROUPS}
    assert ours == by_importlib(sys.path)
    assert {"local", "flox", "hf-cache", "package", "builtin"} <= {point.name for point in ours}


def test_nothing_is_imported() -> None:
    script = (
        "import sys; from vllmrt import discovery; assert discovery.entry_points();"
        "dear = ('importlib.metadata', 'email', 'pluggy', 'vllmrt_');"
        "print([name for name in sys.modules if name.startswith(dear)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "normal"),
    [("Acme", "acme"), ("acme_source", "acme-source"), ("A.B__c-.-D", "a-b-c-d"), ("acme", "acme"), ("a", "a")],
)
def test_names_are_compared_as_packaging_tools_do(name: str, normal: str) -> None:
    assert normalise(name) == normal


def test_the_owner_is_distribution_and_version(tmp_path: Path) -> None:
    fake_dist(tmp_path, "Acme_Source.Kit", "1.2.post1+local.3", SOURCE)
    (point,) = found(tmp_path)
    assert point.owner == "acme-source-kit 1.2.post1+local.3"


def test_every_group_of_ours_is_seen_and_no_other(tmp_path: Path) -> None:
    groups = {
        group: {"x": "module"} for group in (*GROUPS, "vllmrt", "console_scripts", "notvllmrt.sources", "pytest11")
    }
    fake_dist(tmp_path, "acme", "1.0", groups)
    assert {point.group for point in found(tmp_path)} == set(GROUPS)


TEXTS = {
    "spaces": "[ vllmrt.sources ]\n  acme   =   acme_module  \n",
    "no spaces": "[vllmrt.sources]\nacme=acme_module",
    "comments": "# a\n; b\n[vllmrt.sources]\n# c = d\n; e = f\nacme = acme_module\n",
    "CRLF": "[vllmrt.sources]\r\nacme = acme_module\r\n",
    "blank lines": "\n\n[vllmrt.sources]\n\n\nacme = acme_module\n\n",
    "other groups around": "[a]\nacme = x\n[vllmrt.sources]\nacme = acme_module\n[b]\nacme = y\n",
    "a line without =": "[vllmrt.sources]\nnonsense\nacme = acme_module\n",
    "tabs": "[vllmrt.sources]\n\tacme\t=\tacme_module\t\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_format_as_tools_write_it(text: str, tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", {})
    (tmp_path / "acme-1.0.dist-info" / "entry_points.txt").write_bytes(text.encode())
    assert found(tmp_path) == [ACME]


@pytest.mark.parametrize("value", ["a.b:c", "a.b:c.d", "a:b [extra]", "a = b"])
def test_the_value_is_kept_as_it_is(value: str, tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", {discovery.SOURCES: {"acme": value}})
    assert [point.value for point in found(tmp_path)] == [value]
    assert set(found(tmp_path)) == by_importlib([str(tmp_path)])


GARBAGE = {
    "binary": bytes(range(256)) * 64 + b"[vllmrt.sources]",
    "not UTF-8": b"[vllmrt.sources]\n\xff\xfe = \xff\n",
    "UTF-16": "[vllmrt.sources]\nacme = x\n".encode("utf-16"),
    "NUL": b"\0" * 10_000,
    "nothing": b"",
    "the group's name alone": b"vllmrt.sources",
    "an unclosed bracket": b"[vllmrt.sources\nacme",
    "a long line": b"[vllmrt.sources]\n" + b"a" * 1_000_000,
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_costs_its_own_distribution_only(content: bytes, tmp_path: Path) -> None:
    fake_dist(tmp_path, "broken", "1.0", {})
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(content)
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    assert ACME in found(tmp_path)


@pytest.mark.parametrize("what", ["directory", "dangling link", "file as dist-info", "nothing"])
def test_metadata_of_the_wrong_kind_is_passed_over(what: str, tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    info = tmp_path / "broken-1.0.dist-info"
    if what == "file as dist-info":
        info.write_text("x")
    else:
        info.mkdir()
    if what == "directory":
        (info / "entry_points.txt").mkdir()
    if what == "dangling link":
        (info / "entry_points.txt").symlink_to("nowhere")
    assert found(tmp_path) == [ACME]


def test_what_pip_left_while_removing_is_not_installed(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    (tmp_path / "acme-1.0.dist-info").rename(tmp_path / "~cme-1.0.dist-info")
    assert found(tmp_path) == []


@pytest.mark.parametrize("name", [".dist-info", "dist-info", "acme.dist-info", "acme-1.0.dist-infos", "acme-1.0.egg"])
def test_names_that_are_no_metadata_do_not_stop_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "entry_points.txt").write_text(entry_points_txt({discovery.SOURCES: {"odd": "x"}}))
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    assert ACME in found(tmp_path)


def test_an_egg_info_of_an_editable_install_counts(tmp_path: Path) -> None:
    info = tmp_path / "acme.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points_txt(SOURCE))
    (point,) = found(tmp_path)
    assert (point.name, point.distribution) == ("acme", "acme")


def test_an_egg_info_of_an_old_install_has_its_version(tmp_path: Path) -> None:
    info = tmp_path / "acme_kit-1.0-py3.11.egg-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(entry_points_txt(SOURCE))
    (point,) = found(tmp_path)
    assert point.owner == "acme-kit 1.0"


def test_of_a_distribution_that_is_there_twice_the_first_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    fake_dist(first, "Acme.Kit", "1.0", {discovery.SOURCES: {"acme": "one"}})
    fake_dist(second, "acme-kit", "2.0", {discovery.SOURCES: {"acme": "two", "more": "two"}})
    assert [(point.value, point.version) for point in found(first, second)] == [("one", "1.0")]
    assert {(point.value, point.version) for point in found(second, first)} == {("two", "2.0")}


def test_a_first_one_without_entry_points_hides_the_second_too(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    fake_dist(first, "acme", "2.0", {})
    fake_dist(second, "acme", "1.0", SOURCE)
    assert found(first, second) == []


def test_a_directory_that_is_twice_on_the_path_counts_once(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    assert found(tmp_path, tmp_path, tmp_path / "." / "..") == [ACME]


def test_the_current_directory_is_the_empty_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    monkeypatch.chdir(tmp_path)
    assert entry_points([""]) == [ACME]


@pytest.mark.parametrize("what", ["gone", "archive.zip", "long"])
def test_what_is_no_directory_is_passed_over(what: str, tmp_path: Path) -> None:
    fake_dist(tmp_path / "good", "acme", "1.0", SOURCE)
    (tmp_path / "archive.zip").write_bytes(b"PK")
    bad = "a" * 5000 if what == "long" else str(tmp_path / what)
    assert entry_points([bad, str(tmp_path / "good")]) == [ACME]


AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from vllmrt.discovery import entry_points
print([point.name for point in entry_points(sys.argv[1:])])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["the directory", "the metadata", "the file"])
def test_what_may_not_be_read_is_passed_over(closed: str, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    fake_dist(bad, "secret", "1.0", {discovery.SOURCES: {"secret": "x"}})
    fake_dist(good, "acme", "1.0", SOURCE)
    for directory in [tmp_path, *tmp_path.parents]:
        if not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    info = bad / "secret-1.0.dist-info"
    {"the directory": bad, "the metadata": info, "the file": info / "entry_points.txt"}[closed].chmod(0)
    source = Path(discovery.__file__).parents[1]
    script = f"import sys; sys.path.insert(0, {str(source)!r}); import vllmrt.discovery\n{AS_NOBODY}"
    command = [sys.executable, "-c", script, str(bad), str(good)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['acme']", done.stderr


def test_what_is_installed_later_is_seen(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    os.utime(tmp_path, ns=(1, 1))
    assert found(tmp_path) == [ACME]


def test_two_hundred_distributions_are_as_importlib_sees_them(tmp_path: Path) -> None:
    for number in range(200):
        points = (
            {discovery.SOURCES: {f"s{number}": f"m{number}"}} if number % 10 == 0 else {"console_scripts": {"a": "b"}}
        )
        fake_dist(tmp_path, f"Dist_{number}.x", f"{number}.0", points)
    points = found(tmp_path)
    assert len(points) == 20
    assert set(points) == by_importlib([str(tmp_path)])


def test_the_answer_of_one_call_cannot_be_changed_by_its_caller(tmp_path: Path) -> None:
    fake_dist(tmp_path, "acme", "1.0", SOURCE)
    found(tmp_path).clear()
    assert found(tmp_path) == [ACME]
