"""``vllm-serve`` against the reference's chapter "Serving", a test for every row of its tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compatkit import MODEL, MODEL_ID, ORG, RESOLVE, SERVE, User

from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.test_machine import Done


def refused(done: Done, code: int, *words: str) -> None:
    """Hold that the script ended as the contract says, and that its message has these words."""
    assert (done.code, done.out) == (code, ""), done.err
    for word in words:
        assert word in done.err


# -- Usage --------------------------------------------------------------------------------


def command_line(done: Done) -> list[str]:
    """Return the words of the command line that stands on stderr, as a shell reads them."""
    import shlex

    return next(words for line in done.err.splitlines() if "serve" in (words := shlex.split(line))[1:2])


def standard(user: User) -> None:
    assert user.launched()["argv"][1] == "serve"


def print_cmd(user: User) -> None:
    done = user.run(SERVE, "--print-cmd")
    assert (done.code, done.json["argv"]) == (0, command_line(done))


def dry_run(user: User) -> None:
    done = user.run(SERVE, "--dry-run")
    assert (done.code, done.out) == (0, "")
    assert command_line(done) == user.launched()["argv"]


def show_help(user: User) -> None:
    for flag in ("-h", "--help"):
        done = user.run(SERVE, flag, FLOX_ENV_CACHE=None, VLLM_PORT="x")
        assert (done.code, done.err) == (0, "")
        assert "--print-cmd" in done.out


def pass_through(user: User) -> None:
    extra = ["--max-num-seqs", "64", "--enforce-eager"]
    assert user.launched("--", *extra)["argv"][-3:] == extra
    assert user.launched(*extra)["argv"][-3:] == extra
    assert command_line(user.run(SERVE, "--dry-run", "--", *extra))[-3:] == extra


USAGE = {
    "vllm-serve | standard launch": standard,
    "vllm-serve --print-cmd | argv to stderr, then exec": print_cmd,
    "vllm-serve --dry-run | argv to stderr, exit 0, no exec": dry_run,
    "vllm-serve -h | help": show_help,
    "vllm-serve -- --extra-flag val | passed through": pass_through,
}


@pytest.mark.parametrize("row", USAGE.values(), ids=USAGE)
def test_usage(row: Callable[[User], None], ready: User) -> None:
    row(ready)


def test_it_becomes_vllm_with_the_same_process_id(ready: User) -> None:
    done = ready.bash(f"{SERVE} & echo $!; wait")
    pid, told = done.out.splitlines()
    assert json.loads(told)["pid"] == int(pid)


def test_after_the_hand_over_the_exit_code_is_vllms(ready: User) -> None:
    assert ready.run(SERVE, EXIT="7").code == 7


# -- Required environment variables ---------------------------------------------------------

POSITIVE = ["0", "-1", "x", "1.5"]
REQUIRED = {
    "FLOX_ENV_CACHE | must be a directory": ["/no/such/directory", "/dev/null"],
    "VLLM_HOST | non-empty": ["a b"],
    "VLLM_PORT | positive integer": [*POSITIVE, "65536", "tcp://10.0.0.1:8000"],
    "VLLM_TENSOR_PARALLEL_SIZE | positive integer": POSITIVE,
    "VLLM_PIPELINE_PARALLEL_SIZE | positive integer": POSITIVE,
    "VLLM_KV_CACHE_DTYPE | non-empty, no whitespace": ["fp8 e5m2", "\tfp8"],
    "VLLM_MAX_MODEL_LEN | positive integer": POSITIVE,
    "VLLM_MAX_NUM_BATCHED_TOKENS | positive integer": POSITIVE,
    "VLLM_SERVED_MODEL_NAME | non-empty": ["a\nb"],
}


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
@pytest.mark.parametrize("row", REQUIRED)
def test_always_required(row: str, value: str | None, ready: User) -> None:
    name = row.partition(" | ")[0]
    refused(ready.run(SERVE, **{name: value}), 2, f"{name} is not set", f"export {name}=")


@pytest.mark.parametrize(("row", "value"), [(row, value) for row, values in REQUIRED.items() for value in values])
def test_validation(row: str, value: str, ready: User) -> None:
    name = row.partition(" | ")[0]
    refused(ready.run(SERVE, **{name: value}), 2, f"{name}={value!a}" if name[0] == "V" else f"{name}={value}")


def test_the_cache_is_not_required_where_config_and_env_file_are_named(ready: User) -> None:
    config = ready.root / "mine.yaml"
    config.write_text("gpu-memory-utilization: 0.5\n")
    env_file = ready.env_file
    named: dict[str, str | None] = {"VLLM_CONFIG_FILE": str(config), "FLOX_ENV_CACHE": None}
    refused(ready.run(SERVE, **named), 2, "FLOX_ENV_CACHE is not set")
    told = ready.launched(VLLM_MODEL_ENV_FILE=str(env_file), **named)
    assert str(config) in told["argv"]


REQUIRED_WITHOUT_ENV_FILE = {
    "FLOX_ENV_CACHE | must exist as a directory": (["FLOX_ENV_CACHE"], "FLOX_ENV_CACHE"),
    "VLLM_MODEL_ID | OR VLLM_MODEL_ORG + VLLM_MODEL | no org": (["VLLM_MODEL_ORG"], "VLLM_MODEL_ORG"),
    "VLLM_MODEL_ID | OR VLLM_MODEL_ORG + VLLM_MODEL | no model": (["VLLM_MODEL"], "VLLM_MODEL"),
}


@pytest.mark.parametrize(("names", "word"), REQUIRED_WITHOUT_ENV_FILE.values(), ids=REQUIRED_WITHOUT_ENV_FILE)
def test_required_when_no_env_file_is_named(names: list[str], word: str, ready: User) -> None:
    refused(ready.run(SERVE, **dict.fromkeys(names)), 2, f"{word} is not set")
    if word != "FLOX_ENV_CACHE":
        ready.launched(VLLM_MODEL_ID=MODEL_ID, **dict.fromkeys(names))


def test_with_an_env_file_no_model_need_be_named(ready: User) -> None:
    nothing = dict.fromkeys(("VLLM_MODEL", "VLLM_MODEL_ORG"))
    told = ready.launched(VLLM_MODEL_ENV_FILE=str(ready.env_file), **nothing)
    assert told["argv"][2] == str(ready.local)


def test_everything_that_is_missing_is_named_at_once(ready: User) -> None:
    names = [row.partition(" | ")[0] for row in REQUIRED if row[0] == "V"]
    refused(ready.run(SERVE, **dict.fromkeys(names)), 2, *(f"{name} is not set" for name in names))


# what another script reads cannot stop this one
@pytest.mark.parametrize("variable", ["VLLM_DRY_RUN=1", "VLLM_STOP_TIMEOUT=soon", "VLLM_PREFLIGHT_JSON=yes"])
def test_variables_of_the_preflight_are_not_looked_at(variable: str, ready: User) -> None:
    name, _, value = variable.partition("=")
    assert ready.launched(**{name: value})["argv"][1] == "serve"


# -- Optional environment variables ---------------------------------------------------------


def env_file(user: User) -> None:
    other = user.root / "other.env"
    user.env_file.rename(other)
    refused(user.run(SERVE), 1, "does not exist", "vllm-resolve-model")
    assert user.launched(VLLM_MODEL_ENV_FILE=str(other))["argv"][2] == str(user.local)


def prefix_caching(user: User) -> None:
    flag = "--enable-prefix-caching"
    for value in ("true", "1", "yes", "TRUE"):
        assert flag in user.launched(VLLM_PREFIX_CACHING=value)["argv"]
    for unset in ("false", "0", "no", "", None):
        assert flag not in user.launched(VLLM_PREFIX_CACHING=unset)["argv"]
    refused(user.run(SERVE, VLLM_PREFIX_CACHING="on"), 2, "VLLM_PREFIX_CACHING='on'", "true, false, 1, 0, yes, no")


def config_file(user: User) -> None:
    config = user.root / "mine.yaml"
    refused(user.run(SERVE, VLLM_CONFIG_FILE=str(config)), 1, str(config), "VLLM_CONFIG_FILE")
    config.write_text("dtype: auto\n")
    assert user.launched(VLLM_CONFIG_FILE=str(config))["argv"][4] == str(config)
    assert config.read_text() == "dtype: auto\n"


def trusted(user: User) -> None:
    user.env_file.write_text(f"{user.env_file.read_text()}export MADE=$(echo here) CACHE=$FLOX_ENV_CACHE\n")
    for value in ("false", "0", "no", ""):
        refused(user.run(SERVE, VLLM_ENV_FILE_TRUSTED=value), 1, "not KEY=VALUE in the safe subset")
    for value in ("true", "1", "yes"):
        environ = user.launched(VLLM_ENV_FILE_TRUSTED=value)["environ"]
        assert (environ["MADE"], environ["CACHE"]) == ("here", str(user.cache))
    refused(user.run(SERVE, VLLM_ENV_FILE_TRUSTED="2"), 2, "VLLM_ENV_FILE_TRUSTED='2'")


OPTIONAL = {
    "VLLM_MODEL_ENV_FILE | explicit env file path": env_file,
    "VLLM_PREFIX_CACHING | false | true/false/1/0/yes/no": prefix_caching,
    "VLLM_CONFIG_FILE | $FLOX_ENV_CACHE/vllm-config.yaml": config_file,
    "VLLM_ENV_FILE_TRUSTED | false | true/false/1/0/yes/no": trusted,
}


@pytest.mark.parametrize("row", OPTIONAL.values(), ids=OPTIONAL)
def test_optional_variable(row: Callable[[User], None], ready: User) -> None:
    row(ready)


def test_strict_flags(ready: User) -> None:
    done = ready.run(SERVE, "--", "--max-model-len", "64")
    assert (done.code, "64" in done.json["argv"]) == (0, False)
    assert "dropped" in done.err
    refused(ready.run(SERVE, "--", "--max-model-len", "64", VLLM_STRICT_FLAGS="1"), 1, "set VLLM_MAX_MODEL_LEN instead")


# -- Env file loading -------------------------------------------------------------------------


def loads(user: User, line: str, name: str, value: str) -> None:
    user.env_file.write_text(f"_VLLM_RESOLVED_MODEL={MODEL_ID}\nVLLM_MODEL_PATH='{user.local}'\n{line}\n")
    told = user.launched(VLLM_MODEL_ENV_FILE=str(user.env_file), VLLM_MODEL=None, VLLM_MODEL_ORG=None)
    assert told["environ"][name] == value


SAFE = {
    "KEY=VALUE": ("A=b", "b"),
    "export KEY=VALUE": ("export A=b", "b"),
    "single-quoted": ("A='b $c `d`'", "b $c `d`"),
    "double-quoted": ('A="b c"', "b c"),
    "unquoted": ("A=/b/c", "/b/c"),
    "double-quoted escapes | \\\\": (r'A="b\\c"', "b\\c"),
    'double-quoted escapes | \\"': (r'A="b\"c"', 'b"c'),
    "double-quoted escapes | \\n": (r'A="b\nc"', "b\nc"),
    "double-quoted escapes | \\t": (r'A="b\tc"', "b\tc"),
    "trailing # comments after quoted values": ("A='b' # c", "b"),
}


@pytest.mark.parametrize(("line", "value"), SAFE.values(), ids=SAFE)
def test_safe_mode_loads(line: str, value: str, ready: User) -> None:
    loads(ready, line, "A", value)


NOT_SAFE = {
    "no multiline values": "A='b\nc'",
    "no ${VAR} interpolation": "A=${HOME}",
    "no ${VAR} interpolation in double quotes": 'A="${HOME}"',
    "no command substitution": "A=$(touch ran)",
    "no command substitution with `": "A=`touch ran`",
    "lines must be KEY=VALUE or export KEY=VALUE": "touch ran",
}


@pytest.mark.parametrize("lines", NOT_SAFE.values(), ids=NOT_SAFE)
def test_safe_mode_refuses(lines: str, ready: User) -> None:
    with ready.env_file.open("a") as file:
        file.write(f"{lines}\n")
    refused(ready.run(SERVE), 1, str(ready.env_file), "safe subset")
    assert not (ready.root / "ran").exists()


def test_safe_mode_needs_no_python_and_no_shell_on_path(ready: User) -> None:
    assert ready.launched(PATH="/nowhere")["argv"][2] == str(ready.local)


def test_the_env_file_must_define_the_resolved_model(ready: User) -> None:
    kept = [line for line in ready.env_file.read_text().splitlines() if "_VLLM_RESOLVED_MODEL" not in line]
    ready.write_env_file(kept)
    refused(ready.run(SERVE), 1, "does not define _VLLM_RESOLVED_MODEL")


def test_what_the_env_file_sets_wins_over_the_environment(ready: User) -> None:
    with ready.env_file.open("a") as file:
        file.write("export VLLM_MAX_MODEL_LEN=64\nexport VLLM_SERVED_MODEL_NAME='from the file'\n")
        file.write("export CUDA_VISIBLE_DEVICES=3\n")
    told = ready.launched(VLLM_SERVED_MODEL_NAME=None, CUDA_VISIBLE_DEVICES="0,1")
    argv = told["argv"]
    assert told["environ"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert argv[argv.index("--max-model-len") + 1] == "64"
    assert argv[argv.index("--served-model-name") + 1] == "from the file"


def test_an_env_file_of_another_model_is_refused(ready: User) -> None:
    other = ready.root / "other.env"
    other.write_text(ready.env_file.read_text().replace(MODEL_ID, "acme/other"))
    other.chmod(0o600)
    refused(ready.run(SERVE, VLLM_MODEL_ENV_FILE=str(other)), 1, "acme/other", MODEL_ID)
    refused(ready.run(SERVE, VLLM_MODEL_ENV_FILE=str(ready.env_file), VLLM_MODEL_REVISION="v2"), 1, f"{MODEL_ID}@v2")


# -- Command construction -----------------------------------------------------------------------

MAPPING = {
    "VLLM_HOST | --host": "127.0.0.2",
    "VLLM_PORT | --port": "8123",
    "VLLM_TENSOR_PARALLEL_SIZE | --tensor-parallel-size": "2",
    "VLLM_PIPELINE_PARALLEL_SIZE | --pipeline-parallel-size": "3",
    "VLLM_KV_CACHE_DTYPE | --kv-cache-dtype": "fp8",
    "VLLM_MAX_MODEL_LEN | --max-model-len": "100",
    "VLLM_MAX_NUM_BATCHED_TOKENS | --max-num-batched-tokens": "512",
    "VLLM_SERVED_MODEL_NAME | --served-model-name": "a name",
}


@pytest.mark.parametrize(("row", "value"), MAPPING.items(), ids=MAPPING)
def test_variable_becomes_flag(row: str, value: str, ready: User) -> None:
    name, flag = row.split(" | ")
    argv = ready.launched(**{name: value})["argv"]
    assert argv[argv.index(flag) + 1] == value
    assert argv.count(flag) == 1


def test_resolved_model_becomes_the_positional_argument(ready: User) -> None:
    assert ready.launched()["argv"][1:3] == ["serve", str(ready.local)]


def test_prefix_caching_becomes_a_flag_without_a_value(ready: User) -> None:
    assert ready.launched("--", "--enforce-eager", VLLM_PREFIX_CACHING="1")["argv"][-2:] == [
        "--enable-prefix-caching",
        "--enforce-eager",
    ]


def test_the_flags_stand_in_the_order_of_the_reference(ready: User) -> None:
    argv = ready.launched(VLLM_PREFIX_CACHING="yes")["argv"]
    assert [word for word in argv if word.startswith("--")] == [
        "--config",
        *(row.partition(" | ")[2] for row in MAPPING),
        "--enable-prefix-caching",
    ]


# -- Config file resolution ---------------------------------------------------------------------


def named(user: User) -> None:
    (user.root / "mine.yml").write_text("dtype: auto\n")
    argv = user.launched(VLLM_CONFIG_FILE=str(user.root / "mine.yml"))["argv"]
    assert argv[3:5] == ["--config", str(user.root / "mine.yml")]
    assert not (user.cache / "vllm-config.yaml").exists()


def default(user: User) -> None:
    (user.cache / "vllm-config.yaml").write_text("gpu-memory-utilization: 0.5\n")
    assert user.launched()["argv"][3:5] == ["--config", str(user.cache / "vllm-config.yaml")]
    assert (user.cache / "vllm-config.yaml").read_text() == "gpu-memory-utilization: 0.5\n"


def written_on_first_run(user: User) -> None:
    user.launched()
    config = user.cache / "vllm-config.yaml"
    assert "gpu-memory-utilization: 0.85" in config.read_text()
    config.write_text("dtype: auto\n")
    user.launched()
    assert config.read_text() == "dtype: auto\n"


def must_be_readable(user: User) -> None:
    refused(user.run(SERVE, VLLM_CONFIG_FILE="/no/such.yaml"), 1, "/no/such.yaml", "does not exist")
    (user.cache / "vllm-config.yaml").mkdir()
    refused(user.run(SERVE), 1, "is not a file")


CONFIG = {
    "1 | VLLM_CONFIG_FILE is used": named,
    "2 | otherwise $FLOX_ENV_CACHE/vllm-config.yaml": default,
    "3 | the default is put there on first run": written_on_first_run,
    "4 | must exist and be readable": must_be_readable,
}


@pytest.mark.parametrize("row", CONFIG.values(), ids=CONFIG)
def test_config_file(row: Callable[[User], None], ready: User) -> None:
    row(ready)


# -- the environment of the server, and who else may start it ------------------------------------


def test_vllm_gets_no_variable_of_ours_and_keeps_its_own(ready: User) -> None:
    own = {"VLLM_API_KEY": "sk-own", "VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_ATTENTION_BACKEND": "X", "HF_TOKEN": "hf_x"}
    environ = ready.launched(**own)["environ"]
    assert {name: environ.get(name) for name in own} == own
    assert {name for name in environ if name.startswith(("VLLM_", "_VLLM_"))} == set(own) - {"HF_TOKEN"}


def test_the_api_key_is_in_no_argument_and_no_output(ready: User) -> None:
    done = ready.run(SERVE, "--print-cmd", VLLM_API_KEY="sk-s3cr3t")
    assert "sk-s3cr3t" not in done.err
    assert "sk-s3cr3t" not in str(done.json["argv"])


def test_no_vllm(ready: User) -> None:
    refused(ready.run(SERVE, VLLMRT_VLLM=None), 1, "no vllm", "PATH")
    engine = Path(ready.env["VLLMRT_VLLM"])
    told = ready.launched(VLLMRT_VLLM=None, PATH=f"{engine.parent}:/bin")
    assert told["argv"][0] == str(engine)


@pytest.mark.parametrize("via", ["flox", "hf-cache"])
def test_a_model_in_a_hugging_face_cache(via: str, user: User) -> None:
    home = user.flox / "share" / "models" if via == "flox" else user.models
    path = make_model(home / "hub" / f"models--{ORG}--{MODEL}" / "snapshots" / ("1" * 40))
    assert user.run(RESOLVE, VLLM_MODEL_SOURCES=via).code == 0
    told = user.launched()
    assert told["argv"][2] == os.path.realpath(path)
    assert told["environ"]["HF_HOME"] == str(home)
