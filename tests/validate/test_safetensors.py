from __future__ import annotations

import json
import resource
import struct

import pytest
from modelkit import edit_header, edit_json

from vllmrt.testing import corrupt, make_model
from vllmrt.testing.models import INDEX, header_of, shard_name, write_raw_safetensors, write_safetensors

SHARD = shard_name(2, 2)
ONE = "model.safetensors"


@pytest.fixture
def single(tmp_path):
    return make_model(tmp_path / "model", shards=1)


@pytest.mark.parametrize("by", [1, 2, 1000])
def test_cut_in_its_tensors(check, model, by):
    size = (model / SHARD).stat().st_size
    corrupt(model / SHARD, cut=by)
    report = check(model)
    assert report.errors == [("safetensors-truncated", SHARD)]
    assert f"{size - by:,} of {size:,} bytes" in report.text


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100])
def test_cut_in_its_header(check, model, size):
    (model / SHARD).write_bytes((model / SHARD).read_bytes()[:size])
    assert check(model).errors == [("safetensors-truncated", SHARD)]


def test_too_short_for_the_length_of_a_header(check, model):
    (model / SHARD).write_bytes(b"\xff" * 7)
    assert check(model).errors == [("safetensors-truncated", SHARD)]


def test_a_clone_without_its_large_files(check, model):
    (model / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert check(model).errors == [("git-lfs-pointer", SHARD)]


def test_empty(check, model):
    (model / SHARD).write_bytes(b"")
    assert check(model).errors == [("empty-file", SHARD)]


def test_bytes_behind_the_end(check, model):
    with (model / SHARD).open("ab") as file:
        file.write(b"\0\0\0")
    report = check(model)
    assert report.errors == [("safetensors-overlong", SHARD)]
    assert "3 more" in report.text


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 1 << 40, 100_000_001])
def test_a_header_too_large_to_be_true(check, model, length):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_raw_safetensors(model / SHARD, b"{}", length=length)
    report = check(model)
    assert report.errors == [("header-too-large", SHARD)]
    assert f"{length:,}" in report.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_the_largest_header_that_is_allowed_has_to_be_there(check, model):
    write_raw_safetensors(model / SHARD, b"{}", length=100_000_000)
    assert check(model).errors == [("safetensors-truncated", SHARD)]


HEADERS = {
    "cut": b'{"a": {"dtype": "F32"',
    "zeros": b"\0" * 16,
    "array": b"[]",
    "number": b"1",
    "not utf-8": b'{"\xff": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "deep": b'{"a":' + b"[" * 100_000,
    "no tensor": b'{"a": 1}',
    "nothing in it": b'{"a": {}}',
    "no dtype": b'{"a": {"shape":[0],"data_offsets":[0,0]}}',
    "no shape": b'{"a": {"dtype":"U8","data_offsets":[0,0]}}',
    "no offsets": b'{"a": {"dtype":"U8","shape":[0]}}',
    "one offset": b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0]}}',
    "float offset": b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0.5]}}',
    "negative offset": b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[-1,0]}}',
    "negative shape": b'{"a": {"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}',
    "NaN offset": b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,NaN]}}',
    "huge offset": b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
    "boolean shape": b'{"a": {"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "a thousand dimensions": b'{"a": {"dtype":"U8","shape":[' + b"9," * 1000 + b'9],"data_offsets":[0,0]}}',
    "metadata of numbers": b'{"__metadata__": {"a": 1}}',
    "metadata is text": b'{"__metadata__": "pt"}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none(check, single, header):
    write_raw_safetensors(single / ONE, header)
    assert check(single).errors == [("header-invalid", ONE)]


def tensor(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor("U8", [4], 4, 0)},
        {"a": tensor("U8", [8], 0, 8), "b": tensor("F3_OF_TOMORROW", [4], 8, 4)},
        {"a": tensor("U8", [4], 4, 8)},
        {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [3], 5, 8)},
        {"a": tensor("U8", [5], 0, 5), "b": tensor("U8", [4], 4, 8)},
        {"a": tensor("U8", [8], 0, 8), "b": tensor("U8", [8], 0, 8)},
        {"a": tensor("F32", [4], 0, 8)},
        {"a": tensor("BF16", [], 0, 8)},
        {"a": tensor("U8", [0], 0, 8)},
        {"a": tensor("F4", [15], 0, 8)},
        {"a": tensor("U8", [1 << 62] * 64, 0, 8)},
    ],
)
def test_tensors_that_cannot_lie_so(check, single, header):
    write_raw_safetensors(single / ONE, json.dumps(header).encode(), b"\0" * 8)
    report = check(single)
    assert report.errors == [("tensor-invalid", ONE)]
    assert 'tensor "' in report.text


@pytest.mark.parametrize(
    ("dtype", "count"),
    [("BOOL", 8), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8),
     ("F8_E5M2FNUZ", 8), ("I16", 4), ("U16", 4), ("F16", 4), ("BF16", 4), ("I32", 2), ("U32", 2), ("F32", 2),
     ("I64", 1), ("U64", 1), ("F64", 1), ("C64", 1), ("F4", 16)],
)  # fmt: skip
def test_every_dtype(check, single, dtype, count):
    write_raw_safetensors(single / ONE, {"a": tensor(dtype, [count], 0, 8)}, b"\0" * 8)
    assert check(single).findings == []
    write_raw_safetensors(single / ONE, {"a": tensor(dtype, [count + 1], 0, 8)}, b"\0" * 8)
    assert check(single).errors == [("tensor-invalid", ONE)]


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_six_bits(check, single, dtype):
    write_raw_safetensors(single / ONE, {"a": tensor(dtype, [4, 2], 0, 6)}, b"\0" * 6)
    assert check(single).findings == []


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({}, 0),
        ({"__metadata__": {}}, 0),
        ({"__metadata__": None}, 0),
        ({"a": tensor("F32", [], 0, 4)}, 4),
        ({"a": tensor("F32", [0, 7], 0, 0), "b": tensor("F32", [1], 0, 4), "c": tensor("F32", [0], 4, 4)}, 4),
        ({"b": tensor("U8", [4], 4, 8), "a": tensor("U8", [4], 0, 4)}, 8),
        ({"a": tensor("F3_OF_TOMORROW", [7], 0, 5)}, 5),
        ({"a": tensor("U8", [1], 0, 1) | {"extra": [1, {}]}}, 1),
        ({"__metadata__": {"shape": "x", "dtype": "y", "data_offsets": "z"}}, 0),
    ],
)
def test_odd_but_right(check, single, header, size):
    write_raw_safetensors(single / ONE, header, b"\0" * size)
    assert check(single).findings == []


def test_a_header_longer_than_the_first_read(check, single):
    tensors = {f"{'x' * 60}.{number}": (2,) for number in range(5000)}
    write_safetensors(single / ONE, tensors)
    assert len(json.dumps(header_of(tensors))) > 500_000
    assert check(single).findings == []
    corrupt(single / ONE, cut=1)
    assert check(single).errors == [("safetensors-truncated", ONE)]


@pytest.mark.parametrize("length", [(64 << 10) - 8, 64 << 10, (64 << 10) + 8, 128 << 10])
def test_a_header_as_long_as_the_first_read(check, single, length):
    blob = json.dumps({"a": tensor("U8", [1], 0, 1)}).encode().ljust(length)
    (single / ONE).write_bytes(struct.pack("<Q", length) + blob + b"\0")
    assert check(single).findings == []


def test_stray_files_of_the_directory_are_looked_at(check, model):
    write_safetensors(model / "extra.safetensors", {"a": (2,)})
    assert check(model).findings == []
    corrupt(model / "extra.safetensors", cut=1)
    assert check(model).errors == [("safetensors-truncated", "extra.safetensors")]


def test_files_below_are_looked_at_when_the_index_names_them(check, model):
    (model / "sub").mkdir()
    (model / SHARD).rename(model / "sub" / SHARD)
    edit_json(model / INDEX, lambda index: index["weight_map"].update(
        {name: f"sub/{SHARD}" for name, shard in index["weight_map"].items() if shard == SHARD}))  # fmt: skip
    write_safetensors(model / "sub" / "other.safetensors", {"a": (2,)})
    corrupt(model / "sub" / "other.safetensors", cut=1)
    assert check(model).findings == []
    corrupt(model / "sub" / SHARD, cut=1)
    assert check(model).errors == [("safetensors-truncated", f"sub/{SHARD}")]


def test_the_index_places_a_tensor_that_the_shard_lacks(check, model):
    edit_json(model / INDEX, lambda index: index["weight_map"].update({"phantom.weight": SHARD}))
    report = check(model)
    assert report.errors == [("tensor-missing", SHARD)]
    assert "phantom.weight" in report.text
    assert INDEX in report.text


def test_a_renamed_tensor_shows_on_both_sides(check, model):
    edit_header(model / SHARD, lambda header: header.update({"renamed": header.pop(list(header)[-1])}))
    report = check(model)
    assert report.errors == [("tensor-missing", SHARD)]
    assert report.warnings == [("tensor-unlisted", SHARD)]


def test_a_tensor_that_the_index_does_not_know(check, model):
    shard = json.loads((model / INDEX).read_text())["weight_map"]["lm_head.weight"]
    edit_json(model / INDEX, lambda index: index["weight_map"].pop("lm_head.weight"))
    report = check(model)
    assert report.errors == []
    assert report.warnings == [("tensor-unlisted", shard)]
    assert "lm_head.weight" in report.text


def test_two_shards_that_swapped_their_names(check, model):
    first = shard_name(1, 2)
    (model / first).rename(model / "x")
    (model / SHARD).rename(model / first)
    (model / "x").rename(model / SHARD)
    assert check(model).errors == [("tensor-missing", first), ("tensor-missing", SHARD)]
