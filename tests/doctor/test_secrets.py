"""Canaries in every place where a credential may be: none of them is on the page, in no format."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from doctor.conftest import own

from vllmrt import layers
from vllmrt.doctor.page import Section
from vllmrt.masking import Masker, place
from vllmrt.settings import MASK, Settings
from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from cli.test_machine import Machine as Patient
    from standin import Machine

# the word that is searched for is a part of every canary, so that one that is shown in part is found too
CREDENTIALS = {
    name: f"canary-{name.lower()}-0123456789"
    for name in (
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "VLLMRT_API_KEY", "VLLMRT_MODEL_URL", "OPENAI_API_KEY"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "R2_SECRET_ACCESS_KEY", "WANDB_API_KEY"),
        *("AZURE_STORAGE_KEY", "AZURE_CLIENT_SECRET", "PGPASSWORD", "VLLM_TOKEN", "VLLMRT_SECRETT", "DB_PASSWD"),
    )
}
URLS = {
    "https_proxy": "http://canary-user:canary-p%40ss/w?rd@proxy.example:3128",
    "HTTP_PROXY": "canary-user2:canary-pass2@proxy.example:3128",
    "ALL_PROXY": "socks5://canary-only-user@proxy.example:1080/canary-path?k=canary-query-of-a-proxy",
    "HF_ENDPOINT": "https://canary-user3:canary-pass3@hub.example/mirror?sig=canary-signature#canary-fragment",
    "R2_ENDPOINT_URL": "https://canary-user4:canary-pass4@r2.example",
    "VLLMRT_HF_ENDPOINT": "https://canary-user5:canary-pass5@hub.example",
    "VLLM_MAX_MODEL_LEN": "https://canary-user6:canary-pass6@host/?token=canary-query",
    "VLLM_HOST": "https://canary-user7:canary-pass7@host?key=canary-key",
    "VLLM_MODELS_DIR": "/srv/models/canary-aws_secret_access_key-0123456789",
}
SETTINGS = """\
api_key = "canary-of-the-file-1"
hf_token = "canary-of-the-file-2"
model_url = "s3://canary-of-the-file-3@bucket?x=canary-of-the-file-4"
r2_endpoint_url = "https://canary-of-the-file-5:canary-of-the-file-6@host/"
max_num_batched_tokens = "https://canary-of-the-file-7@host"
unknown = "canary-of-the-file-8"
"""
# what a plugin says is its own; it is masked where it is a secret that is known, or looks like one
PLUGIN = """\
import os
names = "HF_TOKEN AWS_SECRET_ACCESS_KEY VLLM_API_KEY https_proxy".split()
raise RuntimeError("denied: " + " ".join(os.environ[name] for name in names) + " https://canary-a:canary-b@x/?canary-c")
"""


@pytest.mark.parametrize("args", [("--json",), (), ("--log-format", "json"), ("-v",)], ids=" ".join)
def test_none_is_seen(args: tuple[str, ...], patient: Patient, machine: Machine, port: int) -> None:
    path = patient.home / "config" / "vllmrt" / "settings.toml"
    path.parent.mkdir(parents=True)
    path.write_text(SETTINGS)
    token = patient.home / "cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("canary-in-the-token-file")
    groups = {"vllmrt.sources": {"acme": "acme_talks"}}
    fake_dist(patient.site, "acme-talks", "1.2", groups, {"acme_talks": PLUGIN})
    words = [sys.executable, str(machine.standin), "--api-key", "canary-argument", "canary-word", "KEY=canary-pair"]
    machine.start(words, LISTEN=f"127.0.0.1:{port}")
    for host in (URLS["VLLM_HOST"], "127.0.0.1"):
        done = patient.run("doctor", *args, **CREDENTIALS, **URLS | {"VLLM_HOST": host})
        assert done.code == 1
        assert "acme-talks 1.2: loading failed: RuntimeError: denied: " in done.out
        assert MASK in done.out
        assert "canary" not in done.out.lower() + done.err.lower()
        assert ("port-foreign" if args == ("--json",) else "which is not vLLM") in done.out or host != "127.0.0.1"


def test_what_is_said_of_secrets(patient: Patient) -> None:
    told = patient.run("doctor", "--json").json["environment"]
    assert (told["hf_token"], told["hf_token_from"], told["api_key"]) == (False, None, False)
    told = patient.run("doctor", "--json", HF_TOKEN="x", VLLM_API_KEY="k").json["environment"]
    assert (told["hf_token"], told["hf_token_from"], told["api_key"]) == (True, "HF_TOKEN", True)
    token = patient.home / "cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    told = patient.run("doctor", "--json").json["environment"]
    assert (told["hf_token"], told["hf_token_from"]) == (True, str(token))


def test_two_values_of_a_secret_are_not_shown(patient: Patient) -> None:
    (problem,) = own(patient.run("doctor", "--json", HF_TOKEN="one-of-them", HUGGING_FACE_HUB_TOKEN="the-other"))
    assert problem["message"] == "HF_TOKEN and HUGGING_FACE_HUB_TOKEN have different values; HF_TOKEN counts"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://u:p@proxy:3128/path?q#f", f"http://{MASK}@proxy:3128"),
        ("http://u:p/a@b?c@proxy:3128", f"http://{MASK}@proxy:3128"),
        ("u:p@proxy:3128", f"{MASK}@proxy:3128"),
        ("proxy:3128", "proxy:3128"),
        ("socks5h://[::1]:1080/", "socks5h://[::1]:1080"),
    ],
)
def test_of_a_proxy_only_its_place_is_shown(url: str, shown: str) -> None:
    assert place(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345",
        "sk-proj-0123456789abcdef",
        "Authorization: Bearer abcdefghijklmnopqrst",
        "https://x.example/a?X-Amz-Signature=abcdefabcdef",
        "ftp://user:word@host/",
    ],
)
def test_what_looks_like_a_secret_is_taken_out_wherever_it_comes_from(text: str) -> None:
    shown = Masker({}, Settings()).text(f"it says {text} and goes on")
    secret = max(text.replace("@", " ").replace("=", " ").replace("://", " ").split(), key=len)
    assert MASK in shown
    assert secret not in shown
    assert shown.endswith(" and goes on")


def test_names_and_short_values_stay_what_they_are() -> None:
    masker = Masker({"VLLM_API_KEY": "port", "TOKENIZERS_PARALLELISM": "disk-usage", "PATH": "/usr/bin"}, Settings())
    text = "the port: hf_hub_offline in /usr/bin, disk-usage, https://host/path"
    assert masker.text(text) == text


def test_a_section_is_masked_to_its_ground() -> None:
    masker = Masker({"X_SECRET": "a-secret-of-mine"}, Settings())
    section = Section(
        {"a": [{"b": "x a-secret-of-mine", "c": 1, "d": None}]}, ["a-secret-of-mine"], ["a-secret-of-mine"]
    )
    section.add("code", "a-secret-of-mine", "a-secret-of-mine")
    masked = masker.values(msgspec.to_builtins(section))
    assert "a-secret" not in repr(masked)
    assert masked["facts"] == {"a": [{"b": f"x {MASK}", "c": 1, "d": None}]}


def test_what_follows_a_flag_that_speaks_of_a_secret_is_one() -> None:
    argv = [
        "vllm",
        "serve",
        "--hf-token",
        "x",
        "--some-password=y",
        "--max-num-batched-tokens",
        "4",
        "--tokenizer",
        "z",
    ]
    shown = ["vllm", "serve", "--hf-token", MASK, f"--some-password={MASK}", *argv[5:]]
    assert Masker({}, Settings()).argv(argv) == shown
    assert Masker({"VLLM_API_KEY": "known-secret"}, Settings()).argv(["a", "b=known-secret"]) == ["a", f"b={MASK}"]


def test_every_secret_of_the_settings_table_is_known() -> None:
    names = [name for row in layers.rows() if row.var.secret for name in row.names]
    environ = {name: f"value-of-{name}" for name in names}
    masker = Masker(environ, Settings())
    assert len(names) > 5
    assert [name for name in names if masker.text(environ[name]) != MASK] == []


@pytest.mark.parametrize(
    "proxy", ["http://us:word%40of-mine@h:1", "us:word%40of-mine@h:1", "http://us:word%40of-mine@h/p"]
)
@pytest.mark.parametrize("said", ["word%40of-mine", "word@of-mine", "us:word%40of-mine"])
def test_the_parts_of_a_url_are_secret_by_themselves(proxy: str, said: str) -> None:
    assert Masker({"https_proxy": proxy}, Settings()).text(f"({said})") == f"({MASK})"


def test_so_are_those_of_a_setting() -> None:
    masker = Masker({}, Settings(hf_endpoint="https://us:long-word@h/?sig=signature%21", model_url="whole-value"))
    assert masker.text("long-word signature! signature%21 whole-value") == " ".join([MASK] * 4)
