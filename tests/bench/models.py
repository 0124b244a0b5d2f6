"""Models that pass validation, of any size and number of shards; what is in the shards is not looked at."""

from __future__ import annotations

import json
import os
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

BUCKET, PREFIX = "models", "published"
"""Where the servers have the models."""
_BLOCK = 16 << 20


def make(path: Path, shards: int, size: int, *, sparse: bool = False) -> int:
    """Write a model, unless it is there, and return its size in bytes.

    Args:
        path: its directory.
        shards: how many safetensors files, with one tensor in each.
        size: bytes of each.
        sparse: holes instead of bytes at random.
    """
    if not path.exists():
        path.mkdir(parents=True)
        tiny = Path(next(iter(find_spec("vllmrt_model_tiny").submodule_search_locations)))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(tiny / name, path / name)
        names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        block = b"" if sparse else os.urandom(min(size, _BLOCK))
        for number, name in enumerate(names):
            _shard(path / name, f"weight.{number}", size, block)
        index = {"metadata": {}, "weight_map": {f"weight.{number}": name for number, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(file.stat().st_size for file in path.iterdir())


def _shard(path: Path, tensor: str, size: int, block: bytes) -> None:
    # The length of the header does not depend on the numbers in it: it is filled up with blanks, as the format allows.
    count = size - 8 - 256
    header = json.dumps({tensor: {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).ljust(256).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        while block and file.tell() < size:
            file.write(block[: size - file.tell()])
        file.truncate(size)
