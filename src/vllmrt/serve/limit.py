"""The context length that a model was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

# vllm/transformers_utils/model_arch_config_convertor.py, derive_max_model_len_and_key: the smallest counts.
_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_LARGEST = 4 << 20


def model_limit(model: Path) -> int | None:
    """Return the tokens of a sequence that a model's own configuration allows.

    Read from ``config.json``, for a multimodal model from its ``text_config``, or from Mistral's ``params.json``.
    Scaled position embeddings may allow more; what is returned is always safe.

    Args:
        model: the model's directory.

    Returns:
        Tokens, or None where the model does not say. Never raises: whether the file is sound is for validators.
    """
    for name in ("config.json", "params.json"):
        config = _read(model / name)
        if config is not None:
            return _smallest(config.get("text_config")) or _smallest(config)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST), type=dict[str, Any])
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None


def _smallest(config: object) -> int | None:
    if not isinstance(config, dict):
        return None
    values = (config.get(key) for key in _KEYS)
    return min((value for value in values if type(value) is int and value > 0), default=None)
