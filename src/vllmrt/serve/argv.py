"""The command line of ``vllm serve``: pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllmrt.errors import ServeRefused
from vllmrt.serve.spelling import is_flag, stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from vllmrt.settings import Settings

API_KEY = "--api-key"

# What to use instead of a flag that vllmrt writes itself.
OWNED = {
    "--config": "set VLLM_CONFIG_FILE",
    "--host": "set VLLM_HOST",
    "--port": "set VLLM_PORT",
    "--tensor-parallel-size": "set VLLM_TENSOR_PARALLEL_SIZE",
    "--pipeline-parallel-size": "set VLLM_PIPELINE_PARALLEL_SIZE",
    "--kv-cache-dtype": "set VLLM_KV_CACHE_DTYPE",
    "--max-model-len": "set VLLM_MAX_MODEL_LEN",
    "--max-num-batched-tokens": "set VLLM_MAX_NUM_BATCHED_TOKENS",
    "--served-model-name": "set VLLM_SERVED_MODEL_NAME",
    "--enable-prefix-caching": "set VLLM_PREFIX_CACHING",
    "--no-enable-prefix-caching": "write 'enable-prefix-caching: false' into the engine's config",
    "--model": "name the model to vllmrt",
}
_SWITCHES = frozenset({"--enable-prefix-caching", "--no-enable-prefix-caching"})
_SHORT = re.compile(r"-(?:(?P<tensor>tp?)|pp?)\d*")


def build_argv(  # noqa: PLR0913 - one argument for each place that a part of the command line comes from
    engine: Path,
    model: Path,
    config: Path,
    settings: Settings,
    *,
    model_limit: int | None,
    served_model_name: str,
    explicit: frozenset[str],
    extra: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Build the command line, in the order of the reference's table (chapter "Command construction").

    Args:
        engine: the vllm executable.
        model: the validated directory.
        config: the engine's YAML file.
        settings: where the values come from.
        model_limit: tokens of a sequence that the model allows; None where it does not say.
        served_model_name: the model's name in the API.
        explicit: fields of `settings` that the user set. A `max_model_len` that is not among them gives way to
            `model_limit`.
        extra: what the user wrote after ``--``, for vLLM.

    Returns:
        The command line, and a warning for every extra flag that was dropped because vllmrt writes it itself.

    Raises:
        ServeRefused: an extra argument that cannot be passed on; with `Settings.strict_flags` also one that collides.
    """
    kept, warnings = passed_on(extra, strict=settings.strict_flags)
    length = settings.max_model_len
    if model_limit is not None and model_limit < length:
        if "max_model_len" in explicit:
            warnings.append(f"--max-model-len {length} is more than the model's own {model_limit}: vLLM may refuse it")
        else:
            length = model_limit
    values = {
        "--config": config,
        "--host": settings.host,
        "--port": settings.port,
        "--tensor-parallel-size": settings.tensor_parallel_size,
        "--pipeline-parallel-size": settings.pipeline_parallel_size,
        "--kv-cache-dtype": settings.kv_cache_dtype,
        "--max-model-len": length,
        "--max-num-batched-tokens": settings.max_num_batched_tokens,
        "--served-model-name": served_model_name,
    }
    pairs = [text for flag, value in values.items() for text in (flag, str(value))]
    switches = ["--enable-prefix-caching"] if settings.prefix_caching else []
    return [str(engine), "serve", str(model), *pairs, *switches, *kept], warnings


def passed_on(extra: Sequence[str], *, strict: bool) -> tuple[list[str], list[str]]:
    """Return the extra arguments that vLLM gets, and a warning for each that is dropped.

    Args:
        extra: what the user wrote after ``--``.
        strict: True refuses what would be dropped.

    Raises:
        ServeRefused: as `build_argv`.
    """
    _refuse_at_sight(extra)
    kept: list[str] = []
    warnings: list[str] = []
    flag, takes_value = None, False
    for token in extra:
        if is_flag(token):
            name = token.partition("=")[0]
            flag = owner(stem(token))
            takes_value = "=" not in token and flag not in _SWITCHES
            if flag:
                warnings.append(_collision(name, flag, strict=strict))
        elif not takes_value:
            raise ServeRefused(
                f"extra argument {token[:80]!a} belongs to no flag: vLLM would take it for another model",
                hint="write only flags of vllm serve, with their values, after --",
            )
        if not flag:
            kept.append(token)
    return kept, warnings


def format_command(argv: Iterable[str]) -> str:
    """Return a command line as a shell would have to be given it, for ``--print-cmd``."""
    import shlex

    return shlex.join(argv)


def owner(name: str) -> str | None:
    """Return the flag of `OWNED` that vLLM may read a name as, None where there is none.

    argparse takes an abbreviation for the flag that it begins. One that fits several flags is an error in vLLM, so that
    nothing is lost when it counts as ours.

    Args:
        name: a flag as `vllmrt.serve.spelling.stem` returns it.
    """
    if not name.startswith("--"):
        short = _SHORT.fullmatch(name)
        return short and ("--tensor-parallel-size" if short["tensor"] else "--pipeline-parallel-size")
    return name if name in OWNED else next((flag for flag in OWNED if flag.startswith(name)), None)


def _refuse_at_sight(extra: Sequence[str]) -> None:
    names = [stem(token) for token in extra if is_flag(token)]
    if "--" in names:
        raise ServeRefused(
            "a second -- in the extra arguments: vLLM would take what follows for models",
            hint="write -- once, and only flags of vllm serve after it",
        )
    if any(name.startswith("--") and API_KEY.startswith(name) for name in names):
        raise ServeRefused(
            f"{API_KEY} in the extra arguments would show the key to everyone who can list processes",
            hint="set VLLM_API_KEY: it reaches vLLM through the environment",
        )


def _collision(name: str, flag: str, *, strict: bool) -> str:
    meaning = f"extra argument {name}" if stem(name) == flag else f"extra argument {name} (read as {flag})"
    if strict:
        raise ServeRefused(f"{meaning} collides with a flag that vllmrt sets", hint=f"{OWNED[flag]} instead")
    return f"{meaning} is dropped, because vllmrt sets that flag: {OWNED[flag]} instead"
