import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from vllmrt.errors import ConfigError
from vllmrt.serve import client
from vllmrt.serve.smoke import run_checks, wait_healthy

KEY = 's3cret"key'
PLAIN = ["health", "models", "completion", "chat", "streaming", "metrics"]
METRICS = '# TYPE vllm:a gauge\nvllm:a{x="1"} 1\nvllm:a{x="2"} 1\nvllm:b 2\npython_info 1\n'


def event(content):
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n"


STREAM = event(None) + event("Hel") + event("lo") + 'data: {"choices": []}\n\ndata: [DONE]\n\n'
CHAT = {"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}


class Stub(ThreadingHTTPServer):
    """A server of our own making: `answers` replaces what it says at a path."""

    daemon_threads = True

    def __init__(self, key):
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = key
        self.answers = {}
        self.seen = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(None)

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        stream = bool(body and body.get("stream"))
        name = "stream" if stream else self.path
        self.server.seen.append((name, self.headers.get("Authorization"), body))
        if name in self.server.answers:
            self.server.answers[name](self)
        elif self.path.startswith("/v1") and self.server.key and self.headers["Authorization"] != f"Bearer {KEY}":
            self.send(401, '{"error": "Unauthorized"}')
        else:
            self.usual(name)

    def usual(self, name):
        answers = {
            "/health": "",
            "/v1/models": json.dumps({"object": "list", "data": [{"id": "org/model"}]}),
            "/v1/completions": json.dumps({"choices": [{"text": " there was"}]}),
            "/v1/chat/completions": json.dumps(CHAT),
            "stream": STREAM,
            "/metrics": METRICS,
        }
        self.send(200, answers[name])

    def send(self, status, text, **headers):
        data = text.encode()
        self.send_response(status)
        for header, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(data)


def says(status, text, **headers):
    return lambda handler: handler.send(status, text, **headers)


def hang(handler):
    handler.server.closing.wait(30)


def trickle(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"X-A: b\r\n")


def trickle_body(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"x")


def break_off(handler):
    piece = event("Hel").encode()
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n40\r\ndata" % (len(piece), piece)
    )
    handler.close_connection = True


def flood(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(12):
        handler.wfile.write(b"vllm:a 1\n" * (1 << 17))
    handler.close_connection = True


@pytest.fixture
def serve():
    started = []

    def start(key=None, **answers):
        stub = Stub(key)
        stub.answers = {name if name == "stream" else f"/{name}".replace("__", "/"): a for name, a in answers.items()}
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((stub, thread))
        return stub

    yield start
    for stub, thread in started:
        stub.closing.set()
        stub.shutdown()
        thread.join()
        stub.server_close()


def by_name(checks):
    return {check.name: check for check in checks}


def failed(checks):
    return [check.name for check in checks if not check.ok]


def test_healthy_server(serve):
    stub = serve()
    checks = run_checks(stub.url, None, timeout=5)
    assert [check.name for check in checks] == PLAIN
    assert failed(checks) == []
    details = {check.name: check.detail for check in checks}
    assert details["models"] == "org/model"
    assert details["completion"] == '" there was"'
    assert details["chat"] == '"Hello"'
    assert details["streaming"] == '2 pieces: "Hello"'
    assert details["metrics"] == "2 metrics of vLLM"
    assert all(0 <= check.seconds < 5 for check in checks)
    assert {body["model"] for _, _, body in stub.seen if body} == {"org/model"}
    assert all(authorization is None for _, authorization, _ in stub.seen)


def test_server_with_a_key(serve):
    stub = serve(key=KEY)
    checks = run_checks(stub.url, KEY, timeout=5)
    assert [check.name for check in checks] == ["health", "auth", *PLAIN[1:]]
    assert failed(checks) == []


def test_key_is_needed_and_not_given(serve):
    checks = run_checks(serve(key=KEY).url, None, timeout=5)
    assert failed(checks) == ["models", "completion", "chat", "streaming"]
    assert by_name(checks)["models"].detail == 'answered 401 instead of 200: {"error": "Unauthorized"}'


def test_server_that_lets_everybody_in(serve):
    checks = run_checks(serve().url, KEY, timeout=5)
    assert failed(checks) == ["auth"]
    assert "answered 200 instead of 401" in by_name(checks)["auth"].detail


def test_key_is_never_shown(serve):
    echo = says(500, json.dumps({"error": f"bad key {KEY}", "raw": " " * 1990 + KEY}) + KEY)
    answers = {"health": echo, "v1__models": echo, "v1__completions": echo, "metrics": echo}
    checks = run_checks(serve(**answers).url, KEY, timeout=5)
    text = " ".join(check.detail for check in checks)
    assert "s3cret" not in text
    assert "***" in text


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX: y", "ключ", "a\x00b"])
def test_odd_keys_break_nothing(serve, key):
    checks = run_checks(serve(key=KEY).url, key, timeout=5)
    assert failed(checks) == ["models", "completion", "chat", "streaming"] or "metrics" in failed(checks)
    assert key not in " ".join(check.detail for check in checks)


@pytest.mark.parametrize(
    ("name", "answer", "check", "detail"),
    [
        ("health", says(503, "loading"), "health", "answered 503 instead of 200: loading"),
        ("v1__models", says(200, '{"data": []}'), "models", "the list is empty"),
        ("v1__models", says(200, "<html>"), "models", "not what the API promises"),
        ("v1__models", says(200, '{"data": [{"id": 7}]}'), "models", "not what the API promises"),
        ("v1__models", says(307, "", Location="http://127.0.0.1:1/"), "models", "answered 307"),
        ("v1__completions", says(200, '{"choices": []}'), "completion", "without text"),
        ("v1__completions", says(404, "x" * 5000), "completion", "answered 404"),
        ("v1__completions", says(200, "\x1b[2J\xff"), "completion", "not what the API promises"),
        ("v1__chat__completions", says(400, "no chat\ntemplate"), "chat", "no chat template"),
        ("stream", says(200, event("x")), "streaming", "broke off after 1 events"),
        ("stream", says(200, "data: [DONE]\n\n"), "streaming", "without text"),
        ("stream", says(200, event("x") + 'data: {"error": {}}\n\ndata: [DONE]\n'), "streaming", "an error came"),
        ("stream", says(200, ""), "streaming", "broke off after 0"),
        ("stream", says(200, "data: {\n\ndata: [DONE]\n\n"), "streaming", "not what the API promises"),
        ("stream", break_off, "streaming", "broke"),
        ("metrics", says(200, "python_info 1\n"), "metrics", "no metric"),
        ("metrics", flood, "metrics", "more than 8 MiB"),
    ],
)
def test_one_fault_does_not_hide_the_rest(serve, name, answer, check, detail):
    checks = run_checks(serve(**{name: answer}).url, None, timeout=5)
    assert [entry.name for entry in checks] == PLAIN
    assert failed(checks) == [check]
    assert detail in by_name(checks)[check].detail
    assert by_name(checks)[check].detail.isprintable()
    assert len(by_name(checks)[check].detail) <= 160


def test_reasoning_counts_as_an_answer(serve):
    message = {"choices": [{"message": {"content": None, "reasoning_content": "Hmm"}}]}
    stub = serve(v1__chat__completions=says(200, json.dumps(message)))
    assert failed(run_checks(stub.url, None, timeout=5)) == []


def test_requests_name_no_model_when_none_is_known(serve):
    stub = serve(v1__models=says(500, ""))
    run_checks(stub.url, None, timeout=5)
    assert all("model" not in body for _, _, body in stub.seen if body)


def test_nothing_listens(serve):
    url = serve().url
    port = int(url.rsplit(":", 1)[1])
    free = f"http://127.0.0.1:{_free_port(port)}"
    checks = run_checks(free, None, timeout=5)
    assert failed(checks) == PLAIN
    assert checks[0].detail == "connection refused"
    assert all(check.detail.startswith("not tried") for check in checks[1:])


@pytest.mark.parametrize("answer", [hang, trickle, trickle_body])
def test_server_that_never_finishes_is_given_up(serve, answer):
    started = time.monotonic()
    checks = run_checks(serve(health=answer, metrics=answer).url, None, timeout=0.5)
    assert time.monotonic() - started < 5
    assert failed(checks) == ["health", "metrics"]
    assert checks[0].detail == "no complete answer in 0.5 s"


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://[::1", "http://x?y"]
)
def test_what_is_no_address(url):
    with pytest.raises(ConfigError):
        run_checks(url, None, timeout=1)
    with pytest.raises(ConfigError):
        wait_healthy(url, seconds=1)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://[::1]:80", client.Server(secure=False, host="::1", port=80, prefix="")),
        ("https://h/a/", client.Server(secure=True, host="h", port=None, prefix="/a")),
    ],
)
def test_addresses(url, server):
    assert client.parse_url(url) == server


def test_proxies_are_not_asked(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert failed(run_checks(serve().url, None, timeout=5)) == []


def test_waiting_for_a_server_that_comes_up(serve):
    calls = []

    def loading(handler):
        calls.append(time.monotonic())
        handler.send(200 if len(calls) == 4 else 503, "")

    assert wait_healthy(serve(health=loading).url, seconds=10)
    pauses = [after - before for before, after in pairwise(calls)]
    assert len(pauses) == 3
    assert 0.09 < pauses[0] < pauses[2]


@pytest.mark.parametrize("answer", [says(503, ""), hang])
def test_waiting_has_an_end(serve, answer):
    started = time.monotonic()
    assert not wait_healthy(serve(health=answer).url, seconds=0.6)
    assert time.monotonic() - started < 3


def test_waiting_where_nothing_listens():
    assert not wait_healthy(f"http://127.0.0.1:{_free_port()}", seconds=0.3)


def _free_port(taken=0):
    import socket

    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] != taken:
                return probe.getsockname()[1]
