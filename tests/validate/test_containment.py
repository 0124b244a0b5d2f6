from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest
from modelkit import move_to_hub_cache

from vllmrt import validate
from vllmrt.settings import Settings
from vllmrt.testing import make_model, tree_of
from vllmrt.validate import reading, tree

SHARD = "model-00001-of-00002.safetensors"


def test_a_whole_model_has_no_findings(check, model):
    assert check(model).findings == []


def test_a_file_link_out_of_the_tree(check, model, tmp_path):
    (model / SHARD).rename(tmp_path / "elsewhere.safetensors")
    (model / SHARD).symlink_to(tmp_path / "elsewhere.safetensors")
    report = check(model)
    assert report.errors == [("link-escapes", SHARD)]
    assert str(tmp_path / "elsewhere.safetensors") in report.text


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", SHARD, "sha256sums.txt", "model.safetensors.index.json"]
)
def test_what_lies_outside_is_never_opened(check, model, tmp_path, name, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    opened = []

    def spy(path: str, *args: int) -> int:
        opened.append(path)
        return os_open(path, *args)

    os_open = os.open
    monkeypatch.setattr(reading.os, "open", spy)
    report = check(model)
    assert report.errors == [("link-escapes", name)]
    assert opened
    assert str(secret) not in opened


def test_a_directory_link_out_of_the_tree_is_not_walked(check, model, tmp_path):
    outside = make_model(tmp_path / "outside")
    (outside / "pipe").write_text("")
    (model / "tokenizer").symlink_to(outside)
    assert check(model).errors == [("link-escapes", "tokenizer")]


def test_a_sibling_with_the_same_prefix_is_outside(check, model, tmp_path):
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2" / "x").write_text("x")
    (model / "x").symlink_to(tmp_path / "model-2" / "x")
    assert check(model).errors == [("link-escapes", "x")]


def test_a_link_through_the_root_and_out_again(check, model, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / "x").write_text("x")
    (repository / "hop").symlink_to(tmp_path / "x")
    (model / "x").symlink_to(repository / "hop")
    assert check(model, root=repository).errors == [("link-escapes", "x")]


def test_links_into_the_root_are_fine(check, model, tmp_path):
    snapshot, repository = move_to_hub_cache(model, tmp_path / "hub")
    assert check(snapshot, root=repository).findings == []
    assert {code for code, _ in check(snapshot).errors} == {"link-escapes"}


def test_the_root_may_itself_be_behind_a_link(check, model, tmp_path):
    snapshot, _ = move_to_hub_cache(model, tmp_path / "hub")
    (tmp_path / "alias").symlink_to(tmp_path / "hub")
    assert check(snapshot, root=tmp_path / "alias" / "models--org--name").findings == []


def test_a_directory_link_into_the_root_is_walked(check, model, tmp_path):
    store = tmp_path / "store"
    (store / "vocabulary").mkdir(parents=True)
    (model / "tokenizer.json").rename(store / "vocabulary" / "tokenizer.json")
    (model / "tokenizer").symlink_to(store / "vocabulary")
    assert check(model, root=store).findings == []
    (store / "vocabulary" / "tokenizer.json").write_text("")
    assert check(model, root=store).errors == [("empty-file", "tokenizer/tokenizer.json")]


def test_links_within_the_tree_are_fine(check, model):
    (model / "alias.json").symlink_to("config.json")
    (model / "absolute.json").symlink_to(model / "config.json")
    assert check(model).findings == []


def test_cycles_end(check, model):
    (model / "a" / "b").mkdir(parents=True)
    (model / "a" / "b" / "up").symlink_to("../..")
    (model / "a" / "self").symlink_to(".")
    (model / "a" / "b" / "back").symlink_to("../../a")
    assert check(model).findings == []


def test_exploding_links_end(check, model):
    for level in range(30):
        directory = model / f"d{level}"
        directory.mkdir()
        (directory / "left").symlink_to(f"../d{level + 1}")
        (directory / "right").symlink_to(f"../d{level + 1}")
    (model / "d30").mkdir()
    begin = time.monotonic()
    assert ("tree-too-large", None) in check(model).errors
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("target", ["nowhere", "loop", "config.json/x"])
def test_a_link_that_leads_nowhere(check, model, target):
    (model / "loop").symlink_to(target)
    report = check(model)
    assert report.errors == [("link-dangling", "loop")]
    assert target in report.text


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [_fifo, _socket])
@pytest.mark.parametrize("name", ["x", "config.json", SHARD])
def test_special_files(check, model, tmp_path, make, name, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    (model / name).unlink(missing_ok=True)
    make((model / name).relative_to(tmp_path))
    report = check(model)
    assert report.errors == [("special-file", name)]
    assert make.__name__[1:] in report.text.lower()


def test_a_link_to_a_device(check, model):
    (model / "x").symlink_to("/dev/zero")
    assert check(model).errors == [("link-escapes", "x")]
    assert check(model, root=Path("/dev")).errors == [("special-file", "x")]


@pytest.mark.parametrize(
    "replace", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir, lambda _: None]
)
def test_a_file_that_is_replaced_after_the_walk(model, replace):
    validators = validate.validators(Settings())
    tree = tree_of(model)
    assert validators[0].check(tree) == ()
    (model / "config.json").unlink()
    replace(model / "config.json")
    findings = [finding for validator in validators for finding in validator.check(tree)]
    assert [(finding.code, finding.file) for finding in findings] == [("unreadable", "config.json")]


def test_pycache_is_ignored(check, model, tmp_path):
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "x").symlink_to(tmp_path)
    assert check(model).findings == []


def test_a_fifo_named_pycache_is_not_ignored(check, model):
    os.mkfifo(model / "__pycache__")
    assert check(model).errors == [("special-file", "__pycache__")]


def test_a_link_named_pycache_is_not_ignored(check, model, tmp_path):
    (model / "__pycache__").symlink_to(tmp_path)
    assert check(model).errors == [("link-escapes", "__pycache__")]


def test_names_that_are_no_text(check, model):
    name = os.fsdecode(b"\xff\n\x1b[31m.json")
    (model / name).write_text("")
    assert check(model).errors == [("empty-file", r"\udcff\n\x1b[31m.json")]


@pytest.mark.parametrize("make", [lambda _: None, Path.touch])
def test_a_directory_that_is_not_there(tmp_path, make):
    make(tmp_path / "model")
    tree = tree_of(tmp_path / "model")
    findings = [finding for validator in validate.validators(Settings()) for finding in validator.check(tree)]
    assert [finding.code for finding in findings] == [
        "unreadable",
        "config-missing",
        "tokenizer-missing",
        "weights-missing",
    ]


def test_an_empty_directory(check, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    assert {code for code, _ in check(model).errors} == {"config-missing", "tokenizer-missing", "weights-missing"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_directory_that_cannot_be_read(check, model, monkeypatch, number):
    (model / "sub").mkdir()
    scandir = os.scandir

    def fail(path: str) -> object:
        if path == str(model / "sub"):
            raise OSError(number, os.strerror(number))
        return scandir(path)

    monkeypatch.setattr(tree.os, "scandir", fail)
    report = check(model)
    assert report.errors == [("unreadable", "sub")]
    assert os.strerror(number) in report.text


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", SHARD, "model.safetensors.index.json", "sha256sums.txt"]
)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_file_that_cannot_be_read(check, tmp_path, monkeypatch, name, number):
    model = make_model(tmp_path / "model", sums=True)
    os_open = os.open

    def fail(path: str, *args: int) -> int:
        if path == str(model / name):
            raise OSError(number, os.strerror(number))
        return os_open(path, *args)

    monkeypatch.setattr(reading.os, "open", fail)
    report = check(model)
    assert set(report.errors) == {("unreadable", name)}
    assert os.strerror(number) in report.text
