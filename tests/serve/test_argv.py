import shlex
from pathlib import Path

import pytest

from vllmrt.errors import ExitCode, ServeRefused
from vllmrt.serve.argv import OWNED, build_argv, format_command
from vllmrt.settings import Settings


def build(*extra, settings=None, limit=None, explicit=()):
    return build_argv(
        Path("/opt/bin/vllm"),
        Path("/models/m"),
        Path("/cache/vllm-config.yaml"),
        settings or Settings(),
        model_limit=limit,
        served_model_name="org/m",
        explicit=frozenset(explicit),
        extra=extra,
    )


PLAIN, _ = build()


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


def test_command_line_is_that_of_the_reference_in_its_order():
    settings = Settings(
        host="0.0.0.0",  # noqa: S104 - nothing listens
        port=9000,
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        kv_cache_dtype="fp8",
        max_model_len=512,
        max_num_batched_tokens=1024,
        prefix_caching=True,
    )
    argv, warnings = build("--enforce-eager", "--seed", "-1", settings=settings)
    assert shlex.join(argv) == (
        "/opt/bin/vllm serve /models/m --config /cache/vllm-config.yaml --host 0.0.0.0 --port 9000"
        " --tensor-parallel-size 2 --pipeline-parallel-size 3 --kv-cache-dtype fp8 --max-model-len 512"
        " --max-num-batched-tokens 1024 --served-model-name org/m --enable-prefix-caching --enforce-eager --seed -1"
    )
    assert warnings == []


def test_prefix_caching_is_not_mentioned_unless_it_is_asked_for():
    assert "--enable-prefix-caching" not in PLAIN


@pytest.mark.parametrize(
    ("limit", "length", "explicit", "passed", "warned"),
    [
        (None, 4096, (), "4096", False),
        (8192, 4096, (), "4096", False),
        (512, 4096, (), "512", False),
        (512, 4096, ("port",), "512", False),
        (512, 4096, ("max_model_len",), "4096", True),
        (512, 256, ("max_model_len",), "256", False),
    ],
)
def test_default_length_gives_way_to_the_model(limit, length, explicit, passed, warned):
    argv, warnings = build(settings=Settings(max_model_len=length), limit=limit, explicit=explicit)
    assert value_of(argv, "--max-model-len") == passed
    assert bool(warnings) == warned


@pytest.mark.parametrize(
    "extra",
    [
        ["--port", "9"],
        ["--port=9"],
        ["--host", "::"],
        ["--ho", "::"],
        ["--config", "x.yaml"],
        ["--config=x.yaml"],
        ["--tensor-parallel-size", "2"],
        ["--tensor_parallel_size", "2"],
        ["--tensor_parallel-size=2"],
        ["--tensor-p", "2"],
        ["--tensor_p=2"],
        ["-tp", "2"],
        ["-tp=2"],
        ["-tp2"],
        ["-t", "2"],
        ["-tp.x", "2"],
        ["-pp", "2"],
        ["-pp=2"],
        ["-pp2"],
        ["-p", "2"],
        ["--pipeline_parallel_size", "2"],
        ["--kv-cache-dtype", "fp8"],
        ["--max-model-len", "-1"],
        ["--max-model-len=-1"],
        ["--max_model_len", "1k"],
        ["--max-num-batched-tokens", "9"],
        ["--served-model-name", "a", "b", "c"],
        ["--served_model_name=a"],
        ["--served", "a", "b"],
        ["--enable-prefix-caching"],
        ["--enable_prefix_caching"],
        ["--no-enable-prefix-caching"],
        ["--no-enable-pref"],
        ["--enable-prefix-caching=true"],
        ["--model", "x"],
        ["--model=x"],
        ["--port.x", "9"],
        ["--port"],
    ],
)
def test_every_spelling_of_a_flag_of_ours(extra):
    around = ["--enforce-eager", *extra, "--seed", "1"]
    argv, warnings = build(*around)
    assert argv == [*PLAIN, "--enforce-eager", "--seed", "1"]
    assert len(warnings) == 1
    assert extra[0].partition("=")[0] in warnings[0]
    with pytest.raises(ServeRefused, match="collides") as caught:
        build(*around, settings=Settings(strict_flags=True))
    assert extra[0].partition("=")[0] in caught.value.message
    assert caught.value.hint.endswith("instead")


def test_every_collision_says_what_to_use_instead():
    for flag, remedy in OWNED.items():
        _, warnings = build(flag)
        assert remedy in warnings[0]


def test_several_collisions_are_all_named():
    _, warnings = build("--port", "9", "-tp", "2", "--host=x")
    assert [warning.split()[2] for warning in warnings] == ["--port", "-tp", "--host"]


@pytest.mark.parametrize(
    "extra",
    [
        ["--enforce-eager"],
        ["--model-impl", "transformers"],
        ["--config-format", "hf"],
        ["--kv-cache-dtype-skip-layers", "1", "2"],
        ["--served-model-names", "x"],
        ["-O3"],
        ["-O", "3"],
        ["-dp", "2"],
        ["-pcp", "2"],
        ["-cc.mode", "3"],
        ["--hf-overrides.a.b", "1"],
        ["--hf_overrides", '{"a": "--port"}'],
        ["--chat-template", "- text with spaces"],
        ["--seed", "-5"],
        ["--allowed-origins", "a", "b", "--root-path=/x"],
        ["--help=all"],
    ],
)
def test_other_flags_are_passed_on_as_they_are(extra):
    assert build(*extra) == ([*PLAIN, *extra], [])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        ["--api-key", "s3cret"],
        ["--api-key=s3cret"],
        ["--api_key", "s3cret"],
        ["--api-k", "s3cret"],
        ["--api", "s3cret"],
        ["--api-key.x", "s3cret"],
        ["--enforce-eager", "--api_key=s3cret", "stray"],
    ],
)
def test_a_key_in_the_command_line_is_refused_and_not_repeated(extra, strict):
    with pytest.raises(ServeRefused) as caught:
        build(*extra, settings=Settings(strict_flags=strict))
    assert caught.value.exit_code is ExitCode.SERVE_REFUSED
    assert "--api-key" in caught.value.message
    assert "VLLM_API_KEY" in caught.value.hint
    assert "s3cret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "extra",
    [
        ["other/model"],
        ["other/model", "--enforce-eager"],
        ["--port=9", "other/model"],
        ["--seed=1", "other/model"],
        ["--enable-prefix-caching", "other/model"],
        [""],
        ["-"],
        ["-1"],
    ],
)
def test_an_argument_without_a_flag_is_refused(extra):
    with pytest.raises(ServeRefused, match="belongs to no flag"):
        build(*extra)


@pytest.mark.parametrize("extra", [["--"], ["--", "x"], ["--enforce-eager", "--", "--seed", "1"]])
def test_a_second_double_dash_is_refused(extra):
    with pytest.raises(ServeRefused, match="second --"):
        build(*extra)


def test_a_stray_argument_cannot_write_to_the_terminal():
    with pytest.raises(ServeRefused) as caught:
        build("\x1b[2Jé" + "x" * 500)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_printed_command_survives_a_shell():
    argv = ["/opt/my vllm/vllm", "serve", "--hf-overrides", '{"a": "it\'s"}']
    assert shlex.split(format_command(argv)) == argv
