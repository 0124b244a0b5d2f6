"""Row flox of the reference's source table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import vllmrt_source_flox
from vllmrt_source_flox import FloxSource, vllmrt_sources

from vllmrt.errors import ModelRejected
from vllmrt.host import PluginHost
from vllmrt.resolve import envfile
from vllmrt.resolve.loop import Resolved, Resolver
from vllmrt.settings import Settings
from vllmrt.testing import fingerprint, make_model
from vllmrt.types import Candidate, ModelRequest, Skip

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "a" * 40, "b" * 40
REQUEST = ModelRequest("org/name")


def snapshots_of(environment: Path) -> Path:
    return environment / "share" / "models" / "hub" / "models--org--name" / "snapshots"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Two snapshots; ``main`` is the older one."""
    path = tmp_path / "env"
    for age, commit in enumerate([NEW, OLD]):
        directory = make_model(snapshots_of(path) / commit)
        os.utime(directory, (1000 - age, 1000 - age))
    refs = snapshots_of(path).parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(OLD)
    (refs / "v2").write_text(NEW)
    return path


def probe(environment: Path | None, revision: str | None = None) -> tuple[Candidate, ...]:
    (source,) = vllmrt_sources(Settings(flox_env=environment))
    answer = source.probe(ModelRequest("org/name", revision=revision))
    assert not isinstance(answer, Skip), answer.reason
    return tuple(answer)


def skipped(environment: Path | None, revision: str | None = None) -> Skip:
    answer = FloxSource(environment).probe(ModelRequest("org/name", revision=revision))
    assert isinstance(answer, Skip)
    return answer


def resolve(environment: Path, tmp_path: Path) -> Resolved:
    settings = Settings(flox_env=environment, flox_env_cache=tmp_path / "cache", models_dir=tmp_path / "store")
    return Resolver(PluginHost(settings), settings, lambda _: None).resolve(REQUEST, ["flox"])


def test_outside_of_flox_it_says_what_is_missing() -> None:
    assert skipped(None) == Skip("FLOX_ENV is not set", hint="run inside flox activate")


def test_an_environment_without_the_model_names_the_place(tmp_path: Path) -> None:
    assert skipped(tmp_path).reason == f"no snapshot in {snapshots_of(tmp_path)}"


def test_a_repository_without_snapshots_is_skipped(tmp_path: Path) -> None:
    snapshots_of(tmp_path).mkdir(parents=True)
    assert "no snapshot" in skipped(tmp_path).reason


@pytest.mark.parametrize(
    ("revision", "expected"),
    [(None, [OLD, NEW]), ("main", [OLD]), ("v2", [NEW]), (NEW, [NEW])],
)
def test_snapshots_that_answer_a_revision(environment: Path, revision: str | None, expected: list[str]) -> None:
    found = probe(environment, revision)
    assert [candidate.path for candidate in found] == [snapshots_of(environment) / commit for commit in expected]
    assert [candidate.revision for candidate in found] == expected


def test_an_unknown_revision_is_skipped(environment: Path) -> None:
    assert "no snapshot" in skipped(environment, "v3").reason


def test_readers_of_the_env_file_get_the_home_that_holds_it(environment: Path, tmp_path: Path) -> None:
    resolved = resolve(environment, tmp_path)
    assert envfile.contents(resolved, directory_name="name") == {
        "HF_HOME": str(environment / "share" / "models"),
        "VLLM_MODEL": "name",
        "VLLM_MODEL_ID": "org/name",
        "_VLLM_RESOLVED_MODEL": "org/name",
        "_VLLM_RESOLVED_VIA": "flox",
        "_VLLM_RESOLVED_PATH": str(snapshots_of(environment) / OLD),
        "_VLLM_MODEL_IDENTITY": "org/name",
    }


def test_links_may_lead_elsewhere_in_the_environment(environment: Path, tmp_path: Path) -> None:
    shard = snapshots_of(environment) / OLD / "model-00001-of-00002.safetensors"
    (environment / "lib").mkdir()
    shard.rename(environment / "lib" / "weights")
    shard.symlink_to("../../../../../../lib/weights")
    before = fingerprint(environment)
    assert resolve(environment, tmp_path).path == snapshots_of(environment) / OLD
    assert fingerprint(environment) == before


def test_links_may_not_lead_out_of_the_environment(environment: Path, tmp_path: Path) -> None:
    for commit in (OLD, NEW):
        shard = snapshots_of(environment) / commit / "model-00001-of-00002.safetensors"
        shard.rename(tmp_path / commit)
        shard.symlink_to(tmp_path / commit)
    with pytest.raises(ModelRejected) as caught:
        resolve(environment, tmp_path)
    assert "link out of the model" in str(caught.value.attempts)


def test_an_environment_in_the_package_store_may_link_anywhere_in_it(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Flox builds it: FLOX_ENV is a link into the store, and so is each package in it."""
    store = tmp_path / "store"
    built, package = store / "1-environment", store / "2-model"
    (built / "share").mkdir(parents=True)
    (environment / "share" / "models").rename(package)
    (built / "share" / "models").symlink_to(package)
    active = tmp_path / "run"
    active.symlink_to(built)
    monkeypatch.setattr(vllmrt_source_flox, "NIX_STORE", store)
    assert {candidate.root for candidate in probe(active)} == {store}
    resolved = resolve(active, tmp_path)
    assert resolved.path == package / "hub" / "models--org--name" / "snapshots" / OLD
    assert resolved.candidate.hf_home == active / "share" / "models"


def test_a_package_that_is_linked_from_elsewhere_is_served_from_there(environment: Path, tmp_path: Path) -> None:
    """The tree is what the snapshot leads to; only its own links are held to the environment."""
    (environment / "share" / "models").rename(tmp_path / "models")
    (environment / "share" / "models").symlink_to(tmp_path / "models")
    assert resolve(environment, tmp_path).path.is_relative_to(tmp_path / "models")
