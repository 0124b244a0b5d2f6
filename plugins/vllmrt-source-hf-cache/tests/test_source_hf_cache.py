"""Row hf-cache of the reference's source table, and the caches of the user's own tools after it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from modelkit import move_to_hub_cache
from vllmrt_source_hf_cache import vllmrt_sources

from vllmrt.errors import ModelRejected
from vllmrt.host import PluginHost
from vllmrt.layers import load
from vllmrt.resolve import envfile
from vllmrt.resolve.loop import Resolved, Resolver
from vllmrt.settings import Settings
from vllmrt.testing import corrupt, fingerprint, make_model
from vllmrt.types import Candidate, ModelRequest, Skip

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "a" * 40, "b" * 40
REQUEST = ModelRequest("org/name")


class Caches:
    """The places where a snapshot may lie on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.by_default = root / "home" / ".cache" / "huggingface" / "hub"

    def add(self, hub: Path, commit: str, *, age: int = 0) -> Path:
        """Store a model in the cache at `hub`; return the snapshot."""
        model = make_model(self.root / "download", hidden=32 if commit == OLD else 40)
        snapshot, repository = move_to_hub_cache(model, self.root / "fresh", commit)
        target = hub / repository.name
        for part in ("blobs", "snapshots"):
            (target / part).mkdir(parents=True, exist_ok=True)
            for entry in (repository / part).iterdir():
                entry.rename(target / part / entry.name)
            (repository / part).rmdir()
        found = target / "snapshots" / snapshot.name
        os.utime(found, (10_000 - age, 10_000 - age))
        return found

    def settings(self, **changed: Any) -> Settings:
        return Settings(**{"models_dir": self.store, "flox_env_cache": self.root / "cache", **changed})

    def resolve(self, revision: str | None = None, **changed: Any) -> Resolved:
        settings = self.settings(**changed)
        request = ModelRequest("org/name", revision=revision)
        return Resolver(PluginHost(settings), settings, lambda _: None).resolve(request, ["hf-cache"])

    def probe(self, request: ModelRequest = REQUEST, **changed: Any) -> tuple[Candidate, ...] | Skip:
        (source,) = vllmrt_sources(self.settings(**changed))
        return source.probe(request)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return Caches(tmp_path)


def set_main(snapshot: Path, commit: str) -> None:
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(commit)


def test_without_a_snapshot_it_names_every_place(caches: Caches) -> None:
    answer = caches.probe()
    assert isinstance(answer, Skip)
    repository = "models--org--name"
    assert answer.reason == (
        f"no usable snapshot in {caches.store / 'hub' / repository} and {caches.by_default / repository}"
    )


def test_a_place_that_is_both_is_named_once(caches: Caches) -> None:
    answer = caches.probe(hf_home=caches.store)
    assert isinstance(answer, Skip)
    assert answer.reason == f"no usable snapshot in {caches.store / 'hub' / 'models--org--name'}"


def test_the_store_comes_first(caches: Caches) -> None:
    snapshot = caches.add(caches.store / "hub", OLD, age=100)
    caches.add(caches.by_default, NEW)
    resolved = caches.resolve()
    assert resolved.path == snapshot
    assert resolved.candidate.hf_home == caches.store


def test_hub_cache_beats_home_beats_default(caches: Caches) -> None:
    hub, home = caches.root / "elsewhere" / "hub", caches.root / "hf"
    in_default = caches.add(caches.by_default, OLD)
    in_home = caches.add(home / "hub", OLD)
    in_hub = caches.add(hub, OLD)
    assert caches.resolve().path == in_default
    assert caches.resolve(hf_home=home).path == in_home
    assert caches.resolve(hf_home=home, hf_hub_cache=hub).path == in_hub


def test_the_default_is_where_huggingface_hub_has_it(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constants.py: HF_HOME defaults to ``$XDG_CACHE_HOME/huggingface``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches.root / "xdg"))
    snapshot = caches.add(caches.root / "xdg" / "huggingface" / "hub", OLD)
    settings = load(dict(os.environ), {"models_dir": str(caches.store)}).settings
    (source,) = vllmrt_sources(settings)
    answer = source.probe(REQUEST)
    assert not isinstance(answer, Skip), answer.reason
    assert [candidate.path for candidate in answer] == [snapshot]


def test_main_beats_the_newest(caches: Caches) -> None:
    old = caches.add(caches.by_default, OLD, age=100)
    new = caches.add(caches.by_default, NEW)
    assert caches.resolve().path == new
    set_main(old, OLD)
    resolved = caches.resolve()
    assert resolved.path == old
    assert resolved.manifest.revision == OLD


@pytest.mark.parametrize(("revision", "expected"), [("main", OLD), (OLD, OLD), (NEW, NEW)])
def test_a_revision_is_a_ref_or_a_commit(caches: Caches, revision: str, expected: str) -> None:
    set_main(caches.add(caches.by_default, OLD), OLD)
    caches.add(caches.by_default, NEW)
    assert caches.resolve(revision).manifest.revision == expected


def test_a_revision_that_is_not_there_is_skipped(caches: Caches) -> None:
    caches.add(caches.by_default, OLD)
    answer = caches.probe(ModelRequest("org/name", revision="v3"))
    assert isinstance(answer, Skip)


def test_a_snapshot_that_is_broken_gives_way_to_an_older_one(caches: Caches) -> None:
    """A download that was interrupted leaves just that."""
    old = caches.add(caches.by_default, OLD, age=100)
    new = caches.add(caches.by_default, NEW)
    shard = new / "model-00002-of-00002.safetensors"
    corrupt(shard.resolve(), cut=1)
    resolved = caches.resolve()
    assert resolved.path == old
    rejected, chosen = resolved.attempts
    assert (rejected.outcome, chosen.outcome) == ("rejected", "chosen")
    assert str(new) in rejected.reason
    assert shard.name in rejected.reason


def test_an_explicit_revision_that_is_broken_gives_way_to_nothing(caches: Caches) -> None:
    caches.add(caches.by_default, OLD, age=100)
    new = caches.add(caches.by_default, NEW)
    (new / "tokenizer.json").unlink()
    with pytest.raises(ModelRejected):
        caches.resolve(NEW)


def test_links_to_blobs_are_followed_and_nothing_is_written(caches: Caches) -> None:
    snapshot = caches.add(caches.by_default, OLD)
    assert (snapshot / "config.json").is_symlink()
    before = fingerprint(caches.by_default)
    assert caches.resolve().path == snapshot
    assert fingerprint(caches.by_default) == before


@pytest.mark.parametrize("target", ["models--org--other/blobs/stolen", "../../passwd"])
def test_a_link_out_of_the_repository_is_refused(caches: Caches, target: str) -> None:
    snapshot = caches.add(caches.by_default, OLD)
    elsewhere = caches.by_default / target
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").resolve().rename(elsewhere)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(elsewhere)
    with pytest.raises(ModelRejected) as caught:
        caches.resolve()
    assert "config.json: is a symbolic link out of the model" in str(caught.value.attempts)


def test_readers_of_the_env_file_get_the_home(caches: Caches) -> None:
    snapshot = caches.add(caches.store / "hub", OLD)
    assert envfile.contents(caches.resolve(), directory_name="name") == {
        "HF_HOME": str(caches.store),
        "VLLM_MODEL": "name",
        "VLLM_MODEL_ID": "org/name",
        "_VLLM_RESOLVED_MODEL": "org/name",
        "_VLLM_RESOLVED_VIA": "hf-cache",
        "_VLLM_RESOLVED_PATH": str(snapshot),
        "_VLLM_MODEL_IDENTITY": "org/name",
    }


def test_a_cache_that_no_home_leads_to_is_given_by_its_path(caches: Caches) -> None:
    snapshot = caches.add(caches.root / "flat", OLD)
    values = envfile.contents(caches.resolve(hf_hub_cache=caches.root / "flat"), directory_name="name")
    assert "HF_HOME" not in values
    assert values["VLLM_MODEL_PATH"] == values["_VLLM_RESOLVED_MODEL"] == str(snapshot)


def test_a_cache_that_may_not_be_read_does_not_hide_the_other(caches: Caches) -> None:
    """In a container HOME is often that of root, and the process another user. A name too long stops root as well."""
    snapshot = caches.add(caches.store / "hub", OLD)
    answer = caches.probe(hf_home=caches.root / ("x" * 300))
    assert not isinstance(answer, Skip)
    assert [candidate.path for candidate in answer] == [snapshot]


def test_a_user_without_a_home_can_use_the_store(caches: Caches) -> None:
    """A uid that the container does not know, with HOME unset: there is no home to look in."""
    snapshot = caches.add(caches.store / "hub", OLD)
    script = (
        "import sys; from pathlib import Path\n"
        "import pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from vllmrt.settings import Settings\n"
        "from vllmrt.types import ModelRequest\n"
        "from vllmrt_source_hf_cache import vllmrt_sources\n"
        "source, = vllmrt_sources(Settings(models_dir=Path(sys.argv[1])))\n"
        "print(*(candidate.path for candidate in source.probe(ModelRequest('org/name'))))\n"
    )
    command = [sys.executable, "-c", script, str(caches.store)]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(snapshot), done.stderr


def test_two_ids_that_share_a_directory_are_not_taken_for_each_other(caches: Caches) -> None:
    """The layout writes / as --; the Hub allows no -- in a name, so such an id cannot be in a cache."""
    caches.add(caches.by_default, OLD).parents[1].rename(caches.by_default / "models--org--sub--name")
    assert isinstance(caches.probe(ModelRequest("org--sub/name")), Skip)
