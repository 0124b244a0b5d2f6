from __future__ import annotations

import time
from pathlib import Path

import pytest

from vllmrt.errors import SourceError
from vllmrt.paths import check_listing, is_ours, safe_join

ROOT = Path("/store/.staging/x/files")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "a/b/c.safetensors",
        "..a/b..",
        "...",
        ".gitattributes",
        "with space.json",
        "模型　一.bin",
        "C:x",
        "a" * 255,
        "/".join(["d" * 255] * 15),
        "journal.jsonl.txt",
        "vllmrt.json",
    ],
)
def test_a_plain_name_stays_below_the_root(name: str):
    assert safe_join(ROOT, name) == ROOT / name
    assert safe_join(ROOT, name).relative_to(ROOT).as_posix() == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("//host/x", "is absolute"),
        ("dir/", "is that of a directory"),
        ("a//b", "empty part"),
        ("..", "part . or .."),
        ("../x", "part . or .."),
        ("a/../../x", "part . or .."),
        ("./x", "part . or .."),
        ("a/.", "part . or .."),
        ("a\\b", "backslash"),
        ("..\\x", "backslash"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x1b[2Jb", "control character"),
        ("a\x7f", "control character"),
        ("a\x9b2J", "control character"),
        ("a\u2028b", "control character"),
        ("\ud800", "not Unicode"),
        ("a" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("/".join(["d" * 200] * 21), "longer than 4096 bytes"),
        (".vllmrt.json", "keeps for itself"),
        (".VLLMRT.json", "keeps for itself"),
        ("sub/.vllmrt.json", "keeps for itself"),
        ("..vllmrt.json.0123456789ab.tmp", "keeps for itself"),
        ("journal.jsonl", "keeps for itself"),
        (".staging/x", "keeps for itself"),
        (".locks", "keeps for itself"),
    ],
)
def test_any_other_name_is_refused_and_shown_escaped(name: str, fault: str):
    with pytest.raises(SourceError, match=fault) as caught:
        safe_join(ROOT, name)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    if "keeps for itself" in fault:
        assert is_ours(name)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b/a", "b/c", "ab", "a.b", "a-b/c"],
        ["a b", "a/b"],
        ["model.safetensors", "model.safetensors.index.json"],
        [],
    ],
)
def test_a_listing_that_is_a_tree_passes(names: list[str]):
    check_listing(names)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["a", "a"], "'a' twice"),
        (["config.json", "Config.json"], "the same"),
        (["dir/x", "x", "DIR/X"], "the same"),
        (["stra\u00dfe", "STRASSE"], "the same"),
        (["caf\u00e9", "cafe\u0301"], "the same"),
        (["a", "a!", "a-b", "a/b"], "as the directory of 'a/b'"),
        (["A", "a/b"], "as the directory of 'a/b'"),
        (["x/y/z/q", "x/y"], "as the directory of 'x/y/z/q'"),
    ],
)
def test_a_listing_that_is_no_tree_is_refused(names: list[str], fault: str):
    for listing in (names, names[::-1]):
        with pytest.raises(SourceError, match=fault):
            check_listing(listing)


def test_a_hundred_thousand_deep_names_take_no_time():
    deep = "/".join("d" * 20)
    names = [f"{deep}/{number}" for number in range(100_000)]
    started = time.monotonic()
    check_listing(names)
    for name in names:
        safe_join(ROOT, name)
    assert time.monotonic() - started < 10
