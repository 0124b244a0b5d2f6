"""What is fetched of the listings that the Hub is full of, by their names."""

from __future__ import annotations

import pytest

from vllmrt.types import RemoteFile
from vllmrt.validate.selection import select

ALWAYS = ["config.json", "generation_config.json", "tokenizer.json", "README.md", "modeling_x.py", "assets/chart.png"]
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
INDEX = "model.safetensors.index.json"

LISTINGS: list[tuple[str, list[str], list[str], set[str] | None]] = [
    ("one file", ["model.safetensors"], [], None),
    ("shards", [INDEX, *SHARDS], [], set(SHARDS)),
    ("an index that leaves some out", [INDEX, *SHARDS], ["extra.safetensors"], set(SHARDS)),
    (
        "as llama is published",
        [INDEX, *SHARDS],
        ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"],
        set(SHARDS),
    ),
    (
        "as mistral is published",
        ["consolidated.safetensors", "params.json", "tekken.json"],
        [INDEX, *SHARDS],
        set(SHARDS),
    ),
    (
        "as gpt-2 is published",
        ["model.safetensors"],
        [
            *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "64.tflite"),
            *("onnx/decoder_model.onnx", "onnx/config.json", "coreml/text/model.mlmodel"),
        ],
        None,
    ),
    ("as gpt-oss is published", [INDEX, *SHARDS], ["metal/model.bin", "original/model.safetensors"], set(SHARDS)),
    ("in half precision too", ["model.safetensors"], ["model.fp16.safetensors"], None),
    ("shards in half precision too", [*SHARDS], [SHARDS[0].replace("model-", "model.fp16-")], None),
    (
        "as whisper is published",
        ["model.safetensors"],
        [SHARDS[0].replace("model-", "model.fp32-"), SHARDS[1].replace("model-", "model.fp32-"), "pytorch_model.bin"],
        None,
    ),
    ("half precision alone", ["model.fp16.safetensors"], [], None),
    (
        "pickles alone, after a training",
        ["pytorch_model.bin", "trainer_state.json"],
        ["training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"],
        None,
    ),
    ("an index of the pickles beside", ["model.safetensors"], ["pytorch_model.bin.index.json"], None),
    ("GGUF alone", ["model-Q4_K_M.gguf", "model-Q8_0.gguf"], [], None),
    ("GGUF beside", ["model.safetensors"], ["model-Q8_0.gguf"], None),
    ("a part of the model below", ["model.safetensors", "vision/model.safetensors"], ["vision/model.bin"], None),
    ("what Python leaves behind", ["model.safetensors"], ["__pycache__/modeling_x.cpython-311.pyc"], None),
    ("another framework alone", ["model.onnx", "onnx/model.onnx"], [], None),
    ("another framework, in its own directory alone", ["onnx/model.onnx", "original/model.pth"], [], None),
    ("no weights", [], [], None),
]


def listing(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, size=1, version="") for name in names]


@pytest.mark.parametrize(
    ("wanted", "left_out", "weight_map"), [case[1:] for case in LISTINGS], ids=[c[0] for c in LISTINGS]
)
def test_what_vllm_loads(wanted: list[str], left_out: list[str], weight_map: set[str] | None) -> None:
    chosen = select(listing(*ALWAYS, *left_out, *wanted), weight_map=weight_map)
    assert {file.path for file in chosen.left_out} == set(left_out)
    assert {file.path for file in chosen.wanted} == {*ALWAYS, *wanted}


def test_the_order_is_that_of_the_listing() -> None:
    names = ["z.json", "model.bin", "a.json", "model.safetensors"]
    chosen = select(listing(*names))
    assert [file.path for file in chosen.wanted] == ["z.json", "a.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("include", "exclude", "wanted"),
    [
        (["*"], [], {"config.json", "original/x.pth", "model.safetensors", "model.bin"}),
        (["*.bin", "config.json"], [], {"config.json", "model.bin"}),
        (["original/*"], [], {"original/x.pth"}),
        ([], ["*.safetensors"], {"config.json"}),
        (["*"], ["original/*", "*.bin"], {"config.json", "model.safetensors"}),
        (["*.BIN"], [], set()),
        (["nothing"], ["config.json"], set()),
    ],
)
def test_patterns(include: list[str], exclude: list[str], wanted: set[str]) -> None:
    files = listing("config.json", "original/x.pth", "model.safetensors", "model.bin")
    chosen = select(files, include=include, exclude=exclude)
    assert {file.path for file in chosen.wanted} == wanted
    assert {file.path for file in chosen.left_out} == {file.path for file in files} - wanted
