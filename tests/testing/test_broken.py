"""The kit is proven by plugins that are broken on purpose: each fails the test that is meant for it, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from vllmrt.testing import (
    ClassifierConformance,
    GpuProbeConformance,
    RemoteSourceConformance,
    SourceConformance,
    ValidatorConformance,
    fake_dist,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

HERE = Path(__file__).parent / "broken"
DECLARED = "test_it_is_declared_once_and_under_its_own_name"
LIGHT = "test_importing_it_is_light"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(HERE))
    return __import__


def install(site: Path) -> None:
    """Give every broken plugin its entry point."""
    import broken_classifiers
    import broken_gpus
    import broken_inplace
    import broken_remote
    import broken_validators

    sources = dict.fromkeys(broken_remote.BROKEN, "broken_remote")
    sources |= dict.fromkeys(broken_inplace.BROKEN, "broken_inplace")
    sources |= {name: name for name in ("heavy_import", "thread_import", "noisy_import")}
    ambient = {
        name: f"{module.__name__}:plugins.{name}"
        for module in (broken_validators, broken_classifiers)
        for name in module.BROKEN
    }
    probes = dict.fromkeys(broken_gpus.BROKEN, "broken_gpus")
    groups = {"vllmrt.sources": sources, "vllmrt.gpu_probes": probes, "vllmrt.plugins": ambient}
    fake_dist(site, "broken", "1.0", groups)
    fake_dist(site, "twice", "1.0", {"vllmrt.sources": {"DeclaredTwice": "broken_remote"}})


def failures(directory: Path, plugins: Iterable[str]) -> dict[str, set[str]]:
    """Run the suites of these plugins, and return the tests that failed, by plugin."""
    site, told = directory / "site", directory / "told.xml"
    install(site)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(HERE)])}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, "--rootdir", str(HERE)]
    suites = [f"{HERE / 'suite.py'}::Test{name}" for name in plugins]
    command = [sys.executable, "-m", "pytest", *options, f"--junit-xml={told}", *suites]
    done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode in {0, 1}, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, set[str]] = {}
    for case in ET.parse(told).getroot().iter("testcase"):  # noqa: S314 - pytest wrote it
        failed = found.setdefault(case.attrib["classname"].rpartition(".Test")[2], set())
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(case.attrib["name"].partition("[")[0])
    return found


@pytest.mark.parametrize("module", ["remote", "inplace", "gpus", "validators", "classifiers"])
def test_each_fails_what_it_is_meant_to_fail(module: str, broken: Callable[[str], Any], tmp_path: Path) -> None:
    plugins = broken(f"broken_{module}").BROKEN
    meant = {name: {cls.meant_for} - {None} for name, cls in plugins.items()}
    if module == "remote":
        meant |= {name: {LIGHT} for name in ("heavy_import", "thread_import", "noisy_import")}
    assert failures(tmp_path, meant) == meant


KIT = {
    "remote": RemoteSourceConformance,
    "inplace": SourceConformance,
    "gpus": GpuProbeConformance,
    "validators": ValidatorConformance,
    "classifiers": ClassifierConformance,
}


@pytest.mark.parametrize("module", KIT)
def test_every_test_has_a_plugin_that_fails_it(module: str, broken: Callable[[str], Any]) -> None:
    tests = {name for name in dir(KIT[module]) if name.startswith("test_")} - {LIGHT}
    assert {cls.meant_for for cls in broken(f"broken_{module}").BROKEN.values()} - {None} == tests


# what an author may not do with an inherited test

NAME = "test_the_best_place_comes_first"


def nothing(self: object) -> None:
    """Pass."""


def redefined(**attributes: Any) -> type:
    return type("TestAcme", (SourceConformance,), {"name": "acme", **attributes})


@pytest.mark.parametrize("by", [nothing, None, pytest.mark.skip(reason="later")(nothing), pytest.mark.xfail(nothing)])
def test_an_inherited_test_cannot_be_replaced(by: object) -> None:
    with pytest.raises(TypeError, match=rf"TestAcme replaces {NAME}: an inherited test stays as it is"):
        redefined(**{NAME: by})


def test_an_inherited_test_cannot_be_hidden_by_another_base() -> None:
    mixin = type("Mixin", (), {NAME: nothing})
    with pytest.raises(TypeError, match=NAME):
        type("TestAcme", (mixin, SourceConformance), {})


def test_a_class_of_the_authors_between_them_is_no_way_out() -> None:
    with pytest.raises(TypeError, match=NAME):
        type("TestAcme", (redefined(),), {NAME: nothing})


def test_an_expected_failure_says_why() -> None:
    assert redefined(**{NAME: pytest.mark.xfail(reason="the store has no order")(nothing)})


def test_own_tests_and_fixtures_may_be_added() -> None:
    assert redefined(test_of_my_own=nothing, model=pytest.fixture(lambda _: None))
