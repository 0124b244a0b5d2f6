from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllmrt.settings import Settings
from vllmrt.testing import fingerprint, make_model, tree_of
from vllmrt.testing.models import INDEX, shard_name, write_raw_safetensors
from vllmrt.validate import validators

if TYPE_CHECKING:
    from vllmrt.types import Finding

SHARD = shard_name(1, 2)
NAMES = ["config.json", "tokenizer.json", INDEX, SHARD, "sha256sums.txt"]
INTEGERS = st.integers() | st.sampled_from([0, 1, 4, -1, 1 << 60, 1 << 63, 1 << 64])
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
TENSOR = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F4", "X"]), "shape": st.lists(INTEGERS), "data_offsets": st.lists(INTEGERS)}
)
HEADER = st.dictionaries(st.text() | st.just("__metadata__"), TENSOR | JSON)
INDEXES = st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(), st.text() | st.sampled_from(NAMES)) | JSON})
FUZZ = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def spoilt():
    with tempfile.TemporaryDirectory() as directory:
        yield make_model(Path(directory) / "model")


def findings_of(model: Path) -> list[Finding]:
    before = fingerprint(model)
    tree = tree_of(model)
    findings = [finding for validator in validators(Settings()) for finding in validator.check(tree)]
    assert fingerprint(model) == before
    assert all(f"{finding.file}{finding.message}".isprintable() for finding in findings)
    return findings


@FUZZ
@given(name=st.sampled_from(NAMES), content=st.binary())
@example(name=SHARD, content=b"\xff" * 8)
@example(name=INDEX, content=b"\xff" * 8)
def test_arbitrary_bytes_are_a_finding(spoilt, name, content):
    original = (spoilt / name).read_bytes() if (spoilt / name).exists() else None
    (spoilt / name).write_bytes(content)
    try:
        findings = findings_of(spoilt)
    finally:
        if original is None:
            (spoilt / name).unlink()
        else:
            (spoilt / name).write_bytes(original)
    assert name in {finding.file for finding in findings} or content.strip().startswith((b"{", b"#"))


@FUZZ
@given(header=st.binary() | HEADER, data=st.binary(max_size=16), length=st.none() | st.integers(0, (1 << 64) - 1))
def test_arbitrary_headers_never_raise(spoilt, header, data, length):
    original = (spoilt / SHARD).read_bytes()
    write_raw_safetensors(spoilt / SHARD, header, data, length=length)
    try:
        assert SHARD in {finding.file for finding in findings_of(spoilt)}
    finally:
        (spoilt / SHARD).write_bytes(original)


@FUZZ
@given(index=INDEXES)
def test_arbitrary_indexes_never_raise(spoilt, index):
    original = (spoilt / INDEX).read_bytes()
    (spoilt / INDEX).write_text(json.dumps(index))
    try:
        assert findings_of(spoilt)
    finally:
        (spoilt / INDEX).write_bytes(original)
