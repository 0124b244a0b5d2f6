"""Row local of the reference's source table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from vllmrt_source_local import vllmrt_sources

from vllmrt.errors import ModelNotFound, ModelRejected
from vllmrt.host import PluginHost
from vllmrt.identity import identity_hash
from vllmrt.resolve import envfile, manifest
from vllmrt.resolve.loop import Resolved, Resolver
from vllmrt.settings import Settings
from vllmrt.testing import corrupt, fingerprint, make_model
from vllmrt.types import Candidate, ModelRequest, Skip

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = ModelRequest("org/name")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def probe(store: Path, request: ModelRequest = REQUEST, **settings: Any) -> tuple[Candidate, ...] | Skip:
    (source,) = vllmrt_sources(Settings(models_dir=store, **settings))
    return source.probe(request)


def resolve(store: Path, request: ModelRequest = REQUEST, **settings: Any) -> Resolved:
    chosen = Settings(models_dir=store, flox_env_cache=store.parent / "cache", **settings)
    return Resolver(PluginHost(chosen), chosen, lambda _: None).resolve(request, ["local"])


def own(path: Path, identity: str) -> None:
    """Leave the manifest of a model that was published."""
    manifest.write(path / manifest.NAME, manifest.Manifest(identity=identity, source="hf-hub", location="elsewhere"))


@pytest.mark.parametrize("there", [False, True], ids=["no store", "no model"])
def test_a_model_that_is_missing_is_skipped_with_its_place(tmp_path: Path, *, there: bool) -> None:
    store = tmp_path / "store"
    if there:
        store.mkdir()
    assert probe(store) == Skip(f"nothing at {store / 'name'}")


def test_a_file_of_that_name_is_no_model(store: Path) -> None:
    (store / "name").touch()
    assert isinstance(probe(store), Skip)


def test_a_model_is_used_where_it_lies(store: Path) -> None:
    model = make_model(store / "name")
    before = fingerprint(model)
    resolved = resolve(store)
    assert resolved.path == model
    assert resolved.candidate.hf_home is None
    assert fingerprint(model) == before


def test_readers_of_the_env_file_get_its_path(store: Path) -> None:
    model = make_model(store / "name")
    assert envfile.contents(resolve(store), directory_name="name") == {
        "VLLM_MODEL": "name",
        "VLLM_MODEL_ID": "org/name",
        "VLLM_MODEL_PATH": str(model),
        "_VLLM_RESOLVED_MODEL": str(model),
        "_VLLM_RESOLVED_VIA": "local",
        "_VLLM_RESOLVED_PATH": str(model),
        "_VLLM_MODEL_IDENTITY": "org/name",
    }


def test_a_model_that_is_broken_is_refused_with_the_file(store: Path) -> None:
    corrupt(make_model(store / "name") / "model-00002-of-00002.safetensors", cut=1)
    with pytest.raises(ModelRejected) as caught:
        resolve(store)
    (attempt,) = caught.value.attempts
    assert attempt["outcome"] == "rejected"
    assert "model-00002-of-00002.safetensors" in str(attempt["reason"])


def test_the_name_of_the_directory_may_differ_from_the_id(store: Path) -> None:
    model = make_model(store / "other")
    assert resolve(store, model="other").path == model
    assert probe(store) == Skip(f"nothing at {store / 'name'}")


def test_the_place_beside_a_model_of_the_same_name(store: Path) -> None:
    beside = make_model(store / f"name.{identity_hash('org/name')}")
    assert resolve(store).path == beside


def test_the_plain_name_comes_first(store: Path) -> None:
    make_model(store / f"name.{identity_hash('org/name')}")
    plain = make_model(store / "name")
    assert resolve(store).path == plain


def test_a_broken_model_does_not_hide_the_one_beside_it(store: Path) -> None:
    corrupt(make_model(store / "name") / "model-00001-of-00002.safetensors", cut=1)
    beside = make_model(store / f"name.{identity_hash('org/name')}")
    resolved = resolve(store)
    assert resolved.path == beside
    assert [attempt.outcome for attempt in resolved.attempts] == ["rejected", "chosen"]


@pytest.mark.parametrize(
    ("owner", "request_"),
    [
        ("other/name", REQUEST),
        ("org/name@v2", REQUEST),
        ("org/name", ModelRequest("org/name", revision="v1")),
    ],
    ids=["another org", "a revision", "no revision"],
)
def test_the_model_of_another_identity_is_neither_served_nor_touched(
    store: Path, owner: str, request_: ModelRequest
) -> None:
    own(make_model(store / "name"), owner)
    before = fingerprint(store / "name")
    with pytest.raises(ModelNotFound) as caught:
        resolve(store, request_)
    (attempt,) = caught.value.attempts
    assert attempt["outcome"] == "skipped"
    assert attempt["reason"] == f"{store / 'name'} belongs to {owner}"
    assert fingerprint(store / "name") == before


def test_beside_the_model_of_another_identity_lies_ours(store: Path) -> None:
    own(make_model(store / "name"), "other/name")
    beside = make_model(store / f"name.{identity_hash('org/name')}")
    own(beside, "org/name")
    assert resolve(store).path == beside


def test_each_revision_has_a_place_of_its_own(store: Path) -> None:
    request = ModelRequest("org/name", revision="v1")
    beside = make_model(store / f"name.{identity_hash('org/name@v1')}")
    assert resolve(store, request).path == beside
    assert isinstance(probe(store), Skip)


def test_a_model_that_its_user_linked_into_the_store_is_served_from_there(store: Path) -> None:
    model = make_model(store.parent / "elsewhere")
    (store / "name").symlink_to(model)
    assert resolve(store).path == model


def test_a_link_out_of_the_model_is_refused(store: Path) -> None:
    shard = make_model(store / "name") / "model-00001-of-00002.safetensors"
    shard.rename(store / "weights")
    shard.symlink_to(store / "weights")
    with pytest.raises(ModelRejected) as caught:
        resolve(store)
    assert f"{shard.name}: is a symbolic link out of the model: {store / 'weights'}" in str(caught.value.attempts)
