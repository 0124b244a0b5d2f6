from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pluggy
import pytest
from modelkit import edit_json

import vllmrt
from vllmrt import builtin, hookspecs, validate
from vllmrt.settings import Settings
from vllmrt.testing import corrupt, make_model, tree_of
from vllmrt.testing.models import (
    INDEX,
    config,
    shard_name,
    write_json,
    write_raw_safetensors,
    write_safetensors,
    write_tokenizer,
)
from vllmrt.types import Severity
from vllmrt.validate import tree as trees

NAMES = ["containment", "config", "tokenizer", "shards", "safetensors", "checksums"]
SHARD = shard_name(1, 2)


def outside(model: Path) -> None:
    (model.parent / "elsewhere").write_text("{}")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(model.parent / "elsewhere")


BAD_INPUT = {
    "truncated shard": (lambda m: corrupt(m / SHARD, cut=1), "safetensors-truncated", SHARD),
    "shard missing from the directory": (lambda m: (m / SHARD).unlink(), "shard-missing", SHARD),
    "weight_map pointing outside": (
        lambda m: edit_json(m / INDEX, lambda i: i["weight_map"].update(x="../x.safetensors")),
        "weight-map-escapes",
        INDEX,
    ),
    "unparseable index": (lambda m: (m / INDEX).write_text("{"), "index-invalid", INDEX),
    "unparseable header": (lambda m: write_raw_safetensors(m / SHARD, b"{"), "header-invalid", SHARD),
    "header that claims 2^60 bytes": (
        lambda m: write_raw_safetensors(m / SHARD, b"{}", length=1 << 60),
        "header-too-large",
        SHARD,
    ),
    "zero-byte file": (lambda m: (m / SHARD).write_bytes(b""), "empty-file", SHARD),
    "no tokenizer": (
        lambda m: [(m / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "tokenizer-missing",
        None,
    ),
    "no config": (lambda m: (m / "config.json").unlink(), "config-missing", "config.json"),
    "symbolic link out of the tree": (outside, "link-escapes", "config.json"),
}


@pytest.mark.parametrize(("spoil", "code", "file"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_error_that_names_file_and_fault(check, model, spoil, code, file):
    spoil(model)
    assert [(f.severity, f.code, f.file) for f in check(model).findings] == [(Severity.ERROR, code, file)]


def test_the_hook_offers_them():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin)
    manager.check_pending()
    [offered] = manager.hook.vllmrt_validators(settings=Settings())
    assert [validator.name for validator in offered] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_tree_passes_without_a_look(tmp_path, name, monkeypatch):
    monkeypatch.setattr(validate.Surveyor, "__call__", None)
    [validator] = [v for v in validate.validators(Settings()) if v.name == name]
    assert validator.check(tree_of(tmp_path / "nothing there", unchanged=True)) == ()


def test_a_warm_start_imports_nothing_of_it(tmp_path):
    program = f"""
import sys
from pathlib import Path
from vllmrt import builtin
from vllmrt.settings import Settings
from vllmrt.types import Candidate, ModelRequest, ModelTree
tree = ModelTree(Path({str(tmp_path)!r}), request=ModelRequest("a/b"), candidate=Candidate("x"), unchanged=True)
assert [tuple(v.check(tree)) for v in builtin.vllmrt_validators(Settings())] == [()] * 6
print(*sorted(m for m in sys.modules if m.startswith("vllmrt.validate.") or m in ("hashlib", "json", "msgspec.json.x")))
"""
    source = str(Path(vllmrt.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.stdout.split() == []


def test_a_tree_is_walked_once(model, monkeypatch):
    walks = []
    survey = trees.survey
    monkeypatch.setattr(trees, "survey", lambda tree: walks.append(tree) or survey(tree))
    validators = validate.validators(Settings())
    first, second = tree_of(model), tree_of(model)
    for tree in (first, second):
        for validator in validators:
            validator.check(tree)
    assert [id(tree) for tree in walks] == [id(first), id(second)]


def test_a_new_tree_sees_new_files(model):
    validators = validate.validators(Settings())
    assert [v.check(tree_of(model)) for v in validators] == [()] * 6
    (model / "config.json").unlink()
    assert [f.code for v in validators for f in v.check(tree_of(model))] == ["config-missing"]


def test_errors_come_first_and_the_rest_is_counted(check, model):
    for number in range(30):
        write_safetensors(model / f"{number}.safetensors", {"a": (2,), "b": (2,)})
        edit_json(model / INDEX, lambda i, n=number: i["weight_map"].update({f"a{n}": f"{n}.safetensors"}))
    report = check(model)
    assert len(report.findings) == 21
    assert {f.severity for f in report.findings} == {Severity.ERROR}
    assert "40 more" in report.findings[-1].message


def test_findings_fit_into_json(check, model):
    (model / os.fsdecode(b"\xff\xfe.json")).write_bytes(b"")
    (model / os.fsdecode(b"\xff.safetensors")).write_bytes(b"")
    assert msgspec.json.encode(check(model).findings)


def test_a_thousand_shards(check, tmp_path):
    weight_map = {}
    write_json(tmp_path / "config.json", config())
    write_tokenizer(tmp_path)
    for number in range(1, 1001):
        tensors = {f"model.layers.{number}.mlp.experts.{expert}.down_proj.weight": (2, 2) for expert in range(30)}
        write_safetensors(tmp_path / shard_name(number, 1000), tensors)
        weight_map |= dict.fromkeys(tensors, shard_name(number, 1000))
    write_json(tmp_path / INDEX, {"weight_map": weight_map})
    assert check(tmp_path).findings == []
    begin = time.perf_counter()
    tree = tree_of(tmp_path)
    assert [v.check(tree) for v in validate.validators(Settings())] == [()] * 6
    assert time.perf_counter() - begin < 1


def test_the_kit_writes_the_same_model_every_time(tmp_path):
    first, second = (make_model(tmp_path / name, sums=True) for name in "ab")
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in second.iterdir()}
    assert sum(f.stat().st_size for f in first.iterdir()) < 150_000
