from __future__ import annotations

import hashlib
import os
import threading

import pytest

from vllmrt.testing import corrupt, make_model
from vllmrt.testing.models import write_sums
from vllmrt.validate import checksums, reading

LIST = "sha256sums.txt"
SHARD = "model-00001-of-00002.safetensors"
DIGEST = "0" * 64


@pytest.fixture
def summed(tmp_path):
    return make_model(tmp_path / "model", sums=True)


def test_all_match(check, summed):
    assert check(summed).findings == []


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_one_bit(check, summed, name):
    content = (summed / name).read_bytes()
    corrupt(summed / name, flip=-1 if name == SHARD else content.index(b"llama"))
    report = check(summed)
    assert report.errors == [("checksum-mismatch", name)]
    assert hashlib.sha256(content).hexdigest() in report.text


def test_a_file_below(check, summed):
    (summed / "sub").mkdir()
    (summed / "sub" / "notes").write_text("a")
    write_sums(summed)
    assert check(summed).findings == []
    (summed / "sub" / "notes").write_text("b")
    assert check(summed).errors == [("checksum-mismatch", "sub/notes")]


def listed_too(summed, *names):
    with (summed / LIST).open("a") as file:
        file.writelines(f"{DIGEST}  {name}\n" for name in names)


@pytest.mark.parametrize(
    "name",
    ["params.json", "special_tokens_map.json", "README.md", "sub/gone", "tokenizer"],
)
def test_missing(check, summed, name):
    (summed / "tokenizer").mkdir()
    listed_too(summed, name)
    assert check(summed).errors == [("checksum-missing", name)]


def test_a_list_of_the_whole_repository(check, summed):
    """Of which not everything was fetched: other weights, other layouts, variants."""
    others = ["pytorch_model.bin", "original/consolidated.00.pth", "model.onnx", "another.safetensors", "tf_model.h5"]
    listed_too(summed, *others, SHARD.replace("model-", "model.fp16-"))
    report = check(summed)
    assert report.errors == []
    assert report.warnings == [("checksum-unused", LIST)]
    assert "pytorch_model.bin, original/consolidated.00.pth, model.onnx and 3 more" in report.text


@pytest.mark.parametrize(
    "form", ["{d} *{n}", "{D}  {n}", "{d}  ./{n}", "{d}  ././/{n}", "# {n}\n\n{d}  {n}\r", "{d}  {n}\n{d}  {n}"]
)
def test_the_forms_that_coreutils_writes(check, summed, form):
    digest = hashlib.sha256((summed / SHARD).read_bytes()).hexdigest()
    line = form.format(d=digest, D=digest.upper(), n=SHARD)
    (summed / LIST).write_bytes(f"{line}\n".encode())
    assert check(summed).findings == []
    corrupt(summed / SHARD)
    assert check(summed).errors == [("checksum-mismatch", SHARD)]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        f"{DIGEST} config.json".encode(),
        f"{DIGEST[1:]}  config.json".encode(),
        f"{DIGEST}0  config.json".encode(),
        f"g{DIGEST[1:]}  config.json".encode(),
        f"{DIGEST}  ".encode(),
        f"  {DIGEST}  config.json".encode(),
        f"{DIGEST}\tconfig.json".encode(),
        f"\\{DIGEST}  config\\n.json".encode(),
        f"{DIGEST}  ..\\config.json".encode(),
        f"{DIGEST}  a\0b".encode(),
        f"{DIGEST}  /etc/passwd".encode(),
        f"{DIGEST}  ../model/config.json".encode(),
        f"{DIGEST}  sub/../config.json".encode(),
        f"{DIGEST}  .".encode(),
        f"{DIGEST}  sub/".encode(),
        b"\xff\xfe\x00",
    ],
)
def test_malformed(check, summed, line):
    with (summed / LIST).open("ab") as file:
        file.write(line + b"\n")
    count = (summed / LIST).read_bytes().count(b"\n")
    report = check(summed)
    assert report.errors == [("checksum-malformed", LIST)]
    assert f"line {count}" in report.text


def test_two_digests_for_one_file(check, summed):
    with (summed / LIST).open("a") as file:
        file.write(f"{DIGEST}  config.json\n")
    report = check(summed)
    assert report.errors == [("checksum-malformed", LIST)]
    assert "config.json" in report.text


@pytest.mark.parametrize(("content", "code"), [("", "empty-file"), ("\n\n", "checksum-malformed")])
def test_a_list_of_nothing(check, model, content, code):
    (model / LIST).write_text(content)
    assert check(model).errors == [(code, LIST)]


def test_names_that_are_no_text(check, summed):
    name = os.fsdecode(b"caf\xe9")
    (summed / name).write_text("a")
    with (summed / LIST).open("ab") as file:
        file.write(hashlib.sha256(b"a").hexdigest().encode() + b"  caf\xe9\n")
    assert check(summed).findings == []
    (summed / name).write_text("b")
    assert check(summed).errors == [("checksum-mismatch", r"caf\udce9")]


def test_a_list_elsewhere_is_not_ours(check, model):
    (model / "sub").mkdir()
    (model / "sub" / LIST).write_text("nonsense")
    (model / "SHA256SUMS").write_text("nonsense")
    assert check(model).findings == []


def test_hashing_can_be_stopped(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 100)
    stop = threading.Event()
    stop.set()
    finding = checksums._compare(stop, (reading.File("x", str(tmp_path / "x"), 100), DIGEST))
    assert finding is not None
    assert finding.code == "unreadable"
