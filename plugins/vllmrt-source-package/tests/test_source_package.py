"""Models in Python distributions: found by metadata, located, never imported."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt import discovery
from vllmrt.errors import ModelNotFound, ModelRejected
from vllmrt.host import PluginHost
from vllmrt.resolve import envfile
from vllmrt.resolve.loop import Resolved, Resolver
from vllmrt.settings import Settings
from vllmrt.testing import make_model
from vllmrt.types import Candidate, ModelRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BOOM = "raise RuntimeError('imported')\n"


class Site:
    """A directory on ``sys.path``, beside the real ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "site"

    def install(self, distribution: str, models: Mapping[str, str], *, version: str = "1.2") -> None:
        metadata = self.path / f"{distribution}-{version}.dist-info"
        metadata.mkdir(parents=True)
        lines = [f"{name} = {module}" for name, module in models.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{discovery.MODELS}]", *lines, ""]))

    def module(self, name: str, *, code: str = BOOM) -> Path:
        path = make_model(self.path / name.replace(".", "/"))
        (path / "__init__.py").write_text(code)
        return path

    def resolve(self, model_id: str, revision: str | None = None, **changed: Any) -> Resolved:
        own = {"models_dir": self.root / "store", "flox_env_cache": self.root / "cache"}
        settings = Settings(**own, **changed)
        request = ModelRequest(model_id, revision=revision)
        return Resolver(PluginHost(settings), settings, lambda _: None).resolve(request, ["package"])

    def refused(self, model_id: str, revision: str | None = None, **changed: Any) -> Mapping[str, object]:
        """Return the attempt of a run that found nothing."""
        with pytest.raises(ModelNotFound) as caught:
            self.resolve(model_id, revision, **changed)
        (attempt,) = caught.value.attempts
        return attempt


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    made = Site(tmp_path)
    made.path.mkdir()
    monkeypatch.syspath_prepend(made.path)
    yield made
    for name in [name for name in sys.modules if name.startswith("acme") and name not in before]:
        del sys.modules[name]


def test_a_model_that_nobody_ships_is_skipped(site: Site) -> None:
    attempt = site.refused("acme/llama")
    assert (attempt["outcome"], attempt["reason"]) == ("skipped", "no installed distribution ships acme/llama")


def test_a_model_is_served_from_its_module_which_is_not_imported(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama", "acme/qwen": "acme_qwen"})
    path = site.module("acme_llama")
    resolved = site.resolve("acme/llama")
    assert resolved.path == path
    assert resolved.candidate == Candidate(f"acme-models 1.2 in {path}", path=path, revision="1.2")
    assert "acme_llama" not in sys.modules


def test_a_module_inside_a_package_is_found_without_importing_the_package(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_zoo.llama"})
    site.module("acme_zoo")
    path = site.module("acme_zoo.llama")
    assert site.resolve("acme/llama").path == path
    assert "acme_zoo" not in sys.modules


def test_a_module_without_code_is_enough(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    path = site.module("acme_llama")
    (path / "__init__.py").unlink()
    assert site.resolve("acme/llama").path == path


@pytest.mark.parametrize("revision", [None, "1.2"])
def test_the_version_is_the_revision(site: Site, revision: str | None) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    site.module("acme_llama")
    assert site.resolve("acme/llama", revision).manifest.revision == "1.2"


@pytest.mark.parametrize("revision", ["1.3", "main"])
def test_another_revision_is_skipped(site: Site, revision: str) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    site.module("acme_llama")
    attempt = site.refused("acme/llama", revision)
    assert attempt["outcome"] == "skipped"
    assert attempt["reason"] == f"acme-models 1.2 ships acme/llama, but not revision {revision}"


def test_two_distributions_that_ship_one_model_are_both_named(site: Site) -> None:
    for distribution, version in (("acme_one", "1.0"), ("acme_two", "2.0")):
        site.install(distribution, {"acme/llama": distribution}, version=version)
        site.module(distribution)
    attempt = site.refused("acme/llama")
    assert attempt["outcome"] == "failed"
    assert attempt["reason"] == "acme/llama is shipped by acme-one 1.0 and by acme-two 2.0"
    assert attempt["hint"] == "uninstall all but one"


def test_a_distribution_that_is_disabled_ships_nothing(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    site.module("acme_llama")
    assert site.refused("acme/llama", disable_plugins=("acme-models",))["outcome"] == "skipped"


@pytest.mark.parametrize("value", ["acme_gone", "acme_gone.llama", "acme_llama:MODEL", "acme_file"])
def test_a_module_that_is_missing_is_blamed_on_its_distribution(site: Site, value: str) -> None:
    site.install("acme_models", {"acme/llama": value})
    (site.path / "acme_file.py").write_text(BOOM)
    attempt = site.refused("acme/llama")
    assert attempt["outcome"] == "failed"
    assert str(attempt["reason"]).startswith(f"acme-models 1.2 names {value}, which ")


def test_a_package_without_a_model_is_refused(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    (site.module("acme_llama") / "config.json").unlink()
    with pytest.raises(ModelRejected) as caught:
        site.resolve("acme/llama")
    assert "config.json" in str(caught.value.attempts)


def test_bytecode_beside_a_model_changes_nothing(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    path = site.module("acme_llama")
    first = site.resolve("acme/llama").manifest
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "__init__.cpython-311.pyc").touch()
    assert site.resolve("acme/llama").manifest == first


def test_readers_of_the_env_file_get_its_path(site: Site) -> None:
    site.install("acme_models", {"acme/llama": "acme_llama"})
    path = site.module("acme_llama")
    values = envfile.contents(site.resolve("acme/llama"), directory_name="llama")
    assert values["VLLM_MODEL_PATH"] == values["_VLLM_RESOLVED_MODEL"] == str(path)
    assert values["_VLLM_RESOLVED_VIA"] == "package"
