"""The last step: decide what is executed, then become it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from vllmrt.errors import ServeRefused
from vllmrt.serve.argv import build_argv
from vllmrt.serve.config import config_keys, default_keys, ensure_config
from vllmrt.serve.cpu import VARIABLE, kv_cache_space
from vllmrt.serve.engine import engine_flags, find_engine, interpreter
from vllmrt.serve.environ import child_environment, exposure_warnings
from vllmrt.serve.known import check_keys, flag_names, needs_flags, overridden
from vllmrt.serve.limit import model_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllmrt.settings import Settings

# Python ignores these at its start (Python/pylifecycle.c), and what is ignored stays so across exec.
_CHANGED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ")


class LaunchPlan(NamedTuple):
    """What `launch` executes.

    Attributes:
        argv: the command line, the executable first.
        environ: the whole environment of the server; it holds the API key.
        warnings: what the user should know, a line each.
    """

    argv: list[str]
    environ: dict[str, str]
    warnings: list[str]

    def __repr__(self) -> str:
        """Leave the environment out: it holds secrets."""
        return f"LaunchPlan(argv={self.argv!r}, warnings={self.warnings!r})"


def plan_launch(  # noqa: PLR0913 - one argument for each thing that an earlier stage has decided
    model: Path,
    settings: Settings,
    *,
    model_id: str,
    explicit: frozenset[str],
    extra: Sequence[str],
    environ: Mapping[str, str],
    dry_run: bool = False,
) -> LaunchPlan:
    """Decide how vLLM is started, and write its default config if there is none.

    Args:
        model: the validated directory.
        settings: everything else.
        model_id: the name in the API where `Settings.served_model_name` is unset.
        explicit: fields of `settings` that something other than a default set.
        extra: what the user wrote after ``--``.
        environ: the environment that vllmrt was started in.
        dry_run: True writes and starts nothing.

    Raises:
        ServeRefused: no engine, an argument or a config that it would not take, or an address that is too exposed.
    """
    exposed = exposure_warnings(settings)
    engine = find_engine(settings, environ)
    config = ensure_config(settings, dry_run=dry_run)
    argv, dropped = build_argv(
        engine,
        model,
        config,
        settings,
        model_limit=model_limit(model),
        served_model_name=settings.served_model_name or model_id,
        explicit=explicit,
        extra=extra,
    )
    child = child_environment(environ, settings)
    keys = default_keys() if dry_run and not config.exists() else config_keys(config)
    warnings = [*exposed, *dropped, *overridden(keys, where=config.name)]
    space = kv_cache_space(engine, child, keys, extra)
    if space is not None:
        child[VARIABLE] = space
        warnings.append(f"this vLLM runs on the CPU: its KV cache gets {space} GiB; {VARIABLE} says otherwise")
    if needs_flags(keys, extra):
        flags = engine_flags(engine, settings.cache, child, dry_run=dry_run)
        warnings += _check(keys, extra, flags, config.name)
    return LaunchPlan(argv, child, warnings)


def check(plan: LaunchPlan) -> None:
    """Refuse what `launch` would refuse, as far as that can be known before.

    Raises:
        ServeRefused: the engine's interpreter does not exist, or the directory for metrics cannot be made.
    """
    engine = Path(plan.argv[0])
    script = interpreter(engine)
    with suppress(PermissionError):
        if script is not None and not Path(script).exists():
            raise refusal(engine, FileNotFoundError(errno.ENOENT, ""))
    _make_metrics_directory(plan.environ)


def launch(plan: LaunchPlan) -> NoReturn:
    """Become the server: same process id, so that signals, PID 1 and supervisors work as if vLLM had been started.

    Raises:
        ServeRefused: the executable, or the directory for metrics, cannot be used; this process goes on as before.
    """
    check(plan)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    restore = _reset_signals()
    try:
        os.execve(plan.argv[0], plan.argv, plan.environ)  # noqa: S606 - no shell is what we want
    except OSError as error:
        restore()
        raise refusal(Path(plan.argv[0]), error) from None


def refusal(engine: Path, error: OSError) -> ServeRefused:
    """Return the error for an engine that cannot be executed."""
    message, hint = f"{engine} cannot be executed: {os.strerror(error.errno or 0)}", None
    if error.errno == errno.ENOENT and engine.exists():
        message = f"{engine} cannot be executed: its interpreter {interpreter(engine)} does not exist"
        hint = "its virtual environment was moved or removed: install vLLM again, or set VLLMRT_VLLM"
    elif error.errno == errno.ENOENT:
        message, hint = f"{engine} is gone", "install vLLM again, or set VLLMRT_VLLM"
    elif error.errno == errno.EACCES:
        hint = f"chmod +x {engine}; and its filesystem must not be mounted noexec"
    elif error.errno == errno.E2BIG:
        message = "the command line and the environment are together too large for this system"
        hint = "shorten the extra arguments, or move them into the engine's config"
    elif error.errno == errno.ENOEXEC:
        message = f"{engine} is neither a program for this machine nor a script that begins with #!"
        hint = "set VLLMRT_VLLM to the vllm of an environment for this machine"
    return ServeRefused(message, hint=hint)


def _check(keys: Sequence[str], extra: Sequence[str], flags: frozenset[str] | None, config: str) -> list[str]:
    if flags is None:
        return [f"{config} and the extra arguments were not checked: the flags of this vLLM are not known"]
    check_keys(keys, flags, where=config)
    check_keys(flag_names(extra), flags, where="extra arguments")
    return []


def _make_metrics_directory(environ: Mapping[str, str]) -> None:
    name = environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not name:
        return
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServeRefused(
            f"PROMETHEUS_MULTIPROC_DIR={name} cannot be made: {error.strerror}",
            hint="unset it: vLLM then uses a directory of its own",
        ) from None


def _reset_signals() -> Callable[[], None]:
    """Give signals their default action and unblock them; return what takes that back."""
    numbers = [getattr(signal, name) for name in _CHANGED_BY_PYTHON if hasattr(signal, name)]
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, action in zip(numbers, before, strict=True):
            signal.signal(number, action)

    return restore
