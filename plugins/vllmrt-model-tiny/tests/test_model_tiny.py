"""The files of the model, as an engine and a validator will meet them. Standard library only."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import tomllib
from math import prod
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MODEL = PROJECT / "src" / "vllmrt_model_tiny"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BYTES_AT_MOST = 6_000_000


def read(name: str) -> Any:
    return json.loads((MODEL / name).read_text(encoding="utf-8"))


def header(shard: str) -> tuple[dict[str, Any], int]:
    """The tensors that a shard names, and where its data begins."""
    with (MODEL / shard).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    return tensors, 8 + length


def test_all_files_together_are_small():
    files = [path for path in MODEL.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= BYTES_AT_MOST


def test_every_file_is_a_regular_one_that_anyone_may_read():
    for path in MODEL.iterdir():
        assert not path.is_symlink(), path
        if path.is_file():
            assert path.stat().st_mode & 0o444 == 0o444, path


def test_the_index_names_two_shards_and_no_other_lies_there():
    assert tuple(sorted(set(read("model.safetensors.index.json")["weight_map"].values()))) == SHARDS
    assert tuple(sorted(path.name for path in MODEL.glob("*.safetensors"))) == SHARDS


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_is_exactly_as_long_as_its_header_says(shard):
    tensors, start = header(shard)
    assert (MODEL / shard).stat().st_size == start + max(tensor["data_offsets"][1] for tensor in tensors.values())


@pytest.mark.parametrize("shard", SHARDS)
def test_tensors_are_bfloat16_and_lie_end_to_end(shard):
    at = 0
    for tensor in sorted(header(shard)[0].values(), key=lambda tensor: tensor["data_offsets"]):
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "BF16"
        assert (begin, end - begin) == (at, 2 * prod(tensor["shape"]))
        at = end


def test_index_and_headers_agree():
    index = read("model.safetensors.index.json")
    found = {name: shard for shard in SHARDS for name in header(shard)[0]}
    assert index["weight_map"] == found
    sizes = (tensor["data_offsets"] for shard in SHARDS for tensor in header(shard)[0].values())
    assert index["metadata"]["total_size"] == sum(end - begin for begin, end in sizes)


def test_config_is_a_llama_whose_shapes_the_weights_have():
    config = read("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 512
    assert config["head_dim"] >= 32
    tensors = header(SHARDS[0])[0] | header(SHARDS[1])[0]
    assert tensors["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    assert layers == {str(number) for number in range(config["num_hidden_layers"])}


def test_the_tokenizer_covers_the_vocabulary_and_its_special_tokens():
    tokenizer, config, names = read("tokenizer.json"), read("config.json"), read("tokenizer_config.json")
    assert tokenizer["model"]["type"] == "BPE"
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(config["vocab_size"]))
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    for role in ("bos", "eos", "pad"):
        assert special[names[f"{role}_token"]] == config[f"{role}_token_id"]
    assert {"<|system|>", "<|user|>", "<|assistant|>"} <= set(special)


def test_the_chat_template_knows_every_role():
    template = read("tokenizer_config.json")["chat_template"]
    for part in ("<|system|>", "<|user|>", "<|assistant|>", "add_generation_prompt", "eos_token"):
        assert part in template


def test_generation_ends_where_the_tokenizer_says():
    generation, config = read("generation_config.json"), read("config.json")
    assert generation["eos_token_id"] == config["eos_token_id"]
    assert generation["bos_token_id"] == config["bos_token_id"]


def test_the_licences_are_there():
    assert "Apache License" in (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (MODEL / "LICENSE-PSF.txt").read_text(encoding="utf-8")
    assert "pydoc_data.topics" in (MODEL / "NOTICE").read_text(encoding="utf-8")


def test_the_project_declares_the_model_and_every_licence_and_needs_nothing():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["vllmrt.models"] == {"vllmrt/tiny": "vllmrt_model_tiny"}
    assert project["dependencies"] == []
    assert all((PROJECT / name).is_file() for name in project["license-files"])


def test_an_installed_entry_point_leads_to_the_model():
    from importlib.metadata import entry_points

    found = entry_points(group="vllmrt.models", name="vllmrt/tiny")
    if not found:
        pytest.skip("vllmrt-model-tiny is not installed here")
    (point,) = found
    spec = importlib.util.find_spec(point.value)
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent
    for name in (*SHARDS, "model.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (directory / name).read_bytes() == (MODEL / name).read_bytes()


@pytest.fixture
def corpus(monkeypatch):
    spec = importlib.util.spec_from_file_location("vllmrt_model_tiny_corpus", PROJECT / "corpus.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


TOPIC = """The "del" statement
*******************

   del_stmt ::= "del" target_list

Deletion is recursively defined very similar to the way *assignment* is
defined. Rather than spelling it out in full details, here are some hints [1].

object.__len__(self)

   Called to implement the built-in function "len()".  Should return the
   length of the object.

   >>> len([1, 2, 3]) is what you would call here
"""


def test_the_corpus_keeps_prose_without_its_markup(corpus):
    ((first, second),) = corpus.build({"del": TOPIC}).topics
    assert first.startswith("Deletion is recursively defined very similar to the way assignment is defined.")
    assert first.endswith("some hints.")
    assert second.startswith("Called to implement the built-in function len().")


def test_headings_and_signatures_become_questions(corpus):
    *_, heading, signature = corpus.build({"del": TOPIC}).answers
    assert "What is the del statement?" in heading.questions
    assert "What does __len__() do?" in signature.questions
    assert signature.text.startswith("Called to implement")


def test_a_paragraph_counts_once(corpus):
    assert len(corpus.build({"a": TOPIC, "b": TOPIC}).topics) == 1
