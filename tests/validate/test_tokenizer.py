from __future__ import annotations

import pytest

from vllmrt.testing import make_model
from vllmrt.testing.models import write_tokenizer


@pytest.fixture
def bare(tmp_path):
    return make_model(tmp_path / "model", tokenizer=False)


def put(directory, *names):
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text("{}")


def test_none(check, bare):
    report = check(bare)
    assert report.errors == [("tokenizer-missing", None)]
    assert "tokenizer_files/" in report.text


def test_none_but_not_asked_for(check, bare):
    assert check(bare, skip_tokenizer_check=True).findings == []


@pytest.mark.parametrize("directory", ["", "tokenizer", "tokenizer_files"])
@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.json"],
        ["tokenizer.model"],
        ["spiece.model"],
        ["vocab.json", "merges.txt"],
        ["vocab.txt"],
        ["tokenizer_config.json", "vocab.json"],
        ["tokenizer_config.json", "vocab.txt"],
        ["tekken.json"],
        ["tokenizer.model.v3"],
        ["tokenizer.model.v7m1"],
        ["qwen.tiktoken"],
        ["tiktoken.model"],
        ["tokenizer_config.json", "tokenization_rwkv.py"],
    ],
    ids="+".join,
)
def test_recognised(check, bare, directory, names):
    put(bare / directory, *names)
    assert check(bare).findings == []


@pytest.mark.parametrize(
    "names",
    [
        ["vocab.json"],
        ["merges.txt"],
        ["tokenizer_config.json"],
        ["tokenizer_config.json", "merges.txt"],
        ["tokenization_rwkv.py", "merges.txt"],
        ["special_tokens_map.json", "added_tokens.json"],
        ["tokenizer.bak"],
        ["my_tokenizer.json"],
        ["tokenizer.model.old"],
    ],
    ids="+".join,
)
def test_not_recognised(check, bare, names):
    put(bare, *names)
    assert check(bare).errors == [("tokenizer-missing", None)]


def test_a_pair_has_to_be_in_one_directory(check, bare):
    put(bare, "vocab.json")
    put(bare / "tokenizer", "merges.txt")
    assert check(bare).errors == [("tokenizer-missing", None)]


def test_other_directories_do_not_count(check, bare):
    put(bare / "original", "tokenizer.model", "x.tiktoken")
    (bare / "tokenizer").mkdir()
    put(bare / "tokenizer" / "deeper", "tokenizer.json")
    assert check(bare).errors == [("tokenizer-missing", None)]


@pytest.mark.parametrize("content", [b'{"version": "1.0", "mod', b"[]", b"\0" * 64, b'{"a":"\xff"}', b"{" * 300_000])
@pytest.mark.parametrize("directory", ["", "tokenizer/"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tekken.json"])
def test_json_that_is_none(check, model, directory, name, content):
    write_tokenizer(model / "tokenizer")
    (model / directory / name).write_bytes(content)
    assert check(model).errors == [("tokenizer-invalid", directory + name)]
    assert check(model, skip_tokenizer_check=True).findings == []


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "x.tiktoken", "vocab.json"]
)
@pytest.mark.parametrize("directory", ["", "tokenizer_files/"])
def test_empty(check, model, directory, name):
    write_tokenizer(model / "tokenizer_files")
    (model / directory / name).write_bytes(b"")
    assert check(model).errors == [("empty-file", directory + name)]
    assert check(model, skip_tokenizer_check=True).findings == []


def test_the_same_names_elsewhere_are_not_read(check, model):
    put(model / "original", "x")
    (model / "original" / "tokenizer.json").write_bytes(b"")
    (model / "original" / "tokenizer.model").write_bytes(b"")
    assert check(model).findings == []
