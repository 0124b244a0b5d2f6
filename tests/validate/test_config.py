from __future__ import annotations

import pytest

from vllmrt.testing.models import write_json

DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def test_no_config(check, model):
    (model / "config.json").unlink()
    assert check(model).errors == [("config-missing", "config.json")]


def test_a_config_elsewhere_does_not_count(check, model):
    (model / "sub").mkdir()
    (model / "config.json").rename(model / "sub" / "config.json")
    assert check(model).errors == [("config-missing", "config.json")]


def test_a_directory_of_that_name_does_not_count(check, model):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert check(model).errors == [("config-missing", "config.json")]


def test_the_params_of_mistral_stand_in(check, model):
    (model / "config.json").rename(model / "params.json")
    assert check(model).findings == []


BROKEN = {
    "cut": b'{"model_type": "llama"',
    "array": b"[]",
    "string": b'"llama"',
    "null": b"null",
    "text": b"<!DOCTYPE html>",
    "zeros": b"\0" * 100,
    "not utf-8": b'{"a": "\xff"}',
    "bom": b"\xef\xbb\xbf{}",
    "trailing": b"{} {}",
    "deep": DEEP,
    "deep and cut": DEEP[:150_000],
    "long integer": b'{"a": ' + b"9" * 5000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["config.json", "params.json", "generation_config.json"])
def test_no_object(check, model, name, content):
    (model / name).write_bytes(content)
    report = check(model)
    assert report.errors == [("config-invalid", name)]
    assert "JSON" in report.text


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b' {"a": [0.0, Infinity], "b": NaN}\n',
        '{"ü": "€"}'.encode(),
        b'{"a": 99999999999999999999999, "b": 1e999}',
    ],
)
def test_what_transformers_reads_is_an_object(check, model, content):
    (model / "config.json").write_bytes(content)
    assert check(model).findings == []


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "some_other.json", "tokenizer_config.json"])
def test_empty(check, model, name):
    (model / name).write_bytes(b"")
    assert check(model).errors == [("empty-file", name)]


@pytest.mark.parametrize("name", ["__init__.py", ".gitattributes", "README.md", "sub/notes.json"])
def test_what_may_be_empty(check, model, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"")
    assert check(model).findings == []


def test_json_of_somebody_else_may_be_anything(check, model):
    write_json(model / "results.json", [1, 2, 3])
    (model / "log.json").write_text("{}\n{}\n")
    assert check(model).findings == []


def test_a_config_of_gigabytes_is_not_read(check, model, monkeypatch):
    monkeypatch.setattr("vllmrt.validate.reading.os.pread", None)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (model / name).unlink()
    with (model / "config.json").open("wb") as file:
        file.truncate(1 << 27)
        file.write(b"{")
        file.truncate((1 << 27) + 1)
    (model / "tokenizer.model").write_text("x")
    for shard in model.glob("model*"):
        shard.unlink()
    (model / "model.gguf").write_text("GGUF")
    report = check(model)
    assert report.errors == [("file-too-large", "config.json")]
    assert "134,217,729" in report.text
