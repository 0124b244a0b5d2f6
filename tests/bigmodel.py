"""A sharded Llama of about 135 million parameters with random weights: large enough for many ranges, real to vLLM."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, LAYERS, INTERMEDIATE, HEADS = 768, 16, 2304, 12
# bfloat16 around 0.01: the low byte is mantissa, the high byte sign and exponent
_HIGH = bytes(0x3C if value < 128 else 0xBC for value in range(256))


def make_big_model(path: Path, tiny: Path, *, shards: int = 4) -> Path:
    """Write the model with the tokenizer of the model that comes with vllmrt."""
    path.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny / name, path / name)
    config = json.loads((tiny / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
    }
    (path / "config.json").write_text(json.dumps(config))
    shapes = _shapes(config["vocab_size"])
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        mine = names[number::shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        _write(path / file, {name: shapes[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    square, up = (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": square for part in "qkvo"}
        shapes |= {f"{prefix}mlp.{part}_proj.weight": up for part in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (position, position + 2 * count)}
        position += 2 * count
    text = json.dumps(header).encode()
    data = bytearray(position)
    data[0::2] = os.urandom(position // 2)
    data[1::2] = os.urandom(position // 2).translate(_HIGH)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
