from __future__ import annotations

import json
import time

import pytest
from modelkit import edit_json

from vllmrt.testing import make_model
from vllmrt.testing.models import INDEX, shapes, shard_name, write_json, write_weights

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
DEEP = b'{"weight_map": {"a": ' + b"[" * 200_000


def put(directory, *names, content="x"):
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content)


@pytest.fixture
def bare(tmp_path):
    model = make_model(tmp_path / "model", shards=1)
    (model / "model.safetensors").unlink()
    return model


def index_of(*names):
    return {"weight_map": {f"tensor.{number}": name for number, name in enumerate(names)}}


@pytest.mark.parametrize("shard", [FIRST, SECOND])
def test_a_shard_of_the_index_is_missing(check, model, shard):
    (model / shard).unlink()
    report = check(model)
    assert report.errors == [("shard-missing", shard)]
    assert INDEX in report.text


def test_a_directory_is_no_shard(check, model):
    (model / FIRST).unlink()
    (model / FIRST).mkdir()
    assert check(model).errors == [("shard-missing", FIRST)]


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_complete(check, tmp_path, shards):
    assert check(make_model(tmp_path / "model", shards=shards)).findings == []


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../other/model.safetensors",
        "sub/../../model.safetensors",
        "..",
        ".",
        "",
        "sub//model.safetensors",
        "sub/",
        "./model.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "model\0.safetensors",
    ],
)
def test_the_weight_map_points_outside(check, model, name):
    edit_json(model / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    report = check(model)
    assert report.errors == [("weight-map-escapes", INDEX)]
    assert json.dumps(name)[1:-1].replace("\\u0000", "\\x00").replace("\\\\", "\\") in report.text


@pytest.mark.parametrize("name", ["config.json", "optimizer.bin", "model", "sub/notes.txt"])
def test_the_weight_map_names_what_is_no_weights(check, model, name):
    put(model, "optimizer.bin", "model", "sub/notes.txt")
    edit_json(model / INDEX, lambda index: index["weight_map"].update({"phantom.weight": name}))
    report = check(model)
    assert report.errors == [("weight-map-invalid", INDEX)]
    assert name in report.text


def test_a_file_that_exists_outside_is_refused_all_the_same(check, model):
    (model.parent / "lm_head.safetensors").write_text("x")
    edit_json(model / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": "../lm_head.safetensors"}))
    assert check(model).errors == [("weight-map-escapes", INDEX)]


def test_a_shard_in_a_directory_below(check, model):
    (model / "sub").mkdir()
    (model / FIRST).rename(model / "sub" / FIRST)
    index = json.loads((model / INDEX).read_text())
    index["weight_map"] = {k: f"sub/{v}" if v == FIRST else v for k, v in index["weight_map"].items()}
    write_json(model / INDEX, index)
    assert check(model).findings == []


@pytest.mark.parametrize("name", [INDEX, "consolidated.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty-file"),
        (b'{"weight_map": {"a": "b"', "index-invalid"),
        (b"\0" * 10, "index-invalid"),
        (b'{"weight_map": {"a\xff": "b"}}', "index-invalid"),
        (DEEP.replace(b"weight_map", b"x"), "index-invalid"),
        (DEEP, "weight-map-invalid"),
        (b"{}", "weight-map-invalid"),
        (b"[]", "weight-map-invalid"),
        (b'{"weight_map": null}', "weight-map-invalid"),
        (b'{"weight_map": []}', "weight-map-invalid"),
        (b'{"weight_map": {}}', "weight-map-invalid"),
        (b'{"weight_map": {"a": 1}}', "weight-map-invalid"),
        (b'{"weight_map": {"a": ["b"]}}', "weight-map-invalid"),
        (b'{"weight_map": {"a": ' + b"9" * 5000 + b"}}", "weight-map-invalid"),
    ],
)
def test_an_index_that_cannot_be_used(check, model, name, content, code):
    (model / name).write_bytes(content)
    assert check(model).errors == [(code, name)]


def test_many_missing_shards_are_counted(check, model):
    write_json(model / INDEX, index_of(*(f"{n}.safetensors" for n in range(50_000))))
    report = check(model)
    assert len(report.findings) == 21
    assert report.errors[0] == ("shard-missing", "0.safetensors")
    assert report.findings[-1].code == "more-findings"
    assert "49,980" in report.findings[-1].message


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("model", ".safetensors"),
        ("pytorch_model", ".bin"),
        ("Q4_K-M", ".gguf"),
        ("a-00001-of-00002", ".pt"),
        ("x", ".pth"),
    ],
)
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_numbered_shards_without_an_index(check, bare, prefix, suffix, gone):
    names = [shard_name(number, 3, prefix=prefix, suffix=suffix) for number in (1, 2, 3)]
    write_weights(bare, shapes(), shards=3)
    (bare / INDEX).unlink()
    for number, name in enumerate(names, 1):
        (bare / shard_name(number, 3)).rename(bare / name)
    assert check(bare).errors == []
    (bare / names[gone - 1]).unlink()
    report = check(bare)
    assert report.errors == [("shard-missing", names[gone - 1])]
    assert "1 of 3" in report.text


def test_the_numbers_may_be_wider_than_the_total(check, bare):
    put(bare, "model-00001-of-000163.gguf")
    report = check(bare)
    assert report.errors == [("shard-missing", "model-00002-of-000163.gguf")]
    assert "162 of 163" in report.text


def test_a_hostile_total(check, bare):
    put(
        bare,
        *(f"{letter}-00001-of-99999.gguf" for letter in "abcdefgh"),
        "z-00007-of-00000.gguf",
        "y-00009-of-00001.gguf",
    )
    begin = time.monotonic()
    report = check(bare)
    assert time.monotonic() - begin < 5
    assert len(report.errors) == 9
    assert "99,998 of 99,999" in report.text
    assert "a-00002-of-99999.gguf, a-00003-of-99999.gguf, a-00004-of-99999.gguf and 99,995 more" in report.text
    assert ("shard-missing", "y-00001-of-00001.gguf") in report.errors


@pytest.mark.parametrize("name", ["model-٠٠٠٠١-of-00002.gguf", "model-00001-of-٠٠٠٠٢.gguf"])  # noqa: RUF001 - the point
def test_digits_of_other_scripts_are_no_numbers(check, bare, name):
    put(bare, name)
    assert check(bare).findings == []


def test_numbers_below_the_directory_do_not_matter(check, bare):
    put(bare, "model.gguf", "original/x-00001-of-00002.gguf")
    assert check(bare).findings == []


def test_without_any_index_the_numbers_of_every_kind_matter(check, tmp_path):
    model = make_model(tmp_path / "model", shards=1)
    put(model, "pytorch_model-00001-of-00002.bin")
    assert check(model).errors == [("shard-missing", "pytorch_model-00002-of-00002.bin")]


def test_beside_an_index_the_numbers_of_what_is_not_loaded_do_not_matter(check, model):
    put(model, "pytorch_model-00001-of-00002.bin")
    assert check(model).findings == []


def test_an_index_makes_the_numbers_of_its_kind_irrelevant(check, model):
    (model / SECOND).rename(model / "model-00001-of-00009.safetensors")
    text = (model / INDEX).read_text().replace(SECOND, "model-00001-of-00009.safetensors")
    (model / INDEX).write_text(text)
    assert check(model).findings == []


def test_numbers_of_the_kind_that_is_loaded_matter_beside_the_index_of_another(check, model):
    (model / INDEX).unlink()
    (model / SECOND).unlink()
    write_json(model / "pytorch_model.bin.index.json", index_of("pytorch_model.bin"))
    put(model, "pytorch_model.bin")
    assert check(model).errors == [("shard-missing", SECOND)]


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt", "consolidated.00.pth", "model-q4.gguf"])
def test_one_file_is_enough(check, bare, name):
    write_weights(bare, shapes(), shards=1)
    (bare / "model.safetensors").rename(bare / name)
    assert check(bare).errors == []


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_0.pth",
             "model.h5", "model.safetensors.part", "sub/model.safetensors", ".hidden.bin", "bin"]
)  # fmt: skip
def test_what_is_no_weights(check, bare, name):
    put(bare, name)
    report = check(bare)
    assert report.errors == [("weights-missing", None)]
    assert report.warnings == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.gguf", "model.safetensors"])
def test_empty_weights(check, bare, name):
    put(bare, name, content="")
    assert check(bare).errors == [("empty-file", name)]


def test_an_empty_shard_below(check, bare):
    put(bare, "sub/a.bin", content="")
    write_json(bare / "pytorch_model.bin.index.json", index_of("sub/a.bin"))
    assert ("empty-file", "sub/a.bin") in check(bare).errors


def test_pickles_warn(check, bare):
    put(bare, "pytorch_model.bin", "training_args.bin")
    report = check(bare)
    assert report.warnings == [("pickle-weights", "pytorch_model.bin")]
    assert report.errors == []


def test_pickles_are_refused(check, bare):
    put(bare, *(shard_name(n, 2, prefix="pytorch_model", suffix=".bin") for n in (1, 2)))
    report = check(bare, safe_weights_only=True)
    assert report.errors == [("pickle-weights", "pytorch_model-00001-of-00002.bin")]
    assert "VLLMRT_SAFE_WEIGHTS_ONLY" in report.text
    assert "1 more" in report.text


@pytest.mark.parametrize("name", ["a.pt", "a.pth"])
def test_every_kind_of_pickle(check, bare, name):
    put(bare, name)
    assert check(bare).warnings == [("pickle-weights", name)]


def test_pickles_that_nobody_opens(check, model):
    put(model, "pytorch_model.bin", "a.pt", "b.pth")
    assert check(model, safe_weights_only=True).findings == []


def test_a_quantised_file_is_no_pickle(check, bare):
    put(bare, "model.gguf", "training_args.bin")
    assert check(bare, safe_weights_only=True).findings == []


def test_mistral_loads_consolidated(check, bare):
    write_weights(bare, shapes(), shards=2, prefix="consolidated")
    assert check(bare).findings == []


def test_an_index_of_weights_left_out_in_favour_of_better_ones(check, model):
    write_json(model / "pytorch_model.bin.index.json", index_of("pytorch_model-00001-of-00001.bin"))
    report = check(model)
    assert report.errors == []
    assert report.warnings == [("index-unused", "pytorch_model.bin.index.json")]


def test_the_index_of_hugging_face_beside_consolidated_weights(check, model):
    (model / FIRST).unlink()
    (model / SECOND).unlink()
    write_weights(model, shapes(), shards=1, prefix="consolidated")
    report = check(model)
    assert report.errors == []
    assert report.warnings == [("index-unused", INDEX)]


def test_an_index_of_worse_weights_of_which_some_are_there(check, model):
    write_json(model / "pytorch_model.bin.index.json", index_of("a.bin", "b.bin"))
    put(model, "a.bin")
    assert check(model).errors == [("shard-missing", "b.bin")]


def test_a_broken_index_of_better_weights(check, model):
    (model / FIRST).unlink()
    (model / SECOND).unlink()
    put(model, "pytorch_model.bin")
    assert check(model).errors == [("shard-missing", FIRST), ("shard-missing", SECOND)]


def test_an_index_alone(check, bare):
    write_json(bare / INDEX, index_of("a.safetensors"))
    assert check(bare).errors == [("shard-missing", "a.safetensors")]
