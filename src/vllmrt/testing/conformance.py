"""What every conformance class has: how a plugin is found and loaded, and that no inherited test is lost."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from vllmrt import discovery
from vllmrt.errors import VllmrtError
from vllmrt.host import PluginHost
from vllmrt.settings import Settings
from vllmrt.testing.imports import assert_import_light

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.discovery import EntryPoint

CANARY = "sk-canary-c6f1a7d2b94e"
"""A secret among the settings of every suite."""
_KIT = f"{__name__.rpartition('.')[0]}."


class Conformance:
    """The base of the conformance classes.

    Attributes:
        name: of the entry point, as users type it.
        group: of the entry point.
        light: third-party modules that importing the plugin may import.
    """

    name: ClassVar[str]
    group: ClassVar[str]
    light: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that replaces an inherited test: the suite would be green and prove nothing.

        Raises:
            TypeError: it does, and not with ``pytest.mark.xfail(reason=…)``.
        """
        super().__init_subclass__(**kwargs)
        lost = [test for test in _tests(cls) if _is_replaced(cls, test)]
        if lost:
            raise TypeError(
                f"{cls.__name__} replaces {', '.join(lost)}: an inherited test stays as it is; one that cannot pass"
                ' is marked with @pytest.mark.xfail(reason="…")'
            )

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Settings of the plugin under test by name, as a user would have made them; none unless overridden."""
        return {}

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        """Credentials that the plugin was given, and that nobody may see; none unless overridden."""
        return ()

    @pytest.fixture
    def unset(self, tmp_path: Path) -> Settings:
        """Return settings in which the user has told nothing; store and cache lie in the test's directory."""
        return _settings(tmp_path)

    @pytest.fixture
    def settings(self, tmp_path: Path, options: dict[str, Any]) -> Settings:
        """Return the settings of the run."""
        return _settings(tmp_path, **options)

    @pytest.fixture
    def claims(self) -> list[EntryPoint]:
        """Return the installed entry points of the plugin's name."""
        found = [one for one in discovery.entry_points() if (one.group, one.name) == (self.group, self.name)]
        if not found:
            pytest.fail(f"no installed distribution has the entry point {self.name} in {self.group}", pytrace=False)
        return found

    @pytest.fixture
    def entry(self, claims: list[EntryPoint], settings: Settings) -> EntryPoint:
        """Return the plugin's entry point; what does not load is the matter of one test alone."""
        entry = claims[0]
        try:
            host_of(settings, entry).load(entry)
        except VllmrtError as error:
            pytest.skip(f"it cannot be loaded, see {_DECLARED}: {error}")
        return entry

    @pytest.fixture
    def host(self, settings: Settings, entry: EntryPoint) -> PluginHost:
        """Return a host that knows the plugin under test and the core's own."""
        return host_of(settings, entry)

    def test_it_is_declared_once_and_under_its_own_name(self, claims: list[EntryPoint], settings: Settings) -> None:
        """One distribution has the entry point, it loads, and what it offers bears the entry point's name."""
        owners = " and ".join(entry.owner for entry in claims)
        assert len(claims) == 1, f"{self.name} is declared more than once: by {owners}"
        try:
            host_of(settings, *claims).load(claims[0])
        except VllmrtError as error:
            pytest.fail(str(error), pytrace=False)

    def test_importing_it_is_light(self, claims: list[EntryPoint]) -> None:
        """To import it costs no SDK, starts no thread and prints nothing: every run that names it does so."""
        for entry in claims:
            assert_import_light(entry.value.partition(":")[0].strip(), allowed=self.light)


_DECLARED = Conformance.test_it_is_declared_once_and_under_its_own_name.__name__


def host_of(settings: Settings, *entries: EntryPoint, kind: type[PluginHost] = PluginHost) -> PluginHost:
    """Return a host that knows these plugins and the core's own, whatever else is installed."""
    own = [entry for entry in discovery.entry_points() if entry.distribution == "vllmrt" and entry not in entries]
    return kind(settings, [*entries, *own])


def told_secrets(texts: Iterator[object], secrets: tuple[str, ...]) -> list[str]:
    """Return the texts in which a secret can be read."""
    return [text for text in map(str, texts) if any(secret in text for secret in (CANARY, *secrets))]


def _settings(tmp_path: Path, **options: Any) -> Settings:
    own = {"models_dir": tmp_path / "store", "flox_env_cache": tmp_path / "cache", "api_key": CANARY}
    return Settings(**{**own, **options})


def _tests(cls: type) -> list[str]:
    """Return the tests that the kit's own classes give to a class."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith(_KIT)]
    return sorted({name for base in ours for name in vars(base) if name.startswith("test_")})


def _is_replaced(cls: type, test: str) -> bool:
    owner = next(base for base in cls.__mro__ if test in vars(base))
    if owner.__module__.startswith(_KIT):
        return False
    marks = getattr(inspect.getattr_static(cls, test), "pytestmark", [])
    return not any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)
