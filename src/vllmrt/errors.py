"""Every error that a user can meet, with its exit code and its remedy.

``str(error)`` says what is wrong; ``error.hint`` says what to do about it. One handler, in `vllmrt.cli`, prints both
and turns ``exit_code`` into the status of the process. Anything that is not a `VllmrtError` is a bug.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ExitCode(IntEnum):
    """The contract of DESIGN.md §6; the meaning of a code never changes."""

    OK = 0
    GENERAL = 1
    PORT_FOREIGN = 2
    PORT_OTHER_USER = 3
    PORT_UNATTRIBUTABLE = 4
    PORT_STILL_BOUND = 5
    MODEL_NOT_FOUND = 10
    MODEL_REJECTED = 11
    LOCK_TIMEOUT = 12
    NO_SPACE = 13
    INTEGRITY = 14
    SERVE_REFUSED = 20
    SERVER_FAILED = 21
    USAGE = 64
    BUG = 70


class VllmrtError(Exception):
    """What every expected failure derives from.

    Args:
        message: what is wrong, in one line, without secrets.
        hint: what the user can do, or None where there is nothing to do.
    """

    exit_code = ExitCode.GENERAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(VllmrtError):
    """A setting, flag, settings file or model name that cannot be used."""


class PluginError(VllmrtError):
    """A plugin that cannot be loaded, or that breaks the contract of `vllmrt.hookspecs`.

    The message names the distribution and its version.
    """


class ClassifierError(PluginError):
    """A process classifier that broke: whose the port is cannot be said, and nothing is stopped."""


class SourceError(VllmrtError):
    """For source plugins to raise: this source cannot give the model, and asking again will not help."""


class TransientSourceError(SourceError):
    """For source plugins to raise: this source failed, but the same call may go through later.

    Args:
        message: as in `VllmrtError`.
        hint: as in `VllmrtError`.
        retry_after: seconds to wait before the next try, where the store said so (RFC 9110 §10.2.3).
    """

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class ChangedError(TransientSourceError):
    """For source plugins to raise: the object is not the one that was listed any more; it is listed again once."""


class ResolveError(VllmrtError):
    """No source gave a model that may be served.

    Args:
        message: as in `VllmrtError`.
        hint: as in `VllmrtError`.
        attempts: what each source came to: ``source``, ``outcome``, ``reason`` and ``hint``.
    """

    def __init__(self, message: str, *, hint: str | None = None, attempts: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts


class ModelNotFound(ResolveError):
    """Every source skipped the model or failed."""

    exit_code = ExitCode.MODEL_NOT_FOUND


class ModelRejected(ResolveError):
    """The model was found, but no place where it lies passed validation."""

    exit_code = ExitCode.MODEL_REJECTED


class LockTimeout(VllmrtError):
    """Another process holds the lock of this model.

    Args:
        message: as in `VllmrtError`.
        hint: as in `VllmrtError`.
        pid: who holds it, where that is a process of this machine.
    """

    exit_code = ExitCode.LOCK_TIMEOUT

    def __init__(self, message: str, *, hint: str | None = None, pid: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.pid = pid


class NoSpace(VllmrtError):
    """There is not enough space on the disk."""

    exit_code = ExitCode.NO_SPACE


class IntegrityError(VllmrtError):
    """Bytes differ from the digest that their source publishes."""

    exit_code = ExitCode.INTEGRITY


class PreflightError(VllmrtError):
    """The port or the GPUs are not fit to serve.

    Args:
        message: as in `VllmrtError`.
        hint: as in `VllmrtError`.
        facts: what the contract's JSON object says besides: the port, the processes that are in the way, the GPUs.
    """

    def __init__(self, message: str, *, hint: str | None = None, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.facts = dict(facts or {})


class GpuUnhealthy(PreflightError):
    """A GPU that the engine would use is missing, too hot, too full or too busy."""


class PortForeign(PreflightError):
    """What listens is not vLLM, or is protected."""

    exit_code = ExitCode.PORT_FOREIGN


class PortOtherUser(PreflightError):
    """What listens is a vLLM of another user."""

    exit_code = ExitCode.PORT_OTHER_USER


class PortUnattributable(PreflightError):
    """It cannot be said who listens, or what that is."""

    exit_code = ExitCode.PORT_UNATTRIBUTABLE


class PortStillBound(PreflightError):
    """The port is not free, although what held it was stopped."""

    exit_code = ExitCode.PORT_STILL_BOUND


class ServeRefused(VllmrtError):
    """The launch was refused: no engine, a setting that is missing, an env file or a flag that cannot be trusted."""

    exit_code = ExitCode.SERVE_REFUSED


class ServerFailed(VllmrtError):
    """A server that was started in the background ended before it was ready, or was not ready in time.

    Args:
        message: as in `VllmrtError`; the last lines of its log too.
        hint: as in `VllmrtError`.
        facts: ``pid``, ``log``, ``lines`` (the last ones), and ``status``: its own, 128+n for signal n; None while it
            runs.
    """

    exit_code = ExitCode.SERVER_FAILED

    def __init__(self, message: str, *, hint: str | None = None, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.facts = dict(facts or {})


class UsageError(VllmrtError):
    """A command line that cannot be understood."""

    exit_code = ExitCode.USAGE
