"""``vllm-resolve-model`` against the reference's chapter "Model provisioning", a test for every row of its tables."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import envreader
import pytest
from compatkit import MODEL, MODEL_ID, ORG, RESOLVE, SERVE, User
from fakehub import FakeHub

from vllmrt.testing import make_model
from vllmrt.testing.models import INDEX, shard_name, write_json, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.test_machine import Done
    from s3server import Bucket, S3Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolved(done: Done, user: User) -> dict[str, str]:
    """Return what the env file says after a resolve that found the model."""
    assert (done.code, done.out) == (0, ""), done.err
    return envreader.read(user.env_file.read_text())


def refused(done: Done, *words: str) -> None:
    """Hold that the script ended as the contract says, and that its message has these words."""
    assert (done.code, done.out) == (1, ""), done.err
    for word in words:
        assert word in done.err


def snapshot(home: Path) -> Path:
    """Put the model into a Hugging Face cache below ``home/hub``."""
    path = home / "hub" / f"models--{ORG}--{MODEL}" / "snapshots" / COMMIT
    return make_model(path)


# -- Source table -------------------------------------------------------------------------


def flox(user: User) -> None:
    snapshot(user.flox / "share" / "models")
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="flox", FLOX_ENV=None), "FLOX_ENV is not set")
    values = resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="flox"), user)
    assert values["HF_HOME"] == str(user.flox / "share" / "models")
    assert "VLLM_MODEL_PATH" not in values


def local(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), f"nothing at {user.local}")
    user.local.mkdir()
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), "rejected", "config.json")
    user.have_model()
    values = resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), user)
    assert values["VLLM_MODEL_PATH"] == str(user.local)
    assert "HF_HOME" not in values


def hf_cache(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="hf-cache"), "no usable snapshot")
    snapshot(user.models)
    values = resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="hf-cache"), user)
    assert values["HF_HOME"] == str(user.models)
    assert "VLLM_MODEL_PATH" not in values


def hf_hub(user: User) -> None:
    origin = make_model(user.root / "origin")
    with FakeHub() as hub:
        hub.add(MODEL_ID, origin)
        online: dict[str, str | None] = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": None}
        values = resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="hf-hub", **online), user)
    assert values["VLLM_MODEL_PATH"] == str(user.local)
    for file in origin.iterdir():
        assert (user.local / file.name).read_bytes() == file.read_bytes()


SOURCES = {
    "flox | $FLOX_ENV/share/models/hub/models--<slug>/snapshots/ | FLOX_ENV not set | sets HF_HOME": flox,
    "local | $VLLM_MODELS_DIR/<VLLM_MODEL>/ | missing or fails validation | sets VLLM_MODEL_PATH": local,
    "hf-cache | $VLLM_MODELS_DIR/hub/models--<slug>/snapshots/ | no usable snapshot | sets HF_HOME": hf_cache,
    "hf-hub | downloads | swapped into $VLLM_MODELS_DIR/<VLLM_MODEL>/": hf_hub,
}


@pytest.mark.parametrize("row", SOURCES.values(), ids=SOURCES)
def test_source(row: Callable[[User], None], user: User) -> None:
    row(user)
    values = envreader.read(user.env_file.read_text())
    assert values["_VLLM_RESOLVED_VIA"] == row.__name__.replace("_", "-")
    assert (values["VLLM_MODEL"], values["VLLM_MODEL_ID"]) == (MODEL, MODEL_ID)


def test_source_r2(user: User, s3_server: S3Server, bucket: Bucket) -> None:
    bucket.put_tree(f"models/{MODEL}/", make_model(user.root / "origin"))
    store = {"R2_BUCKET": bucket.name, "R2_MODELS_PREFIX": "models", "R2_ENDPOINT_URL": s3_server.endpoint}
    environ: dict[str, str | None] = {**s3_server.environ(user.root), **store, "VLLM_MODEL_SOURCES": "r2"}
    for name in ("R2_BUCKET", "R2_MODELS_PREFIX"):
        refused(user.run(RESOLVE, **environ | {name: None}), f"skipped: {name} is not set")
    refused(user.run(RESOLVE, **environ | {"AWS_SECRET_ACCESS_KEY": "wrong"}), "r2", "failed")
    values = resolved(user.run(RESOLVE, **environ), user)
    assert (values["VLLM_MODEL_PATH"], values["_VLLM_RESOLVED_VIA"]) == (str(user.local), "r2")


def test_the_sources_are_asked_in_the_order_of_the_scripts_own_default(user: User) -> None:
    done = user.run(RESOLVE)
    refused(done)
    asked = [line.split()[0] for line in done.err.splitlines()]
    assert [word for word in asked if word in {"package", "flox", "local", "hf-cache", "r2", "hf-hub"}] == [
        "flox",
        "local",
        "hf-cache",
        "r2",
        "hf-hub",
    ]


def test_the_first_source_that_has_the_model_whole_wins(user: User) -> None:
    user.have_model()
    snapshot(user.models)
    assert resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="hf-cache, local"), user)["_VLLM_RESOLVED_VIA"] == "hf-cache"
    (user.models / "hub" / f"models--{ORG}--{MODEL}" / "snapshots" / COMMIT / "config.json").unlink()
    assert resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="hf-cache, local"), user)["_VLLM_RESOLVED_VIA"] == "local"


# -- Environment variables ----------------------------------------------------------------

REQUIRED = ["VLLM_MODEL | model name", "VLLM_MODELS_DIR | base directory for local models and HF cache"]


@pytest.mark.parametrize("row", REQUIRED)
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_required_variable(row: str, value: str | None, user: User) -> None:
    name = row.split(" | ", maxsplit=1)[0]
    user.have_model()
    refused(user.run(RESOLVE, **{name: value}), f"{name} is not set", f"export {name}=")


def test_everything_that_is_missing_is_named_at_once(user: User) -> None:
    names = ("VLLM_MODEL", "VLLM_MODELS_DIR", "VLLM_MODEL_ORG", "FLOX_ENV_CACHE")
    refused(user.run(RESOLVE, **dict.fromkeys(names)), *(f"{name} is not set" for name in names))


def model_id(user: User) -> None:
    values = resolved(user.run(RESOLVE, VLLM_MODEL_ID="other/thing", VLLM_MODEL_ORG=None), user)
    assert (values["VLLM_MODEL_ID"], values["VLLM_MODEL_PATH"]) == ("other/thing", str(user.local))


def model_org(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_ORG=None), "VLLM_MODEL_ORG is not set, and neither is VLLM_MODEL_ID")
    assert resolved(user.run(RESOLVE), user)["VLLM_MODEL_ID"] == MODEL_ID


def model_sources(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="flox,hf-cache"), "flox", "hf-cache")
    assert resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES=" hf-cache , local,"), user)["_VLLM_RESOLVED_VIA"] == "local"


def flox_env(user: User) -> None:
    snapshot(user.root / "elsewhere" / "share" / "models")
    done = user.run(RESOLVE, FLOX_ENV=str(user.root / "elsewhere"))
    assert resolved(done, user)["HF_HOME"] == str(user.root / "elsewhere" / "share" / "models")


def flox_env_cache(user: User) -> None:
    refused(user.run(RESOLVE, FLOX_ENV_CACHE=None), "FLOX_ENV_CACHE is not set, and neither is VLLM_MODEL_ENV_FILE")
    resolved(user.run(RESOLVE), user)


def env_file(user: User) -> None:
    path = user.root / "elsewhere" / "model.env"
    assert user.run(RESOLVE, VLLM_MODEL_ENV_FILE=str(path), FLOX_ENV_CACHE=None).code == 0
    assert envreader.read(path.read_text())["VLLM_MODEL_PATH"] == str(user.local)


def r2_bucket(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="r2", R2_MODELS_PREFIX="x"), "skipped: R2_BUCKET is not set")


def r2_models_prefix(user: User) -> None:
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="r2", R2_BUCKET="x"), "skipped: R2_MODELS_PREFIX is not set")


def r2_endpoint_url(user: User) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}
    place = {"R2_BUCKET": "b", "R2_MODELS_PREFIX": "p", "R2_ENDPOINT_URL": "http://127.0.0.1:9"}
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="r2", **keys, **place), "127.0.0.1:9")


def lock_timeout(user: User) -> None:
    from vllmrt.identity import identity_hash

    lock = user.models / ".locks" / f"{identity_hash(MODEL_ID)}.lock"
    lock.parent.mkdir()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        try:
            refused(user.run(RESOLVE, VLLM_RESOLVE_LOCK_TIMEOUT="0"), str(lock), "VLLM_RESOLVE_LOCK_TIMEOUT")
        finally:
            holder.kill()
    resolved(user.run(RESOLVE, VLLM_RESOLVE_LOCK_TIMEOUT="0"), user)
    refused(user.run(RESOLVE, VLLM_RESOLVE_LOCK_TIMEOUT="-1"), "VLLM_RESOLVE_LOCK_TIMEOUT='-1'")


def skip_tokenizer_check(user: User) -> None:
    shutil.rmtree(user.local)
    make_model(user.local, tokenizer=False)
    refused(user.run(RESOLVE), "tokenizer", "VLLM_SKIP_TOKENIZER_CHECK=1")
    refused(user.run(RESOLVE, VLLM_SKIP_TOKENIZER_CHECK="true"), "VLLM_SKIP_TOKENIZER_CHECK='true' is not 0 or 1")
    resolved(user.run(RESOLVE, VLLM_SKIP_TOKENIZER_CHECK="1"), user)


def keep_logs(user: User) -> None:
    resolved(user.run(RESOLVE), user)
    log = user.cache / f"{user.env_file.name}.log"
    assert not log.exists()
    done = user.run(RESOLVE, VLLM_KEEP_LOGS="1")
    assert (done.code, str(log) in done.err) == (0, True)
    outcomes = [json.loads(line).get("outcome") for line in log.read_text().splitlines()]
    assert outcomes[-2:] == ["chosen", None]
    (user.local / "config.json").unlink()
    refused(user.run(RESOLVE), str(log))
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["class"]) == ("error", "ModelRejected")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def hf_token(user: User) -> None:
    with FakeHub() as hub:
        hub.add("acme/llama", make_model(user.root / "origin"), gated="manual")
        hub.tokens["hf_s3cr3t"] = {MODEL_ID}
        online: dict[str, str | None] = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": None}
        online |= {"VLLM_MODEL_SOURCES": "hf-hub", "VLLM_MODELS_DIR": str(user.root / "empty")}
        refused(user.run(RESOLVE, **online), "gated", "HF_TOKEN")
        done = user.run(RESOLVE, HF_TOKEN="hf_s3cr3t", VLLM_KEEP_LOGS="1", **online)
    resolved(done, user)
    everything = done.err + "".join(file.read_text() for file in user.cache.iterdir() if file.is_file())
    assert "hf_s3cr3t" not in everything


def revision(user: User) -> None:
    path = user.models / f"{MODEL}"
    values = resolved(user.run(RESOLVE, VLLM_MODEL_REVISION="v1.0"), user)
    assert (values["_VLLM_MODEL_IDENTITY"], values["VLLM_MODEL_PATH"]) == (f"{MODEL_ID}@v1.0", str(path))


OPTIONAL = {
    "VLLM_MODEL_ID | derived from $VLLM_MODEL_ORG/$VLLM_MODEL": model_id,
    "VLLM_MODEL_ORG | required when VLLM_MODEL_ID is empty": model_org,
    "VLLM_MODEL_SOURCES | comma-separated source order": model_sources,
    "FLOX_ENV | required for flox source": flox_env,
    "FLOX_ENV_CACHE | required when VLLM_MODEL_ENV_FILE is not set": flox_env_cache,
    "VLLM_MODEL_ENV_FILE | override env file output path": env_file,
    "R2_BUCKET | required for r2 source": r2_bucket,
    "R2_MODELS_PREFIX | required for r2 source": r2_models_prefix,
    "R2_ENDPOINT_URL | endpoint URL for R2": r2_endpoint_url,
    "VLLM_RESOLVE_LOCK_TIMEOUT | 300 | seconds to wait for the per-model lock": lock_timeout,
    "VLLM_SKIP_TOKENIZER_CHECK | 0 | 1 skips tokenizer asset validation": skip_tokenizer_check,
    "VLLM_KEEP_LOGS | 0 | 1 keeps logs on success, always kept on failure": keep_logs,
    "HF_TOKEN | gated model access": hf_token,
    "VLLM_MODEL_REVISION": revision,
}


@pytest.mark.parametrize("row", OPTIONAL.values(), ids=OPTIONAL)
def test_optional_variable(row: Callable[[User], None], user: User) -> None:
    user.have_model()
    row(user)


@pytest.mark.parametrize("name", ["a/b", "a\\b", ".", "..", "a\tb", "a\nb", "a\x7f"], ids=ascii)
def test_a_model_name_is_a_single_safe_path_element(name: str, user: User) -> None:
    user.have_model()
    refused(user.run(RESOLVE, VLLM_MODEL=name), "VLLM_MODEL", "hint")
    assert [file.name for file in user.cache.iterdir()] == []


# what another script reads cannot stop this one
@pytest.mark.parametrize("variable", ["VLLM_PORT=tcp://10.0.0.1:8000", "VLLM_DRY_RUN=1", "VLLM_MAX_MODEL_LEN=0"])
def test_variables_of_the_other_scripts_are_not_looked_at(variable: str, user: User) -> None:
    name, _, value = variable.partition("=")
    user.have_model()
    resolved(user.run(RESOLVE, **{name: value}), user)


# -- Model validation ---------------------------------------------------------------------


def without(*names: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return spoil


def no_weights(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()


def numbered(path: Path) -> None:
    (path / INDEX).unlink()
    (path / shard_name(2, 2)).unlink()


REJECTED = {
    "config.json must exist at the directory root": (without("config.json"), "config.json"),
    "at least one recognized tokenizer file must exist": (
        without("tokenizer.json", "tokenizer_config.json"),
        "tokenizer",
    ),
    "if *.index.json exists: all shards in weight_map must exist": (without(shard_name(2, 2)), shard_name(2, 2)),
    "-00001-of-NNNNN without an index: all N shards must exist": (numbered, shard_name(2, 2)),
    "otherwise: at least one weight-like file must exist": (no_weights, "weights"),
}


@pytest.mark.parametrize(("spoil", "word"), REJECTED.values(), ids=REJECTED)
def test_validation_rejects(spoil: Callable[[Path], None], word: str, user: User) -> None:
    spoil(user.have_model())
    refused(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), "rejected", word)
    assert list(user.cache.glob("*.env")) == []


TOKENIZERS = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json + merges.txt",
    "vocab.txt",
    "tokenizer_config.json + vocab.json",
    "tokenizer_config.json + vocab.txt",
]


@pytest.mark.parametrize("folder", ["<dir>/", "<dir>/tokenizer/", "<dir>/tokenizer_files/"])
@pytest.mark.parametrize("row", TOKENIZERS)
def test_tokenizer_that_is_recognised(row: str, folder: str, user: User) -> None:
    make_model(user.local, tokenizer=False)
    place = user.local / folder.removeprefix("<dir>/")
    place.mkdir(exist_ok=True)
    write_tokenizer(user.root / "whole")
    for name in row.split(" + "):
        whole = user.root / "whole" / name
        content = whole.read_bytes() if whole.exists() else json.dumps({"a": 0}).encode()
        (place / name).write_bytes(content)
    resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), user)


@pytest.mark.parametrize("row", [".safetensors", ".bin", ".pt", ".pth", ".gguf"])
def test_weight_like_file(row: str, user: User) -> None:
    make_model(user.local, shards=1)
    if row != ".safetensors":
        (user.local / "model.safetensors").unlink()
        (user.local / f"pytorch_model{row}").write_bytes(b"GGUF" + bytes(range(64)))
    resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), user)


# -- Env file output ----------------------------------------------------------------------


def test_env_file_name_is_the_slug_and_twelve_digits_of_sha256_of_the_model_id(user: User) -> None:
    user.have_model()
    done = user.run(RESOLVE, VLLM_MODEL_ID="acme inc/llama")
    assert done.code == 0, done.err
    digest = user.bash("printf %s 'acme inc/llama' | sha256sum | cut -c 1-12").out.strip()
    assert user.env_file.name == f"vllm-model.acme-inc-llama.{digest}.env"


ENV_FILE = {
    "HF_HOME | when resolved via flox or hf-cache": "hf-cache",
    "VLLM_MODEL": None,
    "VLLM_MODEL_ID": None,
    "VLLM_MODEL_PATH | when resolved locally": "local",
    "_VLLM_RESOLVED_MODEL": None,
    "_VLLM_RESOLVED_VIA": None,
}


@pytest.mark.parametrize("source", ["local", "hf-cache"])
@pytest.mark.parametrize(("row", "only"), ENV_FILE.items(), ids=ENV_FILE)
def test_env_file_variable(row: str, only: str | None, source: str, user: User) -> None:
    name = row.split(" | ", maxsplit=1)[0]
    user.have_model()
    snapshot(user.models)
    values = resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES=source), user)
    assert (name in values) == (only in {None, source})
    in_bash = user.bash(f'. "$1"; printf %s "${{{name}-(unset)}}"'.replace("$1", str(user.env_file)))
    assert in_bash.out == values.get(name, "(unset)")


def test_env_file_is_written_atomically_and_private(user: User) -> None:
    user.have_model()
    path = user.write_env_file("old")
    path.unlink()
    path.symlink_to(user.root / "victim")
    done = user.run("/bin/bash", "-c", f"umask 000; {RESOLVE}")
    assert done.code == 0, done.err
    assert not (user.root / "victim").exists()
    assert (path.is_symlink(), stat.S_IMODE(path.lstat().st_mode)) == (False, 0o600)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# generated by")
    assert all(line.startswith("export ") and line.endswith("'") for line in lines[1:])
    assert [file.name for file in user.cache.iterdir() if file.is_file()] == [path.name]


# -- Gated models, offline operation, locking ---------------------------------------------


@pytest.mark.parametrize("sources", ["local", "local,hf-cache"])
def test_offline_operation(sources: str, user: User) -> None:
    with FakeHub() as hub:
        online: dict[str, str | None] = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": None}
        refused(user.run(RESOLVE, VLLM_MODEL_SOURCES=sources, **online), "no source has")
        user.have_model()
        resolved(user.run(RESOLVE, VLLM_MODEL_SOURCES=sources, **online), user)
        assert hub.calls("") == []


def test_locking_two_at_once_find_the_same(user: User) -> None:
    user.have_model()
    done = user.bash(f"{RESOLVE} & {RESOLVE} & wait -n && wait -n")
    assert done.code == 0, done.err
    assert envreader.read(user.env_file.read_text())["VLLM_MODEL_PATH"] == str(user.local)


def test_staging_lies_in_the_store_and_is_private(user: User) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):  # a model by its names, and none by its bytes
        write_json(user.root / "origin" / name, {})
    with FakeHub() as hub:
        hub.add(MODEL_ID, user.root / "origin")
        online: dict[str, str | None] = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": None}
        done = user.run("/bin/bash", "-c", f"umask 000; {RESOLVE}", VLLM_MODEL_SOURCES="hf-hub", **online)
    refused(done, "rejected")
    assert not user.local.exists()
    (staging,) = (user.models / ".staging").iterdir()
    assert stat.S_IMODE(staging.stat().st_mode) & 0o077 == 0


# -- usage --------------------------------------------------------------------------------


def test_an_argument_is_refused(user: User) -> None:
    user.have_model()
    refused(user.run(RESOLVE, "acme/llama"), "takes no argument")
    done = user.run(RESOLVE, "-h")
    assert (done.code, done.err) == (0, "")
    assert "usage: vllm-resolve-model" in done.out


def test_a_cache_that_cannot_be_written(user: User) -> None:
    user.have_model()
    user.cache.rmdir()
    user.cache.write_text("")
    refused(user.run(RESOLVE), "cannot be written", "FLOX_ENV_CACHE")


def test_what_it_writes_is_what_vllm_serve_reads(user: User) -> None:
    user.have_model()
    assert user.run(SERVE, "--dry-run").code == 1
    resolved(user.run(RESOLVE), user)
    assert str(user.local) in user.run(SERVE, "--dry-run").err
