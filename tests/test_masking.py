"""What is taken out of a text, and what is left as it is."""

from __future__ import annotations

import time

import pytest

from vllmrt.masking import redact, redact_argv
from vllmrt.settings import MASK

WORDS = [
    (["vllm", "serve", "m", "--api-key", "k1", "k2", "--port", "1"], f"vllm serve m --api-key {MASK} {MASK} --port 1"),
    (["vllm", "serve", "--api_key=k1", "x"], f"vllm serve --api_key={MASK} x"),
    (["x", "--hf-token", "-k", "-v"], f"x --hf-token {MASK} -v"),
    (["x", "-password", "k", "-v", "y"], f"x -password {MASK} -v y"),
    (["env", "HF_TOKEN=k", "AWS_SECRET_ACCESS_KEY=k", "A=b"], f"env HF_TOKEN={MASK} AWS_SECRET_ACCESS_KEY={MASK} A=b"),
    (
        ["sh", "-c", "VLLM_API_KEY=k exec vllm --api-key k -v"],
        f"sh -c VLLM_API_KEY={MASK} exec vllm --api-key {MASK} -v",
    ),
    (
        ["x", "--kv-config.password", "k", "--kv-config.token=k"],
        f"x --kv-config.password {MASK} --kv-config.token={MASK}",
    ),
    (["x", '{"a": {"password": "it\'s \\"k", "port": "1"}}'], f'x {{"a": {{"password": "{MASK}", "port": "1"}}}}'),
    (["x", r'"{\"api_key\":\"k\"}"'], rf'x "{{\"api_key\":\"{MASK}\"}}"'),
    (["x", "X-Amz-Signature=k"], f"x X-Amz-Signature={MASK}"),
    (["Max retries exceeded with url: /a/b?X-Goog-Date=1&sig=k"], f"Max retries exceeded with url: /a/b?{MASK}"),
    (["x", "https://u:p@host/a?sig=k"], f"x https://{MASK}@host/a?{MASK}"),
    (["x", "http://u:p/q?r@host:1/a"], f"x http://{MASK}@host:1/a"),
    (["x", "http://host:80/org/name@v1"], "x http://host:80/org/name@v1"),
]
KEPT = [
    ["vllm", "serve", "m", "--max-num-batched-tokens", "4096", "--tokenizer", "t", "--ssl-keyfile", "f"],
    ["python", "-m", "vllm.entrypoints.openai.api_server", "--port=8000", "--kv-cache-dtype", "auto"],
    ["grep", "token", "key", "a=b"],
    ["x", '{"max_tokens": "16", "tokenizer": "t", "password": 5}'],
]


@pytest.mark.parametrize(("argv", "shown"), WORDS)
def test_a_secret_on_a_command_line(argv: list[str], shown: str) -> None:
    assert " ".join(redact_argv(argv)) == shown


@pytest.mark.parametrize("argv", KEPT)
def test_what_only_sounds_like_one(argv: list[str]) -> None:
    assert redact_argv(argv) == argv


@pytest.mark.parametrize(
    "piece", ["x", "-", "_", "a-", "a_", "key", "-key", "token-", "://", "url: /", "?", "--api-key ", '"', '"key":"']
)
def test_a_text_that_is_made_to_be_slow(piece: str) -> None:
    begin = time.monotonic()
    redact(piece * (100_000 // len(piece)))
    assert time.monotonic() - begin < 5
