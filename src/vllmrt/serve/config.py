"""The engine's config file: the default that is written once, and the keys of the one that is there."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vllmrt import paths
from vllmrt.errors import ServeRefused

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.settings import Settings

NAME = "vllm-config.yaml"
DEFAULT = b"""\
# Flags of 'vllm serve', written by vllmrt on its first run. Edit it; it is never written again.
# Keys are long flags without the leading dashes. 'vllm serve --help=all' lists them.
#
# Not here, because vllmrt gives them on the command line, which wins over this file: host, port,
# tensor-parallel-size, pipeline-parallel-size, kv-cache-dtype, max-model-len, max-num-batched-tokens,
# served-model-name. Set VLLM_HOST, VLLM_PORT, VLLM_MAX_MODEL_LEN and so on.

# Share of each GPU's memory for weights and KV cache. Lower it when memory runs out; 0.92 to 0.95 suits large cards.
gpu-memory-utilization: 0.85

# Log level of the HTTP server: debug, info, warning, error.
uvicorn-log-level: warning

# Three keys that the config of older setups had, and why they are not here:
#   disable-log-requests   gone since vLLM 0.11, which ends at once when it finds it. Requests are not logged unless
#                          enable-log-requests is true.
#   quantization           vLLM reads it from the model; a fixed one fails for every other model.
#   dtype                  the default 'auto' takes what the model was made with; float16 ruins bfloat16 models.
"""
_DEFAULT_KEYS = ("gpu-memory-utilization", "uvicorn-log-level")
_LARGEST = 1 << 20


def ensure_config(settings: Settings, *, dry_run: bool = False) -> Path:
    """Return the engine's config file, and write the default one if there is none ("Config file resolution").

    The rule is the reference's. A file that exists is never written.

    Args:
        settings: `config_file`, else the cache directory.
        dry_run: True writes nothing; the path is then that of a file which may not exist.

    Raises:
        ServeRefused: the file that is named is missing, cannot be read or has a name that vLLM does not take; or the
            default cannot be written.
    """
    path = settings.config_file or settings.cache / NAME
    if path.suffix not in {".yaml", ".yml"}:
        raise ServeRefused(
            f"VLLM_CONFIG_FILE: vLLM takes no config called {path.name!a}", hint="name it *.yaml or *.yml"
        )
    if settings.config_file is None and not os.path.lexists(path):
        if dry_run:
            return path
        _write_default(path)
    if not path.is_file():
        fault = "is not a file" if os.path.lexists(path) else "does not exist"
        raise ServeRefused(f"the engine's config {path} {fault}", hint="correct VLLM_CONFIG_FILE, or unset it")
    if not os.access(path, os.R_OK):
        raise ServeRefused(f"the engine's config {path} cannot be read: permission denied", hint=f"chmod u+r {path}")
    return path


def config_keys(path: Path) -> list[str]:
    """Return the keys of a config file that vLLM turns into flags.

    A key whose value is ``false`` or an empty list is none: vLLM 0.32 passes it over if it does not know it.

    Raises:
        ServeRefused: the file is too large, or is not what vLLM reads: YAML with one mapping at the top.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ServeRefused(f"the engine's config {path} cannot be read: {error.strerror}") from None
    # The usual case, and it spares the YAML parser.
    if data == DEFAULT:
        return list(_DEFAULT_KEYS)
    if len(data) > _LARGEST:
        raise ServeRefused(f"the engine's config {path} has more than 1 MiB", hint="correct VLLM_CONFIG_FILE")
    return _keys(path, _parse(path, data))


def default_keys() -> list[str]:
    """Return the keys of the default config."""
    return list(_DEFAULT_KEYS)


def _write_default(path: Path) -> None:
    # Not the process id: containers that share a cache all have the same one.
    fresh = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        paths.write_atomic(fresh, DEFAULT, mode=0o644)
        try:
            # Unlike a rename, a link never replaces what another process, or the user, wrote meanwhile.
            with suppress(FileExistsError):
                os.link(fresh, path)
        except OSError:
            fresh.replace(path)
        fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ServeRefused(
            f"the engine's config {path} cannot be written: {error.strerror}",
            hint="set FLOX_ENV_CACHE to a directory that you can write to, or VLLM_CONFIG_FILE to a file",
        ) from None


def _parse(path: Path, data: bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ServeRefused(f"the engine's config {path} is not YAML{line}", hint="correct it, or delete it") from None


def _keys(path: Path, content: Any) -> list[str]:
    if content is None:
        raise ServeRefused(
            f"the engine's config {path} has no key, and vLLM fails on that", hint="delete it, or add a key"
        )
    if not isinstance(content, dict):
        raise ServeRefused(
            f"the engine's config {path} is not a mapping at the top", hint="write lines such as 'dtype: auto'"
        )
    strange = [key for key in content if not isinstance(key, str)]
    if strange:
        raise ServeRefused(
            f"the engine's config {path} has the key {strange[0]!a}, which is not a text", hint="put it in quotes"
        )
    return [key for key, value in content.items() if value is not False and value != []]
