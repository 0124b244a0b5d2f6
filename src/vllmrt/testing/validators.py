"""What every plugin with validators has to do."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt import discovery
from vllmrt.host import PluginHost
from vllmrt.testing.conformance import Conformance, told_secrets
from vllmrt.testing.models import fingerprint, make_model, tree_of
from vllmrt.types import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.discovery import EntryPoint
    from vllmrt.host import Guard
    from vllmrt.settings import Settings
    from vllmrt.types import Finding

    Look = Callable[[Path], tuple[Finding, ...]]

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ValidatorConformance(Conformance):
    """For the validators of one entry point.

    A suite overrides the fixtures `model`, where a tiny model alone does not pass, and `broken`; most override
    `options`.
    """

    group = discovery.PLUGINS

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """Return the directory of a model that passes; a tiny whole one unless overridden."""
        return make_model(tmp_path / "model")

    @pytest.fixture
    def broken(self) -> Path:
        """Return the directory of a model that the plugin refuses."""
        raise NotImplementedError(f"{type(self).__name__} has to override the fixture 'broken'")

    @pytest.fixture
    def guards(self, settings: Settings, entry: EntryPoint) -> list[Guard]:
        """Load the plugin's validators as a run does."""
        return PluginHost(settings, [entry]).validators()

    @pytest.fixture
    def look(self, host: PluginHost, guards: list[Guard]) -> Look:
        """Return what asks all of them about a directory, in the core's own guard: an exception is a failure."""
        return lambda path: tuple(finding for guard in guards for finding in host.check(guard, tree_of(path)))

    def test_each_has_a_name_of_its_own(self, guards: list[Guard]) -> None:
        """A person is told by it who refuses a model."""
        names = [guard.name for guard in guards]
        assert all(name.strip() for name in names)
        assert len(set(names)) == len(names), f"two have the same name: {names}"

    def test_a_good_model_passes(self, look: Look, model: Path) -> None:
        """Nothing weighs as an error."""
        assert [finding for finding in look(model) if finding.severity is Severity.ERROR] == []

    def test_a_broken_model_is_refused(self, look: Look, broken: Path) -> None:
        """Something weighs as an error."""
        assert [finding for finding in look(broken) if finding.severity is Severity.ERROR]

    def test_its_findings_can_be_shown(self, look: Look, broken: Path) -> None:
        """A message is one line, a code a word for programs, a file lies below the model's directory."""
        for finding in look(broken):
            assert finding.message.strip(), finding
            assert finding.message.isprintable(), f"a line end or a control character: {finding.message!r}"
            assert _CODE.fullmatch(finding.code), f"a code is words joined by '-', not {finding.code!r}"
            path = PurePosixPath(finding.file or "x")
            assert not path.is_absolute(), finding
            assert ".." not in path.parts, finding

    def test_checking_changes_nothing(self, look: Look, model: Path, broken: Path) -> None:
        """Models, environment and working directory are as before: the bytes that are checked are served."""
        before = [fingerprint(model), fingerprint(broken), dict(os.environ), Path.cwd()]
        look(model)
        look(broken)
        assert [fingerprint(model), fingerprint(broken), dict(os.environ), Path.cwd()] == before

    def test_checking_again_gives_the_same(self, look: Look, broken: Path) -> None:
        """The same model has the same findings."""
        assert look(broken) == look(broken)

    @pytest.mark.parametrize("kind", ["empty", "gone", "garbage", "links", "names", "deep"])
    def test_whatever_lies_there_it_does_not_break(self, look: Look, tmp_path: Path, kind: str) -> None:
        """A hostile directory is refused or passed, but no exception: that would name the plugin, not the fault."""
        path = tmp_path / "hostile"
        _HOSTILE[kind](path)
        look(path)

    def test_no_secret_is_told(self, look: Look, guards: list[Guard], broken: Path, secrets: tuple[str, ...]) -> None:
        """No credential is in a validator's repr or in a finding."""
        texts: list[object] = [*look(broken), *(repr(guard.object) for guard in guards)]
        assert told_secrets(iter(texts), secrets) == []


def _garbage(path: Path) -> None:
    for file in sorted(make_model(path).iterdir()):
        file.write_bytes(bytes(range(256)) * 5)


def _links(path: Path) -> None:
    make_model(path)
    (path / "nowhere.safetensors").symlink_to("gone")
    (path / "circle.json").symlink_to("circle.json")
    (path / "out.txt").symlink_to("/etc/hostname")


def _names(path: Path) -> None:
    make_model(path)
    for name in (b"\xff\xfe.json", b"new\nline.txt", b"\x1b[31mred.safetensors"):
        with open(os.fsencode(path) + b"/" + name, "wb"):  # noqa: PTH123 - no text can have this name
            pass


def _deep(path: Path) -> None:
    make_model(path)
    path.joinpath(*["d"] * 200).mkdir(parents=True)


_HOSTILE: dict[str, Callable[[Path], Any]] = {
    "empty": Path.mkdir,
    "gone": lambda _: None,
    "garbage": _garbage,
    "links": _links,
    "names": _names,
    "deep": _deep,
}
