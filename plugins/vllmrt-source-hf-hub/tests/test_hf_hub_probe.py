"""What a probe answers, and why not."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from vllmrt_source_hf_hub import source

from vllmrt.errors import SourceError, TransientSourceError
from vllmrt.host import PluginHost
from vllmrt.settings import Settings
from vllmrt.types import ModelRequest, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Client
    from fakehub import FakeHub

    Clients = Callable[..., Client]

MODEL, TOKEN = "org/name", "hf_UniqueTokenThatMustNotLeak0451"


def test_it_is_found_by_its_name(hub: FakeHub, model: Path) -> None:
    hub.add(MODEL, model)
    settings = Settings(hf_endpoint=hub.endpoint)
    host = PluginHost(settings)
    entry = host.select("vllmrt.sources", "hf-hub")
    assert entry is not None
    answer = host.probe(host.source(entry), ModelRequest(MODEL))
    assert not isinstance(answer, Skip)
    assert answer[0].files


def test_two_calls_give_every_size_and_digest(hub: FakeHub, client: Clients, model: Path) -> None:
    sha = hub.add(MODEL, model)
    candidate = client().candidate()
    expected = {path: blob.size for path, blob in hub.repositories[MODEL].commits[sha].items()}
    assert {file.path: file.size for file in candidate.files} == expected
    assert candidate.revision == sha
    assert candidate.location == f"hf-hub {MODEL}@{sha} at {hub.endpoint}"
    kinds = {file.path: file.digest.algorithm for file in candidate.files if file.digest}
    assert kinds["config.json"] == "git-sha1"
    assert kinds["model-00001-of-00002.safetensors"] == "sha256"
    blobs = hub.repositories[MODEL].commits[sha]
    assert all(
        file.digest and file.version == file.digest.value == (blobs[file.path].sha256 or blobs[file.path].oid)
        for file in candidate.files
    )
    assert [seen.path.split("/")[5] for seen in hub.seen] == ["revision", "tree"]


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_pages_are_put_together(hub: FakeHub, client: Clients, model: Path, page_size: int) -> None:
    sha = hub.add(MODEL, model)
    hub.page_size = page_size
    assert {file.path for file in client().candidate().files} == set(hub.repositories[MODEL].commits[sha])


@pytest.mark.parametrize("ref", ["main", "v1.0", "refs/pr/3", "feature/x#y"])
def test_a_revision_is_resolved_to_its_commit(
    hub: FakeHub, client: Clients, model: Path, tmp_path: Path, ref: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    other = hub.add(MODEL, tmp_path / "other", ref="other")
    sha = hub.add(MODEL, model, ref=ref)
    assert client().candidate(revision=None if ref == "main" else ref).revision == sha
    assert client().candidate(revision=other).revision == other


def test_a_renamed_repository_is_followed(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.tokens[TOKEN] = {"org/new"}
    sha = hub.add("org/new", model, private=True)
    hub.add("org/old", model, moved_to="org/new")
    asker = client(hf_token=TOKEN)
    candidate = asker.candidate("org/old")
    assert candidate.revision == sha
    assert asker.read(candidate, "config.json") == (model / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "request_offline"), [({"hf_hub_offline": True}, False), ({}, True), ({"hf_hub_offline": True}, True)]
)
def test_offline_asks_nobody(hub: FakeHub, client: Clients, settings: dict[str, Any], request_offline: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    answer = client(**settings).probe(offline=request_offline)
    assert isinstance(answer, Skip)
    assert "offline" in answer.reason
    assert not hub.seen


def gated(hub: FakeHub) -> None:
    hub.repositories[MODEL].gated = "manual"


def private(hub: FakeHub) -> None:
    hub.repositories[MODEL].private = True


def gone(hub: FakeHub) -> None:
    del hub.repositories[MODEL]


def known(hub: FakeHub) -> None:
    hub.tokens[TOKEN] = set()


def strict(hub: FakeHub) -> None:
    hub.anonymous_404 = False


def fault(where: str, status: int, **headers: str) -> Callable[[FakeHub], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda hub: void(hub.fault(where, status=status, headers=named, times=-1))


def void(_: object) -> None:
    """Throw a value away."""


DISABLED = {"X_Error_Message": "Access to this resource is disabled."}
REFUSALS: dict[str, tuple[list[Callable[[FakeHub], None]], bool, type, str, str]] = {
    "unknown": ([gone], False, Skip, "no model org/name", "set HF_TOKEN"),
    "unknown, told as 401": ([gone, strict], False, Skip, "no model org/name", "set HF_TOKEN"),
    "unknown, with a token": ([gone, known], True, Skip, "or it is private", "token from HF_TOKEN"),
    "private": ([private], False, Skip, "or it is private", "set HF_TOKEN"),
    "private, told as 401": ([private, strict], False, Skip, "or it is private", "set HF_TOKEN"),
    "private, other token": ([private, known], True, Skip, "or it is private", "token from HF_TOKEN"),
    "a page for people": ([fault("revision", 404)], False, Skip, "no model", "check the name"),
    "gated": ([gated], False, SourceError, "gated, and no token", "/org/name and set HF_TOKEN"),
    "gated, with a token": ([gated, known], True, SourceError, "from HF_TOKEN has no access", "/org/name with the acc"),
    "bad token": ([], True, SourceError, "token from HF_TOKEN is not accepted", "set HF_TOKEN"),
    "bad token, code only": ([known, fault("revision", 401)], True, SourceError, "not accepted", "settings/tokens"),
    "disabled": ([fault("revision", 403, **DISABLED)], False, SourceError, "is disabled", ""),
    "forbidden": ([fault("tree", 403)], False, SourceError, "not open to you", "set HF_TOKEN"),
    "odd": ([fault("tree", 418, X_Error_Message="tea\x1b[31m")], False, SourceError, "418 at http", ""),
    "slow": ([fault("tree", 408)], False, TransientSourceError, "too slow", ""),
    "behind a proxy": ([fault("revision", 522)], False, TransientSourceError, "(522)", ""),
    "broken": ([fault("revision", 500)], False, TransientSourceError, "(500)", ""),
    "overloaded": ([fault("tree", 503)], False, TransientSourceError, "(503)", ""),
    "limited": ([fault("revision", 429)], False, TransientSourceError, "(429)", "set HF_TOKEN"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_says_what_it_is_and_what_to_do(hub: FakeHub, client: Clients, model: Path, case: str) -> None:
    prepare, with_token, kind, message, hint = REFUSALS[case]
    hub.add(MODEL, model)
    for step in prepare:
        step(hub)
    asker = client(hf_token=TOKEN if with_token else None)
    try:
        answer: Any = asker.probe()
    except SourceError as error:
        answer = error
    assert type(answer) is kind
    assert message in (answer.reason if isinstance(answer, Skip) else str(answer))
    assert hint in (answer.hint or "")
    assert "\x1b" not in str(answer)
    assert not hub.sent, "not a byte of a file before that"


def test_an_unknown_revision_is_named(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    answer = client().probe(revision="v9")
    assert isinstance(answer, Skip)
    assert "no revision v9" in answer.reason
    assert f"{hub.endpoint}/{MODEL}/tree/main" in (answer.hint or "")


def test_a_data_set_is_no_model(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(f"datasets/{MODEL}", model)
    assert isinstance(client().probe(), Skip)


def test_a_gate_that_is_open_to_the_token(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model, gated="auto")
    hub.tokens[TOKEN] = {MODEL}
    asker = client(hf_token=TOKEN)
    assert asker.read(asker.candidate(), "config.json") == (model / "config.json").read_bytes()
    assert len(hub.calls("auth-check")) == 1


@pytest.mark.parametrize(("status", "code"), [(404, {}), (404, {"X-Error-Code": "RepoNotFound"}), (405, {})])
def test_a_mirror_without_the_check_is_asked_for_the_smallest_file(
    hub: FakeHub, client: Clients, model: Path, status: int, code: dict[str, str]
) -> None:
    hub.add(MODEL, model, gated="auto")
    hub.tokens |= {TOKEN: {MODEL}, "hf_other": set()}
    hub.fault("auth-check", status=status, headers=code, times=-1)
    for token, message in ((None, "gated, and no token"), ("hf_other", "has no access to it")):
        with pytest.raises(SourceError, match=message):
            client(hf_token=token).probe()
    assert not hub.sent
    assert client(hf_token=TOKEN).candidate().files
    smallest = min((path for path in model.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    assert {seen.path.partition("/resolve/")[2][41:] for seen in hub.calls("/resolve/")} == {
        str(smallest.relative_to(model))
    }
    assert hub.seen[-1].range == "bytes=0-0"


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "17"}, 17, 17),
        ({"ratelimit": '"api";r=0;t=55'}, 55, 55),
        ({"Retry-After": "Wed, 21 Oct 2037 07:28:00 GMT"}, 1e8, 1e9),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"Retry-After": "-5"}, None, None),
        ({"Retry-After": "soon"}, None, None),
        ({"Retry-After": "9" * 400}, None, None),
        ({}, None, None),
    ],
)
def test_a_limit_says_when_to_come_back(
    hub: FakeHub, client: Clients, headers: dict[str, str], least: float | None, most: float | None
) -> None:
    hub.fault("revision", status=429, headers=headers)
    begun = time.monotonic()
    with pytest.raises(TransientSourceError) as caught:
        client().probe()
    assert time.monotonic() - begun < 2, "it does not sleep"
    if least is None or most is None:
        assert caught.value.retry_after is None
    else:
        assert caught.value.retry_after is not None
        assert least <= caught.value.retry_after <= most


def test_the_limit_on_calls_is_a_limit(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    hub.api_budget = 1
    with pytest.raises(TransientSourceError) as caught:
        client().probe()
    assert caught.value.retry_after == 7


def test_nobody_there(client: Clients) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(TransientSourceError, match="cannot be reached: Connection refused") as caught:
            client(hf_endpoint=endpoint).probe()
    assert time.monotonic() - begun < 2
    assert "HF_ENDPOINT" in (caught.value.hint or "")


def test_one_that_never_answers(hub: FakeHub, client: Clients, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PROBE_TIMEOUT", 0.4)
    hub.add(MODEL, model)
    hub.fault("tree", cut="silence")
    begun = time.monotonic()
    with pytest.raises(TransientSourceError, match="no answer in time"):
        client().probe()
    assert time.monotonic() - begun < 2


@pytest.fixture
def trickle() -> Iterator[Callable[[bytes], str]]:
    """A server that says something at once and then one byte of nothing at a time."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(begin: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(begin)
            try:
                while not stop.wait(0.02):
                    connection.sendall(b"1")
            except OSError:
                return

    def start(begin: bytes) -> str:
        threads.append(threading.Thread(target=serve, args=(begin,), daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)
    listener.close()


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",
    ],
)
def test_one_that_trickles(
    trickle: Callable[[bytes], str], client: Clients, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(source, "PROBE_TIMEOUT", 0.5)
    begun = time.monotonic()
    with pytest.raises(TransientSourceError, match="no answer in time"):
        client(hf_endpoint=trickle(begin)).probe()
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("cut", ["reset", "fin"])
def test_an_answer_that_breaks_off(hub: FakeHub, client: Clients, model: Path, cut: str) -> None:
    hub.add(MODEL, model)
    hub.fault("tree", cut=cut, at=20)
    asker = client()
    with pytest.raises(TransientSourceError, match="cannot be reached"):
        asker.probe()
    assert asker.candidate().files, "and the next probe goes through"


@pytest.mark.parametrize("begin", [b"HELLO\r\n\r\n", b"HTTP/1.1 2OO OK\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00" * 70_000])
def test_one_that_speaks_something_else(trickle: Callable[[bytes], str], client: Clients, begin: bytes) -> None:
    with pytest.raises(TransientSourceError, match="cannot be reached"):
        client(hf_endpoint=trickle(begin)).probe()


def test_a_connection_is_kept_and_may_be_closed_meanwhile(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    hub.page_size = 1
    hub.fault("tree", status=200, body=b"[]", headers={"Link": '<?cursor=0>; rel="next"'}, then_close=True)
    assert client().candidate().files
    assert hub.accepted["api"] == 2


def test_redirected_for_ever(hub: FakeHub, client: Clients) -> None:
    hub.fault("revision", status=307, headers={"Location": f"/api/models/{MODEL}/revision/main?x"}, times=-1)
    with pytest.raises(SourceError):
        client().probe()
    assert len(hub.seen) < 15


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,{}", "http://[::1", "http://h:0/", "http://é/"]
)
def test_redirected_off_the_web(hub: FakeHub, client: Clients, location: str) -> None:
    hub.fault("revision", status=307, headers={"Location": location})
    with pytest.raises(SourceError, match="redirects to nowhere"):
        client().probe()


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "ftp://hub", "http://", "http://[::1", "http://h:99999", "https://h/?a=b", "https://é"],
)
def test_an_endpoint_that_is_none(client: Clients, endpoint: str) -> None:
    with pytest.raises(SourceError, match="HF_ENDPOINT") as caught:
        client(hf_endpoint=endpoint).probe()
    assert caught.value.hint


def test_an_endpoint_with_a_path_and_a_last_slash(hub: FakeHub, client: Clients, model: Path) -> None:
    hub.add(MODEL, model)
    assert client(hf_endpoint=f"{hub.endpoint}/").candidate().location.endswith(hub.endpoint)
    with_path = client(hf_endpoint=f"{hub.endpoint}/mirror/").probe()
    assert isinstance(with_path, Skip)
    assert hub.seen[-1].path.startswith("/mirror/api/models/")


def test_the_default_is_not_told() -> None:
    assert Settings().hf_endpoint == source.access.DEFAULT_ENDPOINT
    assert source.access.find(Settings(hf_token=TOKEN)).suffix == ""


def test_a_proxy_is_used(hub: FakeHub, client: Clients, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(MODEL, model)
    monkeypatch.setenv("http_proxy", hub.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert client(hf_endpoint="http://hub.invalid").candidate().files
    assert {seen.host for seen in hub.seen} == {"hub.invalid"}
