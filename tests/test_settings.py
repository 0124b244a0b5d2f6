"""The table against the reference: every variable of its README, with its default and its bound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from vllmrt import layers
from vllmrt.errors import ConfigError
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = {row.field: row for row in layers.rows()}
SECRETS = sorted(row.field for row in ROWS.values() if row.var.secret)


class Reference(NamedTuple):
    """A row of a table of the reference README.

    `bad` is just outside its bound; None where the reference knows no bound that a shell could break.
    `parsed` is what `good` becomes, and `default` what we take for unset, as DESIGN.md §5 has it.
    """

    name: str
    default: object
    good: str
    parsed: object
    bad: str | None = None


TABLES: dict[str, list[Reference]] = {
    "model": [
        Reference("VLLM_MODEL", None, "Phi-3.5-mini-instruct-AWQ", "Phi-3.5-mini-instruct-AWQ", "a\tb"),
        Reference("VLLM_MODEL_ORG", None, "microsoft", "microsoft", "a\x7fb"),
        Reference("VLLM_MODEL_ID", None, "org/name", "org/name", "org/\nname"),
        Reference(
            "VLLM_MODEL_SOURCES",
            ("package", "flox", "local", "hf-cache", "r2", "hf-hub"),
            "flox, local",
            ("flox", "local"),
            "flox,\x1b[31mlocal",
        ),
        Reference("VLLM_MODELS_DIR", None, "/srv/models", Path("/srv/models"), "/srv/\x00"),
        Reference("VLLM_SERVED_MODEL_NAME", None, "Phi 3.5", "Phi 3.5", "a\rb"),
    ],
    "server": [
        Reference("VLLM_HOST", "127.0.0.1", "0.0.0.0", "0.0.0.0", "a b"),  # noqa: S104
        Reference("VLLM_PORT", 8000, "65535", 65535, "65536"),
        Reference("VLLM_API_KEY", None, "sk-vllm-local-dev", "sk-vllm-local-dev", "a\nb"),
    ],
    "engine": [
        Reference("VLLM_TENSOR_PARALLEL_SIZE", 1, "2", 2, "0"),
        Reference("VLLM_PIPELINE_PARALLEL_SIZE", 1, "2", 2, "0"),
        Reference("VLLM_PREFIX_CACHING", default=False, good="yes", parsed=True, bad="on"),
        Reference("VLLM_KV_CACHE_DTYPE", "auto", "fp8", "fp8", "fp 8"),
        Reference("VLLM_MAX_MODEL_LEN", 4096, "1", 1, "0"),
        Reference("VLLM_MAX_NUM_BATCHED_TOKENS", 4096, "1", 1, "0"),
    ],
    "logging": [
        Reference("VLLM_LOGGING_LEVEL", "WARNING", "DEBUG", "DEBUG", "TRACE"),
        Reference("PROMETHEUS_MULTIPROC_DIR", None, "/run/metrics", Path("/run/metrics"), "/run/\t"),
    ],
    "resolve": [
        Reference("FLOX_ENV", None, "/nix/env", Path("/nix/env"), "/nix/\x00"),
        Reference("FLOX_ENV_CACHE", None, "/nix/cache", Path("/nix/cache"), "/nix/\x1b"),
        Reference("VLLM_MODEL_ENV_FILE", None, "/run/model.env", Path("/run/model.env"), "/run/\n"),
        Reference("R2_BUCKET", None, "bucket", "bucket", "buc\nket"),
        Reference("R2_MODELS_PREFIX", None, "models/v1", "models/v1", "models\t"),
        Reference("R2_ENDPOINT_URL", None, "https://r2.example", "https://r2.example", "https://\x07"),
        Reference("VLLM_RESOLVE_LOCK_TIMEOUT", 300, "0", 0, "-1"),
        Reference("VLLM_SKIP_TOKENIZER_CHECK", default=False, good="1", parsed=True, bad="true"),
        Reference("VLLM_KEEP_LOGS", default=False, good="1", parsed=True, bad="yes"),
        Reference("HF_TOKEN", None, "hf_abc", "hf_abc", "hf_\x00"),
    ],
    "preflight": [
        Reference("VLLM_DRY_RUN", default=False, good="1", parsed=True, bad="2"),
        Reference("VLLM_SKIP_GPU_CHECK", default=False, good="1", parsed=True, bad="no"),
        Reference("VLLM_MIN_FREE_GPU_GB", 4.0, "0", 0.0, "-0.1"),
        Reference("VLLM_MAX_GPU_TEMP_C", 85, "1", 1, "0"),
        Reference("VLLM_MAX_GPU_UTIL_PCT", 95, "100", 100, "101"),
        Reference("VLLM_GPU_FAIL_ON", ("temperature",), "memory,utilization", ("memory", "utilization"), "memory,cold"),
        Reference("VLLM_GPU_DEVICES", (), "0,GPU-1", ("0", "GPU-1"), "0,\x07"),
        Reference("VLLM_ALLOW_OTHER_UID_KILL", default=False, good="1", parsed=True, bad="y"),
        Reference("VLLM_STOP_TIMEOUT", 15, "0", 0, "-1"),
        Reference("VLLM_PROCESS_SIGNATURES", (), "my.custom.launcher,b", ("my.custom.launcher", "b"), "a\x00"),
        Reference("VLLM_PREFLIGHT_LOCKFILE", None, "/tmp/x.lock", Path("/tmp/x.lock"), "/tmp/\x07"),  # noqa: S108
        Reference("VLLM_PREFLIGHT_JSON", default=False, good="1", parsed=True, bad="false"),
        Reference("VLLM_PREFLIGHT_PROXY_CHILD", default=True, good="0", parsed=False, bad="01"),
        Reference("VLLM_START_BIND_TIMEOUT", 60.0, "0.5", 0.5, "0"),
        Reference("VLLM_START_BIND_POLL", 0.2, "1e-3", 0.001, "0.0"),
    ],
    "serve": [
        Reference("VLLM_CONFIG_FILE", None, "/etc/vllm.yaml", Path("/etc/vllm.yaml"), "/etc/\n"),
        Reference("VLLM_ENV_FILE_TRUSTED", default=False, good="true", parsed=True, bad="trusted"),
    ],
    "named elsewhere in its text": [
        Reference("FLOX_ENV_PROJECT", None, "/nix/project", Path("/nix/project"), "/nix/\x1b"),
        Reference("CUDA_VISIBLE_DEVICES", None, "0,1", "0,1", "0\n"),
        Reference("HF_HOME", None, "/hf", Path("/hf"), "/hf\x00"),
    ],
}
REFERENCE = [row for rows in TABLES.values() for row in rows]
STRICT = sorted(
    [
        "VLLM_SKIP_TOKENIZER_CHECK",
        "VLLM_KEEP_LOGS",
        "VLLM_DRY_RUN",
        "VLLM_SKIP_GPU_CHECK",
        "VLLM_ALLOW_OTHER_UID_KILL",
        "VLLM_PREFLIGHT_JSON",
        "VLLM_PREFLIGHT_PROXY_CHILD",
    ]
)
LOOSE = ["VLLM_PREFIX_CACHING", "VLLM_ENV_FILE_TRUSTED"]


def by_variable(row: Reference) -> str:
    return row.name


def own_name(name: str) -> str:
    return f"VLLMRT_{name.removeprefix('VLLM_')}"


def field_of(name: str) -> str:
    return next(row.field for row in ROWS.values() if row.var.old == name)


@pytest.fixture(autouse=True)
def no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return


def load(**environ: str) -> Settings:
    return layers.load(environ).settings


@pytest.mark.parametrize("row", REFERENCE, ids=by_variable)
def test_unset_is_the_default(row: Reference) -> None:
    assert getattr(load(), field_of(row.name)) == row.default
    assert ROWS[field_of(row.name)].default == row.default


@pytest.mark.parametrize("spelling", ["VLLM_", "VLLMRT_"])
@pytest.mark.parametrize("row", REFERENCE, ids=by_variable)
def test_a_good_value_is_taken_under_both_names(row: Reference, spelling: str) -> None:
    name = row.name if spelling == "VLLM_" else own_name(row.name)
    loaded = layers.load({name: row.good})
    assert getattr(loaded.settings, field_of(row.name)) == row.parsed
    assert loaded.origins == {field_of(row.name): name}


@pytest.mark.parametrize("spelling", ["VLLM_", "VLLMRT_"])
@pytest.mark.parametrize("row", [row for row in REFERENCE if row.bad], ids=by_variable)
def test_a_value_outside_the_bound_names_variable_value_and_bound(row: Reference, spelling: str) -> None:
    assert row.bad is not None
    name = row.name if spelling == "VLLM_" else own_name(row.name)
    with pytest.raises(ConfigError) as caught:
        layers.load({name: row.bad})
    message, declared = str(caught.value), ROWS[field_of(row.name)]
    assert message.startswith(name)
    assert message.isprintable()
    assert declared.bounds in message
    assert (ascii(row.bad) in message) != declared.var.secret
    assert caught.value.exit_code == 1


UNSET_BY_BLANK = [row for row in REFERENCE if row.name != "CUDA_VISIBLE_DEVICES"]


def test_an_empty_list_of_visible_gpus_is_not_the_same_as_none() -> None:
    assert load(CUDA_VISIBLE_DEVICES="").cuda_visible_devices == ""
    assert load(VLLMRT_CUDA_VISIBLE_DEVICES="", CUDA_VISIBLE_DEVICES="1").cuda_visible_devices == ""
    assert load().cuda_visible_devices is None


@pytest.mark.parametrize("value", ["-1", "all", "GPU-", "0;1", "12345", "gpu-1", "MIG-a b", "\u0661"])
def test_a_gpu_to_check_is_an_index_or_a_uuid(value: str) -> None:
    with pytest.raises(ConfigError, match=r"VLLM_GPU_DEVICES=.* is not a comma-separated list of indices and UUIDs"):
        load(VLLM_GPU_DEVICES=value)


@pytest.mark.parametrize("row", UNSET_BY_BLANK, ids=by_variable)
def test_an_empty_value_is_unset(row: Reference) -> None:
    loaded = layers.load({row.name: "", own_name(row.name): ""})
    assert loaded.settings == Settings()
    assert not loaded.origins


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize("value", ["true", "false", "yes", "no", "on", "off", "2", "00", " 1", "1 ", "-1", "\u0661"])
def test_a_switch_takes_0_and_1_only(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is not 0 or 1"):
        load(**{name: value})


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize(("value", "means"), [("0", False), ("1", True)])
def test_a_switch_reads_0_and_1(name: str, value: str, means: bool) -> None:  # noqa: FBT001
    assert getattr(load(**{name: value}), field_of(name)) is means


@pytest.mark.parametrize("name", LOOSE)
@pytest.mark.parametrize("value", ["on", "off", "y", "n", "t", "2", "10", "enabled", " true", "null", "none"])
def test_a_truth_value_takes_six_words_only(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is not one of true, false, 1, 0, yes, no"):
        load(**{name: value})


@pytest.mark.parametrize("name", LOOSE)
@pytest.mark.parametrize(
    ("value", "means"), [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("no", False)]
)
def test_a_truth_value_reads_its_six_words(name: str, value: str, means: bool) -> None:  # noqa: FBT001
    assert getattr(load(**{name: value}), field_of(name)) is means


def test_every_boolean_of_the_reference_is_one_of_the_two_kinds() -> None:
    told = {row.name for row in REFERENCE if isinstance(row.default, bool)}
    assert told == {*STRICT, *LOOSE}


INTEGERS = [row.name for row in REFERENCE if type(row.default) is int]


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value", ["1e1", "5.0", "5.5", "0x10", "1_0", "+5", " 5", "5 ", "\uff15", "nan", "inf", "null"]
)
def test_an_integer_is_written_in_digits(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is not an integer"):
        load(**{name: value})


@pytest.mark.parametrize("name", ["VLLMRT_PLUGIN_TIMEOUT", "VLLM_START_BIND_TIMEOUT", "VLLM_START_BIND_POLL"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "Infinity", "1e300", "1e400", "0", "-1", "abc"])
def test_seconds_are_a_finite_number_that_a_thread_can_wait(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        load(**{name: value})


@pytest.mark.parametrize("name", ["VLLM_RESOLVE_LOCK_TIMEOUT", "VLLM_STOP_TIMEOUT"])
def test_whole_seconds_have_an_upper_bound_that_a_clock_can_add(name: str) -> None:
    with pytest.raises(ConfigError, match="is not an integer"):
        load(**{name: "9" * 400})


def test_the_port_says_both_bounds() -> None:
    with pytest.raises(ConfigError, match=r"VLLM_PORT='0' is not an integer from 1 to 65535"):
        load(VLLM_PORT="0")


def test_a_list_without_items_names_no_source() -> None:
    with pytest.raises(ConfigError, match="VLLM_MODEL_SOURCES"):
        load(VLLM_MODEL_SOURCES=" , ,")


def test_items_of_a_list_lose_their_spaces_and_empty_ones_go() -> None:
    assert load(VLLM_MODEL_SOURCES=" flox ,, local,").model_sources == ("flox", "local")


def test_a_log_level_is_read_in_any_case() -> None:
    assert load(VLLM_LOGGING_LEVEL="debug").logging_level == "DEBUG"


@pytest.mark.parametrize("name", ["safe_weights_only", "require_api_key", "vllm", "disable_plugins", "plugin_timeout"])
def test_a_setting_that_the_reference_does_not_know_has_our_name_only(name: str) -> None:
    assert ROWS[name].names == (f"VLLMRT_{name.upper()}",)


def test_no_two_rows_share_a_name_or_a_flag() -> None:
    names = [name for row in ROWS.values() for name in row.names]
    flags = [row.var.flag for row in ROWS.values() if row.var.flag]
    assert len(set(names)) == len(names)
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)


def test_every_row_has_a_meaning_and_its_default_keeps_its_own_bounds() -> None:
    for row in ROWS.values():
        assert row.var.help
        assert row.bounds
        assert msgspec.convert(row.default, row.annotation) == row.default


def test_what_the_table_calls_secret() -> None:
    assert SECRETS == ["api_key", "hf_token", "model_url"]


def by_rich(settings: Settings) -> str:
    from rich.pretty import pretty_repr

    return pretty_repr(settings)


@pytest.mark.parametrize(
    "show",
    [repr, str, format, lambda settings: str(settings.shown()), lambda settings: repr([settings]), by_rich],
    ids=["repr", "str", "format", "shown", "in a list", "rich"],
)
@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_is_never_shown(field: str, show: Any) -> None:
    assert "s3cr3t" not in show(Settings(**{field: "s3cr3t"}))


@pytest.mark.parametrize("field", SECRETS)
def test_it_is_shown_whether_a_secret_is_set(field: str) -> None:
    assert Settings(**{field: "s3cr3t"}).shown()[field] == "********"
    assert Settings().shown()[field] is None


@pytest.mark.parametrize("field", SECRETS)
@pytest.mark.parametrize("where", ["environment", "flag", "file"])
def test_a_secret_that_cannot_be_used_is_not_in_the_error(field: str, where: str, tmp_path: Path) -> None:
    name, flags = ROWS[field].names[0], {}
    environ = {name: "s3cr3t\n"}
    if where == "flag":
        environ, flags = {}, {field: "s3cr3t\n"}
    if where == "file":
        file = tmp_path / "settings.toml"
        file.write_text(f'{field} = ["s3cr3t"]')
        environ = {"VLLMRT_SETTINGS_FILE": str(file)}
    with pytest.raises(ConfigError) as caught:
        layers.load(environ, flags)
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"
    assert "printable" in str(caught.value)


URLS = ["hf_endpoint", "r2_endpoint_url"]


@pytest.mark.parametrize("show", [repr, lambda settings: str(settings.shown()), by_rich], ids=["repr", "shown", "rich"])
@pytest.mark.parametrize("field", URLS)
@pytest.mark.parametrize("user", ["us3r:s3cr3t", "s3cr3t", ":s3cr3t", "us3r:s3/cr3t", "us3r:s3@cr3t"])
def test_a_user_in_a_url_is_never_shown(field: str, show: Any, user: str) -> None:
    shown = show(Settings(**{field: f"https://{user}@store.example:8/x"}))
    assert "https://********@store.example:8/x" in shown
    assert "cr3t" not in shown
    assert "us3r" not in shown


@pytest.mark.parametrize("field", URLS)
def test_a_user_in_a_url_that_cannot_be_used_is_not_in_the_error(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layers.load({ROWS[field].names[-1]: "https://us3r:s3cr3t@store.example/\n"})
    assert "store.example" in str(caught.value)
    assert "cr3t" not in str(caught.value)
    assert "us3r" not in str(caught.value)


def test_a_url_without_a_user_is_shown_as_it_is() -> None:
    assert Settings(hf_endpoint="https://hub.example/a").shown()["hf_endpoint"] == "https://hub.example/a"


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_spelled_as_huggingface_hub_spells_it(name: str) -> None:
    from huggingface_hub import constants

    for word in sorted(constants.ENV_VARS_TRUE_VALUES):
        for spelling in (word, word.lower(), word.title()):
            assert load(**{name: spelling}).hf_hub_offline
    for word in ("0", "OFF", "no", "False"):
        assert not load(**{name: word}).hf_hub_offline


def test_names_of_huggingface_hub_win_in_its_order() -> None:
    assert load(HUGGING_FACE_HUB_TOKEN="older").hf_token == "older"
    assert load(HUGGING_FACE_HUB_TOKEN="older", HF_TOKEN="old").hf_token == "old"
    assert load(HUGGING_FACE_HUB_TOKEN="older", HF_TOKEN="").hf_token == "older"
    assert not load(HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="1").hf_hub_offline


def test_settings_are_a_snapshot() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]


def test_the_cache_is_floxs_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings().cache == tmp_path / "vllmrt"
    assert Settings(flox_env_cache=Path("/nix/cache")).cache == Path("/nix/cache")


def test_the_store_is_the_named_one_or_floxs_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    project = Path("/nix/project")
    assert Settings().store == tmp_path / "vllmrt" / "models"
    assert Settings(flox_env_project=project).store == project / "models"
    assert Settings(flox_env_project=project, models_dir=Path("/srv")).store == Path("/srv")
