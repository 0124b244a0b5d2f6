"""The contract is documentation: every example in it is run."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

import vllmrt
from vllmrt import discovery, hookspecs
from vllmrt.host import PluginHost
from vllmrt.settings import Settings
from vllmrt.testing import fake_dist
from vllmrt.types import Candidate, Finding, GpuStatus, ModelRequest, ModelTree, ProcessInfo, Severity, Skip, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("vllmrt_")}
GROUPS = {
    "vllmrt_sources": discovery.SOURCES,
    "vllmrt_gpu_probes": discovery.GPU_PROBES,
    "vllmrt_validators": discovery.PLUGINS,
    "vllmrt_classify_process": discovery.PLUGINS,
}
REQUEST = ModelRequest("org/name")


def blocks(function: Any) -> dict[str, str]:
    """Return the files of the literal block in a docstring: each begins with its name in a comment."""
    docstring = inspect.getdoc(function) or ""
    literal = re.search(r"::\n\n((?:    .*\n|\n)+)", docstring)
    assert literal, f"{function.__name__} has no literal block"
    parts = re.split(r"^# (\w+\.(?:py|toml))\n", dedent(literal[1]), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Example:
    """One example, installed as its ``pyproject.toml`` says."""

    def __init__(self, hook: str, site: Path) -> None:
        files = blocks(HOOKS[hook])
        (module,) = (name for name in files if name.endswith(".py"))
        self.source = files[module]
        self.declared = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
        fake_dist(site, "acme-example", "1.0", self.declared, {module.removesuffix(".py"): self.source})
        importlib.invalidate_caches()
        self.host = PluginHost(Settings(), discovery.entry_points([str(site)]))

    def load(self, hook: str) -> Any:
        """Import it as the host would where nobody consumes its hook yet, and call the hook."""
        ((_, module),) = self.declared[GROUPS[hook]].items()
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(importlib.import_module(module))
        manager.check_pending()
        return getattr(manager.hook, hook)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_hooks_are_the_four_of_the_design() -> None:
    assert set(HOOKS) == set(GROUPS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_names_its_group_and_documents_its_arguments_and_result(hook: str) -> None:
    docstring = inspect.getdoc(HOOKS[hook]) or ""
    assert f"group ``{GROUPS[hook]}``" in docstring
    arguments = docstring.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    documented = re.findall(r"^    (\w+): \S", arguments, flags=re.MULTILINE)
    assert documented == list(inspect.signature(HOOKS[hook]).parameters)
    assert re.search(r"\nReturns:\n    \S", docstring)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_example_declares_the_group_that_its_hook_belongs_to(hook: str, site: Path) -> None:
    example = Example(hook, site)
    assert set(example.declared) == {GROUPS[hook]}
    (point,) = discovery.entry_points([str(site)])
    assert point.value in blocks(HOOKS[hook]).__repr__()
    assert f"def {hook}(" in example.source
    assert "os.environ" not in example.source


@pytest.mark.parametrize("hook", HOOKS)
def test_an_example_imports_nothing_internal(hook: str) -> None:
    source = next(text for name, text in blocks(HOOKS[hook]).items() if name.endswith(".py"))
    used = set(re.findall(r"^(?:from|import) (vllmrt[.\w]*)", source, flags=re.MULTILINE))
    assert used <= {"vllmrt", "vllmrt.types", "vllmrt.errors"}


def test_the_source_finds_a_model_or_says_why_not(site: Path, tmp_path: Path) -> None:
    host = Example("vllmrt_sources", site).host
    entry = host.select(discovery.SOURCES, "acme-share")
    assert entry is not None
    source = host.source(entry)
    assert host.probe(source, REQUEST) == Skip("nothing at /mnt/models/org/name", hint="mount the share")
    model = tmp_path / "mnt" / "org" / "name"
    model.mkdir(parents=True)
    here = type(source.object)(tmp_path / "mnt")  # type: ignore[call-arg]
    assert host.probe(source._replace(object=here), REQUEST) == (Candidate(str(model), path=model),)


def test_the_validator_refuses_what_has_no_licence(site: Path, tmp_path: Path) -> None:
    host = Example("vllmrt_validators", site).host
    (guard,) = host.validators()
    assert guard.object.name == guard.entry.name == "acme-licence"
    model = tmp_path / "model"
    model.mkdir()
    tree = ModelTree(model, request=REQUEST, candidate=Candidate(str(model), path=model))
    (finding,) = host.check(guard, tree)
    assert finding == Finding(Severity.ERROR, message="no licence", code="acme-no-licence", file="LICENSE")
    (model / "LICENSE").touch()
    assert host.check(guard, tree) == ()


def test_the_probe_reads_its_gpus(site: Path) -> None:
    example = Example("vllmrt_gpu_probes", site)
    ((probe,),) = example.load("vllmrt_gpu_probes")(settings=Settings())
    assert [probe.name] == list(example.declared[discovery.GPU_PROBES])
    (gpu,) = probe.read(())
    assert isinstance(gpu, GpuStatus)
    assert gpu.memory_free < gpu.memory_total
    assert probe.read(("0",)) == (gpu,)
    assert probe.read(("1",)) == ()


def test_the_classifier_protects_what_its_supervisor_started(site: Path) -> None:
    classify = Example("vllmrt_classify_process", site).load("vllmrt_classify_process")
    parent = ProcessInfo(2, uid=0, start_ticks=1, exe=None, argv=("acme-supervisor", "-x"), title="")
    child = ProcessInfo(3, uid=0, start_ticks=2, exe=None, argv=("vllm", "serve"), title="", ancestors=(parent,))
    assert classify(process=child, settings=Settings()) == [Verdict.PROTECTED]
    assert classify(process=parent, settings=Settings()) == []


def test_the_marker_of_the_package_is_the_one_of_the_contract() -> None:
    assert vllmrt.hookimpl is hookspecs.hookimpl
    with pytest.raises(AttributeError, match="no attribute 'hookspec'"):
        vllmrt.hookspec  # noqa: B018 - looking at it is the test


def test_no_hook_stops_at_the_first_answer() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for hook in HOOKS:
        assert not getattr(manager.hook, hook).spec.opts["firstresult"]
