"""Writes tiny model directories, whole ones and spoilt ones: a few KB, by hand, without any library of the field."""

from __future__ import annotations

import hashlib
import json
import struct
from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

from vllmrt.types import Candidate, ModelRequest, ModelTree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HIDDEN = 32
VOCABULARY = 64
INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]


def make_model(
    path: Path, *, shards: int = 2, layers: int = 2, hidden: int = HIDDEN, tokenizer: bool = True, sums: bool = False
) -> Path:
    """Write a Llama-like model in bfloat16 and return `path`.

    One shard is ``model.safetensors`` without an index, as transformers saves it; more are numbered and have one.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config(layers=layers, hidden=hidden))
    write_json(path / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    if tokenizer:
        write_tokenizer(path)
    write_weights(path, shapes(layers=layers, hidden=hidden), shards=shards)
    if sums:
        write_sums(path)
    return path


def config(*, layers: int = 2, hidden: int = HIDDEN) -> dict[str, Any]:
    """Return its ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": hidden,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def shapes(*, layers: int = 2, hidden: int = HIDDEN) -> Shapes:
    """Return its tensors."""
    names: Shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        names |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        names |= {f"{prefix}mlp.{name}_proj.weight": (2 * hidden, hidden) for name in ("gate", "up")}
        names |= {f"{prefix}mlp.down_proj.weight": (hidden, 2 * hidden)}
        names |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return names | {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def shard_name(number: int, total: int, *, prefix: str = "model", suffix: str = ".safetensors") -> str:
    """Return what transformers calls one shard of several."""
    return f"{prefix}-{number:05}-of-{total:05}{suffix}"


def write_weights(path: Path, tensors: Shapes, *, shards: int, prefix: str = "model") -> None:
    """Write the tensors, and an index where there are several shards."""
    if shards == 1:
        write_safetensors(path / f"{prefix}.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(1, shards + 1):
        shard = shard_name(number, shards, prefix=prefix)
        part = {name: tensors[name] for name in names[number - 1 :: shards]}
        write_safetensors(path / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    size = sum(2 * prod(shape) for shape in tensors.values())
    write_json(path / f"{prefix}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def header_of(tensors: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the header of bfloat16 tensors that lie one behind the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    return header


def write_safetensors(path: Path, tensors: Mapping[str, Sequence[int]]) -> None:
    """Write tensors of small numbers; no two stretches of them are alike, as a wrong offset would be missed else."""
    numbers = sum(prod(shape) for shape in tensors.values())
    data = bytearray(b"\x00\x3c" * numbers)
    data[::2] = Random(numbers).randbytes(numbers)  # noqa: S311 - only to be different
    write_raw_safetensors(path, header_of(tensors), bytes(data))


def write_raw_safetensors(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> None:
    """Write a file with any header: bytes as they are, anything else as JSON; `length` is what the file claims."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    path.write_bytes(struct.pack("<Q", len(blob) if length is None else length) + blob + data)


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of single characters."""
    path.mkdir(parents=True, exist_ok=True)
    words = ["<s>", "</s>", "<unk>", *(chr(code) for code in range(ord("!"), ord("!") + VOCABULARY - 3))]
    model = {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "<unk>"}
    write_json(path / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(path / "tokenizer_config.json", settings)


def write_sums(path: Path) -> None:
    """Write ``sha256sums.txt`` over every file that is there, as sha256sum(1) does."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "sha256sums.txt")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path).as_posix()}" for file in files]
    (path / "sha256sums.txt").write_text("\n".join([*lines, ""]))


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def corrupt(file: Path, *, cut: int = 0, flip: int = -1) -> Path:
    """Spoil a file and return it.

    Args:
        file: of a model.
        cut: bytes to take off its end; its length stays where that is 0.
        flip: where nothing is cut, the byte whose lowest bit is turned.
    """
    blob = bytearray(file.read_bytes())
    if cut:
        del blob[-cut:]
    else:
        blob[flip] ^= 1
    file.write_bytes(blob)
    return file


def tree_of(path: Path, *, root: Path | None = None, unchanged: bool = False) -> ModelTree:
    """Return a directory as a validator is given it."""
    candidate = Candidate(str(path), path=path, root=root)
    return ModelTree(path, request=ModelRequest("org/name"), candidate=candidate, unchanged=unchanged)


def fingerprint(path: Path) -> dict[str, tuple[object, ...]]:
    """Return what every entry below `path` is, holds and when it changed, to show that nothing was modified."""
    return {str(entry.relative_to(path)): _state(entry) for entry in sorted([path, *path.rglob("*")])}


def _state(entry: Path) -> tuple[object, ...]:
    status = entry.lstat()
    state = (status.st_mode, status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if entry.is_symlink():
        return (*state, str(entry.readlink()))
    return (*state, entry.read_bytes()) if entry.is_file() else state
