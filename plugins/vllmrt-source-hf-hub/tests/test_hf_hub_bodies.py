"""Ranges of files: plain ones from the endpoint, LFS ones from another origin behind a URL that expires."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from fakehub import FakeHub

from vllmrt.errors import SourceError, TransientSourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Client

    Clients = Callable[..., Client]

MODEL, TOKEN = "org/name", "hf_UniqueTokenThatMustNotLeak0451"
SHARD = "model-00001-of-00002.safetensors"
ODD = "original/a b#c%41?+é.txt"


@pytest.mark.parametrize("path", ["config.json", SHARD, ODD])
def test_every_range_is_the_files_bytes(hub: FakeHub, client: Clients, model: Path, path: str) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    content = (model / path).read_bytes()
    assert asker.read(candidate, path) == content
    assert asker.read(candidate, path, 3, 7) == content[3:7]
    assert asker.read(candidate, path, len(content) - 1) == content[-1:]
    assert {seen.range for seen in hub.calls(path)} >= {"bytes=3-6"}


def test_a_hostile_name_is_quoted(hub: FakeHub, client: Clients, model: Path) -> None:
    """What the core lets pass is asked for by its name, not as another path or a query."""
    path = "a/../b?c=d&e#f"
    entry = {"type": "file", "path": path, "size": 2, "oid": "a" * 40}
    hub.add(MODEL, model, listing=[entry])
    asker = client()
    with pytest.raises(SourceError, match="does not have it"):
        asker.read(asker.candidate(), path)
    assert hub.seen[-1].path.endswith(f"/{path}")
    assert hub.seen[-1].query == ""


def test_a_signed_url_is_asked_for_once_a_file(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    for start in range(8):
        asker.read(candidate, SHARD, start, start + 1)
    assert len(hub.calls(SHARD, origin="api")) == 1
    assert len(hub.calls(SHARD, origin="cdn")) == 8


def test_an_expired_url_is_asked_for_again_once(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    asker.read(candidate, SHARD, 0, 1)
    hub.expire()
    assert asker.read(candidate, SHARD) == (model / SHARD).read_bytes()
    assert len(hub.calls(SHARD, origin="api")) == 2
    assert asker.read(candidate, SHARD, 1, 2) == (model / SHARD).read_bytes()[1:2]
    assert len(hub.calls(SHARD, origin="api")) == 2, "the new one is remembered"


def test_a_url_that_is_never_good_is_no_endless_errand(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    asker.read(candidate, SHARD, 0, 1)
    hub.fault(SHARD, origin="cdn", status=403, times=-1)
    with pytest.raises(SourceError):
        asker.read(candidate, SHARD)
    assert len(hub.calls(SHARD, origin="api")) == 2


def test_access_that_is_taken_away_in_the_middle(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    hub.repositories[MODEL].gated = "manual"
    with pytest.raises(SourceError, match="gated, and no token") as caught:
        asker.read(candidate, SHARD)
    assert not isinstance(caught.value, TransientSourceError)
    assert f"{hub.endpoint}/{MODEL} and set HF_TOKEN" in (caught.value.hint or "")


def test_a_repository_that_goes_away(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    del hub.repositories[MODEL]
    with pytest.raises(SourceError, match="no model org/name"):
        asker.read(candidate, SHARD)


@pytest.mark.parametrize("status", [429, 500, 503, 522])
@pytest.mark.parametrize("place", ["api", "cdn", "signed"])
def test_trouble_is_told_as_such(hub: FakeHub, client: Clients, model: Path, status: int, place: str) -> None:
    hub.add(MODEL, model)
    asker = client()
    candidate = asker.candidate()
    if place == "signed":
        asker.read(candidate, SHARD)
    hub.fault(SHARD, origin="api" if place == "api" else "cdn", status=status, headers={"Retry-After": "3"})
    with pytest.raises(TransientSourceError) as caught:
        asker.read(candidate, SHARD)
    assert caught.value.retry_after == 3
    assert asker.read(candidate, SHARD) == (model / SHARD).read_bytes()


def test_the_token_goes_to_the_endpoint_only(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model, gated="manual")
    hub.tokens[TOKEN] = {MODEL}
    asker = client(hf_token=TOKEN)
    candidate = asker.candidate()
    for _ in range(2):
        asker.read(candidate, SHARD)
        hub.expire()
    assert {seen.authorization for seen in hub.seen if seen.origin == "api"} == {f"Bearer {TOKEN}"}
    assert [seen for seen in hub.seen if seen.origin == "cdn"]
    assert {seen.authorization for seen in hub.seen if seen.origin == "cdn"} == {None}


def test_the_token_does_not_follow_the_api_elsewhere(client: Clients, model: Path) -> None:
    with FakeHub() as hub, FakeHub() as other:
        other.add(MODEL, model)
        for hub_path in ("revision", "tree"):
            hub.fault(hub_path, status=307, headers={"Location": f"{other.endpoint}/api/models/{MODEL}/revision/main"})
        hub.tokens[TOKEN] = set()
        with pytest.raises(SourceError):
            client(hf_endpoint=hub.endpoint, hf_token=TOKEN).probe()
        assert {seen.authorization for seen in hub.seen} == {f"Bearer {TOKEN}"}
        assert {seen.authorization for seen in other.seen} == {None}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", names, "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    return key, chain


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_https_with_an_authority_of_ones_own(
    client: Clients, model: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    import ssl

    key, chain = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    with FakeHub(tls=tls) as hub:
        hub.add(MODEL, model)
        with pytest.raises(SourceError, match="certificate that is not trusted") as caught:
            client(hf_endpoint=hub.endpoint).probe()
        assert "SSL_CERT_FILE" in (caught.value.hint or "")
        monkeypatch.setenv(variable, str(chain))
        asker: Any = client(hf_endpoint=hub.endpoint)
        assert asker.read(asker.candidate(), SHARD) == (model / SHARD).read_bytes()
