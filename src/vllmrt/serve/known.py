"""Whether the installed vLLM has the flags that it is about to be given: pure functions.

For a config key or a flag that it does not have, vLLM ends with ``unrecognized arguments``, after seconds of imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.errors import ServeRefused
from vllmrt.serve.argv import API_KEY, OWNED, owner
from vllmrt.serve.spelling import accepts, is_flag, stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Keys that need no list: those of our default config, those that we pass ourselves, and two that never changed.
SETTLED = frozenset({"gpu-memory-utilization", "uvicorn-log-level", "dtype", "quantization", *(f[2:] for f in OWNED)})
_LOG_REQUESTS = "disable-log-requests"
# The reference's default config has the first two. Prefix caching is only ever switched on by us.
_SILENT = frozenset({"--host", "--port", "--enable-prefix-caching", "--no-enable-prefix-caching"})


def flag_names(extra: Sequence[str]) -> list[str]:
    """Return the long flags among extra arguments that reach vLLM and that a list of its flags can judge.

    With ``--omni`` it hands over to another program, with flags of its own.
    """
    names = [stem(token) for token in extra if token.startswith("--") and is_flag(token)]
    return [] if "--omni" in names else [name for name in names if owner(name) is None]


def needs_flags(keys: Sequence[str], extra: Sequence[str]) -> bool:
    """Tell whether there is anything that `check_keys` has to see."""
    return not SETTLED.issuperset(key.replace("_", "-") for key in keys) or bool(flag_names(extra))


def check_keys(keys: Iterable[str], flags: frozenset[str], *, where: str) -> None:
    """Refuse config keys or long flags that this vLLM does not have.

    Args:
        keys: with or without leading dashes; underscores equal dashes, and of a dotted key the first part counts.
        flags: what `vllmrt.serve.engine.engine_flags` returned.
        where: what has the keys, for the message.

    Raises:
        ServeRefused: naming every such key.
    """
    unknown = [key for key in keys if not accepts(flags, stem(_dashed(key)))]
    if not unknown:
        return
    names = ", ".join(f"{key[:80]!a}" for key in unknown)
    raise ServeRefused(f"{where}: this vLLM does not have {names}", hint=_remedy(unknown))


def overridden(keys: Iterable[str], *, where: str) -> list[str]:
    """Return a warning for every config key that has no effect, or more effect than it seems.

    The command line wins over the config, so that a key for a flag that vllmrt always writes does nothing. With
    ``api-key`` it is the other way round: vLLM takes it instead of ``VLLM_API_KEY``.
    """
    flags = [(key, owner(stem(_dashed(key)))) for key in keys]
    warnings = [
        f"{where}: {key!a} has no effect, because vllmrt sets that flag: {OWNED[flag]} instead"
        for key, flag in flags
        if flag is not None and flag not in _SILENT
    ]
    if any(stem(_dashed(key)) == API_KEY for key, _ in flags):
        warnings.append(f"{where}: vLLM takes its api-key instead of VLLM_API_KEY: keep only one")
    return warnings


def _dashed(key: str) -> str:
    return key if key.startswith("-") else f"--{key}"


def _remedy(unknown: Sequence[str]) -> str:
    if any(stem(_dashed(key)) == f"--{_LOG_REQUESTS}" for key in unknown):
        return (
            f"remove {_LOG_REQUESTS}: vLLM 0.11 dropped it, and logs no requests unless enable-log-requests is set;"
            " 'vllm serve --help=all' lists every flag"
        )
    return "remove or correct it; 'vllm serve --help=all' lists every flag"
