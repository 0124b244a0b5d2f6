"""Settings as variables: what differs, under which names; what is secret is named, and never written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from render.kit import describe, settings

from vllmrt import layers
from vllmrt.errors import ConfigError, ServeRefused
from vllmrt.render.deployment import describe as describe_with
from vllmrt.render.deployment import variable
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_defaults_are_not_written() -> None:
    deployment = describe(settings(), [])
    assert (deployment.variables, deployment.secrets) == ({}, ())
    assert deployment.model == {"VLLM_MODEL_ORG": "org", "VLLM_MODEL": "name"}


# one value that is no default for every row that describes the server
VALUES = {
    "gpu_fail_on": ("memory",),
    "logging_level": "DEBUG",
    "gpu_devices": ("0", "GPU-ab"),
    "cuda_visible_devices": "",
}
OF_THE_RUN = {"model", "model_org", "model_id", "model_revision", "model_env_file"}
OF_THE_RUN |= {"dry_run", "preflight_json", "settings_file"}
ROWS = [row for row in layers.rows() if row.field not in OF_THE_RUN]


def other(row: layers.Row) -> object:
    if row.field in VALUES:
        return VALUES[row.field]
    if row.kind is bool:
        return not row.default
    if row.kind in {int, float}:
        return row.kind(3)
    return ("one", "two") if isinstance(row.default, tuple) else "/some/path" if row.kind.__name__ == "Path" else "word"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.field)
def test_what_is_written_is_read_as_the_same_setting(row: layers.Row) -> None:
    flags = {row.field: None}
    given = layers.load({variable(row): value(other(row))}).settings
    assert getattr(given, row.field) != row.default
    deployment = describe(given, [])
    if row.var.secret:
        assert (deployment.variables, deployment.secrets) == ({}, (variable(row),))
        return
    read = layers.load(deployment.variables).settings
    assert getattr(read, row.field) == getattr(given, row.field)
    assert layers.load(deployment.variables, flags).settings == Settings()


def value(thing: object) -> str:
    if isinstance(thing, bool):
        return str(int(thing))
    return ",".join(thing) if isinstance(thing, tuple) else str(thing)


@pytest.mark.parametrize("field", sorted(OF_THE_RUN - {"model", "model_org", "model_id", "model_revision"}))
def test_what_is_of_one_run_is_not_written(field: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    row = next(row for row in layers.rows() if row.field == field)
    given = layers.load({variable(row): "1" if row.kind is bool else str(file)}).settings
    assert getattr(given, field) != row.default
    assert describe(given, []).variables == {}


def test_the_directory_may_have_a_name_of_its_own() -> None:
    model = describe(settings(model="here", model_id="org/name@v1"), []).model
    assert model == {"VLLM_MODEL_ID": "org/name", "VLLM_MODEL": "here", "VLLM_MODEL_REVISION": "v1"}
    read = layers.load(model).settings
    assert (read.model_id, read.model, read.model_revision) == ("org/name", "here", "v1")


def test_without_a_model_it_is_the_one_that_comes_along() -> None:
    assert describe(Settings(), []).model == {"VLLM_MODEL_ORG": "vllmrt", "VLLM_MODEL": "tiny"}


@pytest.mark.parametrize(
    "url",
    ["https://user:pass@host/", "https://token@host", "https://host/?sig=abc", "https://host#abc"],
)
def test_a_url_with_a_user_or_a_query_is_a_secret(url: str) -> None:
    deployment = describe(settings(hf_endpoint=url, r2_endpoint_url="https://host:9000/path"), [])
    assert deployment.secrets == ("HF_ENDPOINT",)
    assert deployment.variables == {"R2_ENDPOINT_URL": "https://host:9000/path"}


def test_a_secret_of_the_environment_is_noticed() -> None:
    given = settings(served_model_name="my-abc-def-model")
    assert describe_with(given, [], {"ACME_TOKEN": "abc-def"}).secrets == ("VLLM_SERVED_MODEL_NAME",)
    with pytest.raises(ConfigError, match="argument 2 is a secret"):
        describe_with(settings(), ["--chat-template", "abc-def"], {"ACME_TOKEN": "abc-def"})


def test_a_secret_is_noticed_in_another_setting() -> None:
    deployment = describe(settings(api_key="abc-def", served_model_name="my-abc-def-model"), [])
    assert deployment.secrets == ("VLLM_API_KEY", "VLLM_SERVED_MODEL_NAME")
    assert deployment.variables == {}


@pytest.mark.parametrize(
    "extra",
    [
        ["--hf-token", "hf_abc"],
        ["--hf_token=hf_abc"],
        ["--chat-template", "https://user@host/x"],
        ["--otlp-traces-endpoint", "https://host/?key=abc"],
        ["--override", '{"url": "redis://user:pass@host"}'],
        ["--seed", "key-of-mine"],
        ["--ssl-keyfile-password", "abc-pass"],
        ["--some-token=abc-pass"],
        ["--chat-template", "hf_abcabcabcabcabcabc"],
    ],
    ids=" ".join,
)
def test_an_argument_that_is_secret_is_refused(extra: list[str]) -> None:
    with pytest.raises(ConfigError, match="is a secret") as raised:
        describe(settings(api_key="key-of-mine"), extra)
    assert not any(secret in f"{raised.value} {raised.value.hint}" for secret in ("abc", "pass", "key-of-mine"))


def test_the_key_is_no_argument() -> None:
    with pytest.raises(ServeRefused, match="would show the key"):
        describe(settings(), ["--api-key", "x"])


@pytest.mark.parametrize("extra", ["a\0b", "\x1b[31m", "\udc80", "\x85"], ids=ascii)
def test_an_argument_that_cannot_be_printed_is_refused(extra: str) -> None:
    with pytest.raises(ConfigError, match="cannot be printed"):
        describe(settings(), ["--flag", extra])


def test_a_chat_template_has_lines() -> None:
    assert describe(settings(), ["--chat-template", "{% a %}\n\tb"]).extra == ("--chat-template", "{% a %}\n\tb")


def test_an_argument_of_ours_is_left_out_with_a_warning() -> None:
    deployment = describe(settings(), ["--port", "1", "--seed", "2"])
    assert deployment.extra == ("--seed", "2")
    assert "VLLM_PORT" in deployment.warnings[0]
    with pytest.raises(ServeRefused):
        describe(settings(strict_flags=True), ["--port", "1"])


@pytest.mark.parametrize("name", ["a,b", " a", "a "])
def test_a_list_that_no_variable_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="exclude cannot be written"):
        describe(settings(exclude=(name,)), [])
