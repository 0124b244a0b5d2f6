"""The exit codes, which are a contract."""

from __future__ import annotations

import pytest

from vllmrt import errors
from vllmrt.errors import ExitCode, VllmrtError

ERRORS = {
    name: error for name, error in vars(errors).items() if isinstance(error, type) and issubclass(error, VllmrtError)
}
# DESIGN.md §6; what later stages add to it joins this table
CODES = {
    "VllmrtError": 1,
    "ConfigError": 1,
    "PluginError": 1,
    "GpuUnhealthy": 1,
    "ClassifierError": 1,
    "SourceError": 1,
    "TransientSourceError": 1,
    "ChangedError": 1,
    "ResolveError": 1,
    "ModelNotFound": 10,
    "ModelRejected": 11,
    "LockTimeout": 12,
    "NoSpace": 13,
    "IntegrityError": 14,
    "PreflightError": 1,
    "PortForeign": 2,
    "PortOtherUser": 3,
    "PortUnattributable": 4,
    "PortStillBound": 5,
    "ServeRefused": 20,
    "ServerFailed": 21,
    "UsageError": 64,
}
NUMBERS = {
    "OK": 0,
    "GENERAL": 1,
    "PORT_FOREIGN": 2,
    "PORT_OTHER_USER": 3,
    "PORT_UNATTRIBUTABLE": 4,
    "PORT_STILL_BOUND": 5,
    "MODEL_NOT_FOUND": 10,
    "MODEL_REJECTED": 11,
    "LOCK_TIMEOUT": 12,
    "NO_SPACE": 13,
    "INTEGRITY": 14,
    "SERVE_REFUSED": 20,
    "SERVER_FAILED": 21,
    "USAGE": 64,
    "BUG": 70,
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_exit_code_of_an_error(name: str) -> None:
    assert ERRORS[name].exit_code == CODES[name]
    assert isinstance(ERRORS[name].exit_code, ExitCode)


def test_the_numbers_never_change() -> None:
    assert {code.name: code.value for code in ExitCode} == NUMBERS


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_has_a_message_and_a_hint(error: type[VllmrtError]) -> None:
    one = error("what is wrong", hint="what to do")
    assert (str(one), one.message, one.hint) == ("what is wrong", "what is wrong", "what to do")
    assert error("x").hint is None
    assert error.__doc__


def test_what_a_source_may_raise() -> None:
    assert issubclass(errors.TransientSourceError, errors.SourceError)
    assert not issubclass(errors.SourceError, errors.PluginError)
    assert errors.TransientSourceError("503", retry_after=2.0).retry_after == 2.0
    assert errors.TransientSourceError("503").retry_after is None


def test_a_resolve_that_failed_has_its_attempts() -> None:
    attempts = [{"source": "local", "outcome": "skipped"}]
    for error in (errors.ModelNotFound, errors.ModelRejected):
        assert issubclass(error, errors.ResolveError)
        assert error("x", attempts=attempts).attempts == attempts
        assert list(error("x").attempts) == []
