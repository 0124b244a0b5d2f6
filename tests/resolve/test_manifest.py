"""What is known of a model's bytes: hostile manifests are none, and any change is seen."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmrt.identity import MAX_NAME
from vllmrt.resolve import manifest
from vllmrt.resolve.manifest import FileState, Manifest
from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = Manifest(
    identity="org/name@v1",
    source="local",
    location="/srv/models/name",
    revision="0" * 40,
    guards=("structure (vllmrt 0.1.0)",),
    files={"config.json": FileState(12, 1_700_000_000_000_000_000), "a/b.bin": FileState(0, 0)},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / manifest.NAME


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def as_json(**changes: Any) -> bytes:
    value = {"version": 1, "identity": "a/b", "source": "s", "location": "/l", "files": {}} | changes
    return json.dumps({key: item for key, item in value.items() if item is not ...}).encode()


def test_it_comes_back_as_it_was(path: Path) -> None:
    manifest.write(path, WHOLE)
    assert manifest.read(path) == WHOLE
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_small_one_comes_back_too(path: Path) -> None:
    path.write_bytes(as_json())
    assert manifest.read(path) == Manifest(identity="a/b", source="s", location="/l")


def test_fields_of_a_later_version_are_passed_over(path: Path) -> None:
    path.write_bytes(as_json(later={"a": [1]}))
    assert manifest.read(path) is not None


HOSTILE = {
    "nothing": b"",
    "no JSON": b"identity: a/b",
    "cut": as_json()[:-1],
    "two values": as_json() + b"{}",
    "null": b"null",
    "an array": b"[]",
    "a string": b'"a/b"',
    "binary": bytes(range(256)) * 100,
    "NUL": b"\0" * 1000,
    "not UTF-8": as_json().replace(b"a/b", b"a/\xff"),
    "UTF-16": as_json().decode().encode("utf-16"),
    "deep array": b"[" * 1_000_000,
    "deep object": b'{"a":' * 1_000_000,
    "deep inside": as_json().replace(b"{}", b"[" * 100_000),
    "deep in what is passed over": as_json()[:-1] + b', "x": ' + b"[" * 1_000_000,
    "no identity": as_json(identity=...),
    "no source": as_json(source=...),
    "an identity that is a number": as_json(identity=5),
    "an identity that is null": as_json(identity=None),
    "files that are a list": as_json(files=[]),
    "a file without a time": as_json(files={"x": [1]}),
    "a size that is text": as_json(files={"x": ["1", 2]}),
    "a size that is a fraction": as_json(files={"x": [1.5, 2]}),
    "a size that is an object": as_json(files={"x": [{}, 2]}),
    "guards that are a text": as_json(guards="all"),
    "a revision that is a number": as_json(revision=1),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_understood_is_none(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    before = time.monotonic()
    assert manifest.read(path) is None
    assert time.monotonic() - before < 2


def test_a_version_that_is_not_ours_is_none(path: Path) -> None:
    path.write_bytes(as_json(version=2))
    assert manifest.read(path) is None


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_read_without_an_error(content: bytes) -> None:
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        assert manifest.read(Path(file.name)) is None


def test_one_that_is_huge_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_SIZE_LIMIT", 1000)
    path.write_bytes(as_json(location="x" * 2000))
    assert manifest.read(path) is None


@pytest.mark.parametrize("kind", ["missing", "directory", "dangling link", "link", "fifo", "below a file"])
def test_what_is_no_file_is_none(kind: str, path: Path, tmp_path: Path) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link":
        manifest.write(tmp_path / "real", WHOLE)
        path.symlink_to("real")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "below a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / manifest.NAME
    assert manifest.read(path) is None


# the state of a directory


def test_every_file_is_there_with_its_size_and_time(model: Path) -> None:
    (model / "tokenizer").mkdir()
    (model / "tokenizer" / "vocab.txt").write_text("a")
    found = manifest.states(model)
    files = [file for file in model.rglob("*") if file.is_file()]
    assert list(found) == sorted(file.relative_to(model).as_posix() for file in files)
    for file in files:
        state = found[file.relative_to(model).as_posix()]
        assert (state.size, state.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert manifest.total_size(found) == sum(file.stat().st_size for file in files)


def touch(model: Path) -> None:
    os.utime(model / "config.json", ns=(1, 1))


def change(model: Path) -> None:
    before = (model / "config.json").stat()
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another time": touch,
    "another content of the same time": change,
    "one more": lambda model: (model / "more.txt").touch(),
    "one less": lambda model: (model / "config.json").unlink(),
    "another name": lambda model: (model / "config.json").rename(model / "other.json"),
    "one more below": lambda model: ((model / "a").mkdir(), (model / "a" / "b").touch()),
    "a hidden one": lambda model: (model / ".hidden").touch(),
    "a directory that looks like ours": lambda model: (
        (model / "x").mkdir(),
        (model / "x" / ".vllmrt.json.safetensors").touch(),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(what: str, model: Path) -> None:
    before = manifest.states(model)
    assert manifest.states(model) == before
    CHANGES[what](model)
    assert manifest.states(model) != before


def test_what_python_and_we_put_there_is_passed_over(model: Path) -> None:
    before = manifest.states(model)
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "x.pyc").touch()
    manifest.write(model / manifest.NAME, WHOLE)
    assert manifest.states(model) == before


def test_weights_that_hide_behind_a_name_of_ours_are_seen(model: Path) -> None:
    """A name that is passed over must not be one that vLLM would load, or that leads to it."""
    before = manifest.states(model)
    (model / "a").mkdir()
    (model / "a" / manifest.NAME).mkdir()
    (model / "a" / manifest.NAME / "model.safetensors").touch()
    assert manifest.states(model) != before


def test_links_are_followed_to_what_they_mean(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("one")
    (model / "linked").symlink_to(blob)
    before = manifest.states(model)
    assert before["linked"].size == 3
    blob.write_text("other")
    assert manifest.states(model) != before


def test_another_target_of_a_link_is_seen(model: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"blob{number}").write_text("same")
        os.utime(tmp_path / f"blob{number}", ns=(number, number))
    (model / "linked").symlink_to(tmp_path / "blob1")
    before = manifest.states(model)
    (model / "linked").unlink()
    (model / "linked").symlink_to(tmp_path / "blob2")
    assert manifest.states(model) != before


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_a_link_that_leads_nowhere_is_an_os_error(target: str, model: Path) -> None:
    (model / "loop").symlink_to(target)
    with pytest.raises(OSError, match=r"No such file|Too many levels") as caught:
        manifest.states(model)
    assert caught.value.filename


def test_a_directory_that_is_gone_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        manifest.states(tmp_path / "gone")


def test_a_loop_of_directories_ends(model: Path) -> None:
    (model / "self").symlink_to(".")
    before = time.monotonic()
    manifest.states(model)
    assert time.monotonic() - before < 1


def test_files_below_a_linked_directory_are_seen_when_they_change(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights.bin").write_text("one")
    (model / "linked").symlink_to(outside)
    before = manifest.states(model)
    (outside / "weights.bin").write_text("other")
    assert manifest.states(model) != before


@pytest.mark.parametrize("name", ["a\nb", "a b", "é", os.fsdecode(b"\xff"), "'\"", "a\x1bb"], ids=ascii)
def test_odd_names_survive(name: str, model: Path, path: Path) -> None:
    before = manifest.states(model)
    (model / name).write_text("x")
    found = manifest.states(model)
    assert len(found) == len(before) + 1
    known = Manifest(identity="a/b", source="s", location="/l", files=found)
    manifest.write(path, known)
    assert manifest.read(path) == known


def test_a_thousand_files_take_no_time(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"model-{number:05}-of-01000.safetensors").touch()
    before = time.monotonic()
    assert len(manifest.states(tmp_path)) == 1000
    assert time.monotonic() - before < 0.5


# where it is kept


def test_identity_and_directory_have_a_place_of_their_own(tmp_path: Path) -> None:
    pairs = [("a/b", "/x"), ("a/b", "/y"), ("a/b@v1", "/x"), ("a/c", "/x"), ("a-b", "/x")]
    places = {manifest.in_cache(tmp_path, identity, Path(directory)) for identity, directory in pairs}
    assert len(places) == len(pairs)
    assert {place.parent for place in places} == {tmp_path / "manifests"}


def test_a_directory_that_is_not_unicode_has_a_place_too(tmp_path: Path) -> None:
    assert manifest.in_cache(tmp_path, "a/b", Path(os.fsdecode(b"/srv/\xff"))).name.isascii()


def test_the_longest_identity_has_a_place_too(tmp_path: Path) -> None:
    identity = f"{'o' * MAX_NAME}/{'n' * MAX_NAME}@{'r' * MAX_NAME}"
    place = manifest.in_cache(tmp_path, identity, Path("/x"))
    manifest.write(place, WHOLE)
    assert manifest.read(place) == WHOLE


def test_the_guards_are_noted_with_their_owners_and_settings() -> None:
    guards = [("vllmrt 0.1.0", "structure"), ("acme 1.0", "licence")]
    noted = manifest.guards_of(guards, skip=False, safe=True)
    assert noted == ("licence (acme 1.0)", "structure (vllmrt 0.1.0)", "safe=True", "skip=False")
    assert manifest.guards_of(reversed(guards), safe=True, skip=False) == noted
    for other in (
        manifest.guards_of(guards[:1], skip=False, safe=True),
        manifest.guards_of(guards, skip=True, safe=True),
        manifest.guards_of([("vllmrt 0.2.0", "structure"), guards[1]], skip=False, safe=True),
    ):
        assert other != noted
