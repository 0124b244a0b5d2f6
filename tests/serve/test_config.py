import os
import stat
import threading

import pytest

from vllmrt.errors import ServeRefused
from vllmrt.serve.argv import OWNED
from vllmrt.serve.config import DEFAULT, NAME, config_keys, default_keys, ensure_config
from vllmrt.serve.engine import engine_flags
from vllmrt.serve.known import SETTLED, check_keys, flag_names, needs_flags, overridden
from vllmrt.settings import Settings

FLAGS = frozenset({"--dtype", "--port", "--hf-overrides", "--enable-log-requests", "--max-num-seqs", "--max-model-len"})


def write(tmp_path, content, name="my.yaml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_first_run_writes_the_default(tmp_path):
    path = ensure_config(Settings(flox_env_cache=tmp_path / "new" / "cache"))
    assert path == tmp_path / "new" / "cache" / NAME
    assert path.read_bytes() == DEFAULT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [NAME]


def test_default_says_what_it_holds():
    import yaml

    assert list(yaml.safe_load(DEFAULT)) == default_keys()
    for name in (b"disable-log-requests", b"quantization", b"dtype"):
        assert name in DEFAULT


def test_existing_file_is_never_written(tmp_path):
    write(tmp_path, "dtype: auto\n", NAME)
    path = ensure_config(Settings(flox_env_cache=tmp_path))
    assert path.read_text() == "dtype: auto\n"


def test_many_first_runs_at_once_leave_one_file(tmp_path):
    settings = Settings(flox_env_cache=tmp_path)
    threads = [threading.Thread(target=ensure_config, args=(settings,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / NAME).read_bytes() == DEFAULT
    assert os.listdir(tmp_path) == [NAME]


def test_filesystem_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert ensure_config(Settings(flox_env_cache=tmp_path)).read_bytes() == DEFAULT
    assert os.listdir(tmp_path) == [NAME]


def test_dry_run_writes_nothing(tmp_path):
    cache = tmp_path / "cache"
    assert ensure_config(Settings(flox_env_cache=cache), dry_run=True) == cache / NAME
    assert not cache.exists()


def test_named_file_is_used(tmp_path):
    path = write(tmp_path, "dtype: auto\n")
    assert ensure_config(Settings(config_file=path, flox_env_cache=tmp_path / "cache")) == path
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("name", "fault"), [("missing.yaml", "does not exist"), ("folder.yaml", "is not a file"), ("x.json", "x.json")]
)
def test_named_file_that_cannot_be_used(tmp_path, name, fault, dry_run):
    (tmp_path / "folder.yaml").mkdir()
    write(tmp_path, "{}", "x.json")
    with pytest.raises(ServeRefused, match=fault) as caught:
        ensure_config(Settings(config_file=tmp_path / name), dry_run=dry_run)
    assert name in caught.value.message
    assert caught.value.exit_code == 20


def test_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path, "dtype: auto\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ServeRefused, match="permission denied"):
        ensure_config(Settings(config_file=path))


def test_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ServeRefused, match="is not a file"):
        ensure_config(Settings(config_file=tmp_path / "pipe.yaml"))


def test_dangling_link_in_the_cache(tmp_path):
    (tmp_path / NAME).symlink_to(tmp_path / "gone")
    with pytest.raises(ServeRefused, match="is not a file"):
        ensure_config(Settings(flox_env_cache=tmp_path))
    assert not (tmp_path / "gone").exists()


def test_cache_that_cannot_be_written(tmp_path):
    write(tmp_path, "", "file")
    with pytest.raises(ServeRefused, match="cannot be written") as caught:
        ensure_config(Settings(flox_env_cache=tmp_path / "file"))
    assert "FLOX_ENV_CACHE" in caught.value.hint


def test_default_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("yaml.safe_load", None)
    assert config_keys(write(tmp_path, DEFAULT)) == default_keys()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("dtype: auto\nport: 1\n", ["dtype", "port"]),
        ("hf-overrides:\n  a: {b: 1}\n", ["hf-overrides"]),
        ("known: true\nold: false\nnone: []\n", ["known"]),
        ("zero: 0\nnothing:\n", ["zero", "nothing"]),
    ],
)
def test_keys_that_become_flags(tmp_path, text, keys):
    assert config_keys(write(tmp_path, text)) == keys


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: [1\nb: 2\n", "not YAML in line 2"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: \x00", "not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML in line 1"),
        ("a: 2020-13-45\n", "not YAML"),
        ("[" * 50_000, "not YAML"),
        ("- a\n- b\n", "not a mapping"),
        ("just text", "not a mapping"),
        ("", "has no key"),
        ("# a comment\n", "has no key"),
        ("1: x\n", "not a text"),
        ("on: x\n", "not a text"),
        ("a: " + "x" * (1 << 20), "more than 1 MiB"),
    ],
)
def test_files_that_vllm_would_fail_on(tmp_path, content, fault):
    path = write(tmp_path, content)
    with pytest.raises(ServeRefused, match=fault) as caught:
        config_keys(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "key",
    ["dtype", "--dtype", "hf_overrides", "hf-overrides", "hf-overrides.a_b", "max-num-s", "no-enable-log-requests"],
)
def test_keys_that_vllm_has(key):
    check_keys([key], FLAGS | {"--no-enable-log-requests"}, where="x")


@pytest.mark.parametrize("key", ["dtyp3", "max-m", "max", "Dtype", "hf-overrides-x", "a key", ""])
def test_keys_that_vllm_does_not_have(key):
    flags = FLAGS | {"--max-m1", "--max-m2"}
    with pytest.raises(ServeRefused, match="does not have"):
        check_keys(["dtype", key], flags, where="x")


def test_every_unknown_key_is_named():
    with pytest.raises(ServeRefused) as caught:
        check_keys(["one", "dtype", "two"], FLAGS, where="vllm-config.yaml")
    assert caught.value.message == "vllm-config.yaml: this vLLM does not have 'one', 'two'"
    assert "help=all" in caught.value.hint


@pytest.mark.parametrize("key", ["disable-log-requests", "disable_log_requests", "--disable-log-requests"])
def test_the_key_of_old_configs_is_explained(key):
    with pytest.raises(ServeRefused) as caught:
        check_keys([key], FLAGS, where="x")
    assert "0.11" in caught.value.hint
    assert "enable-log-requests" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "extra", "needed"),
    [
        (default_keys(), [], False),
        (["gpu_memory_utilization", "host", "port", "dtype", "quantization"], [], False),
        (["disable-log-requests"], [], True),
        (default_keys(), ["--enforce-eager"], True),
        (default_keys(), ["--port", "9"], False),
        (default_keys(), ["-O3"], False),
        (default_keys(), ["--omni", "--stage-configs-path", "x"], False),
    ],
)
def test_flags_are_only_asked_for_when_they_decide_something(keys, extra, needed):
    assert needs_flags(keys, extra) is needed


def test_flags_among_extra_arguments():
    extra = ["--hf_overrides.a_b", "--x", "-O3", "--port", "1", "--seed", "-1", "--no-enforce-eager", "--a=--b"]
    assert flag_names(extra) == ["--hf-overrides", "--x", "--seed", "--no-enforce-eager", "--a"]


def test_keys_without_effect_are_named():
    warnings = overridden(["max-model-len", "dtype", "host", "port", "kv_cache_dtype", "api-key"], where="c.yaml")
    assert [warning.split("'")[1] for warning in warnings[:-1]] == ["max-model-len", "kv_cache_dtype"]
    assert "VLLM_MAX_MODEL_LEN" in warnings[0]
    assert "instead of VLLM_API_KEY" in warnings[-1]
    assert overridden(default_keys(), where="c.yaml") == []


def test_the_real_vllm_has_every_flag_that_we_rely_on(real_engine, tmp_path):
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    flags = engine_flags(real_engine, tmp_path, environ)
    assert flags is not None
    assert len(flags) > 300
    assert set(OWNED) <= flags
    assert {f"--{key}" for key in SETTLED} <= flags
    assert "--api-key" in flags
    assert "--disable-log-requests" not in flags
    assert engine_flags(real_engine, tmp_path, environ, dry_run=True) == flags
    # An abbreviation counts as ours; that costs nothing as long as no flag of vLLM is one itself.
    assert [flag for flag in flags for ours in {*OWNED, "--api-key"} if ours.startswith(flag) and ours != flag] == []
