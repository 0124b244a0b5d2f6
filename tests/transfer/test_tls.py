"""The encrypted socket, against `ssl` and against the program ``openssl``."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from proxies import Certificate, make_certificate

from vllmrt.transfer.http import RangeClient
from vllmrt.transfer.tls import HttpsConnection, TlsSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[[Callable[[socket.socket], object]], int]

CONTENT = os.urandom(3_000_001)
RECORD = 16 << 10
PATIENCE = 20


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def trusting(certificate: Certificate, request: pytest.FixtureRequest) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate.chain))
    context.minimum_version = context.maximum_version = request.param
    return context


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Lets a function speak to the next connection, in a thread that the test waits for; gives the port."""
    threads = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def run(function: Callable[[socket.socket], object]) -> None:
            with listener.accept()[0] as connection:
                connection.settimeout(PATIENCE)
                function(connection)

        def start(function: Callable[[socket.socket], object]) -> int:
            threads.append(threading.Thread(target=run, args=(function,), daemon=True))
            threads[-1].start()
            return int(listener.getsockname()[1])

        yield start
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def connect(port: int, context: ssl.SSLContext, timeout: float = PATIENCE) -> TlsSocket:
    return TlsSocket(socket.create_connection(("127.0.0.1", port), timeout), context, "127.0.0.1")


def read(sock: TlsSocket, size: int, block: int = 300_000) -> bytes:
    """Read until `size` bytes are here, or the connection ends."""
    buffer, count = memoryview(bytearray(size)), 0
    while count < size and (more := sock.recv_into(buffer[count : count + block])):
        count += more
    return bytes(buffer[:count])


def collect(sock: TlsSocket, came: bytearray) -> None:
    """Read into `came` until the connection ends."""
    buffer = memoryview(bytearray(300_000))
    while count := sock.recv_into(buffer):
        came += buffer[:count]


def encrypted(connection: socket.socket, context: ssl.SSLContext, data: bytes) -> bytearray:
    """Shake hands as a server, and return what is then to be sent."""
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_side=True)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            connection.sendall(to_send.read())
            received.write(connection.recv(1 << 16))
    tls.write(data)
    return bytearray(to_send.read())


def refused(connection: socket.socket, context: ssl.SSLContext) -> str:
    """Shake hands as a server, and return why the client would not."""
    with pytest.raises(ssl.SSLError) as caught:
        encrypted(connection, context, b"")
    return str(caught.value.reason)


@pytest.mark.parametrize("block", [1, 1000, RECORD, 300_000, len(CONTENT)])
def test_both_directions(serve: Serve, certificate: Certificate, trusting: ssl.SSLContext, block: int) -> None:
    sent = CONTENT[: block * 2000]

    def answer(connection: socket.socket) -> None:
        with certificate.context().wrap_socket(connection, server_side=True) as secure:
            secure.sendall(secure.recv(100) + sent)
            with suppress(ssl.SSLError, OSError):  # the client says no good-bye
                secure.unwrap()

    with closing(connect(serve(answer), trusting)) as sock:
        sock.sendall(b"what is there? ")
        assert read(sock, 15 + len(sent), block) == b"what is there? " + sent
        assert [sock.recv_into(bytearray(10)) for _ in range(2)] == [0, 0]  # after a good-bye, as often as it is asked


def test_an_end_without_a_good_bye(serve: Serve, certificate: Certificate, trusting: ssl.SSLContext) -> None:
    port = serve(lambda connection: connection.sendall(encrypted(connection, certificate.context(), CONTENT)))
    with closing(connect(port, trusting)) as sock:
        assert read(sock, len(CONTENT) + 1) == CONTENT
        assert sock.recv_into(bytearray(1)) == 0


@pytest.mark.parametrize("at", [700, 20_000, 1_000_000])
def test_a_byte_that_was_changed_on_the_way(
    serve: Serve, certificate: Certificate, trusting: ssl.SSLContext, at: int
) -> None:
    def change(connection: socket.socket) -> None:
        data = encrypted(connection, certificate.context(), CONTENT)
        data[at] ^= 1
        with suppress(OSError):  # the client hangs up
            connection.sendall(data)
            connection.recv(1)

    with closing(connect(serve(change), trusting)) as sock:
        came = bytearray()
        with pytest.raises(ssl.SSLError):
            collect(sock, came)
        assert came == CONTENT[: len(came)]
        assert at - 2 * RECORD < len(came) < at
        assert not sock.is_idle


def test_new_keys_in_the_middle(certificate: Certificate, trusting: ssl.SSLContext) -> None:
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certificate.chain]
    new_keys = b"K\n" if trusting.maximum_version is ssl.TLSVersion.TLSv1_3 else b"r\n"
    with subprocess.Popen(
        [*command, "-key", certificate.key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            accepting = next(line for line in server.stdout if line.startswith(b"ACCEPT"))
            with closing(connect(int(accepting.rsplit(b":")[-1]), trusting)) as sock:
                for number in range(3):
                    # a letter alone is a command: new keys of both sides, or to shake hands again
                    for typed in (new_keys, b"line %d\n" % number):
                        server.stdin.write(typed)
                        server.stdin.flush()
                        time.sleep(0.2)  # it has to be what one read brings
                    assert read(sock, 7) == b"line %d\n" % number
                    sock.sendall(b"heard %d\n" % number)
                    assert next(line for line in server.stdout if line.startswith(b"heard")) == b"heard %d\n" % number
        finally:
            server.kill()


def test_who_is_not_trusted_is_told(serve: Serve, certificate: Certificate) -> None:
    told: list[str] = []
    port = serve(lambda connection: told.append(refused(connection, certificate.context())))
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(port, ssl.create_default_context(cafile=None, capath="/none"))
    deadline = time.monotonic() + PATIENCE
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == ["TLSV1_ALERT_UNKNOWN_CA"]


def test_another_name(serve: Serve, certificate: Certificate, trusting: ssl.SSLContext) -> None:
    port = serve(lambda connection: refused(connection, certificate.context()))
    connection = HttpsConnection(("127.0.0.1", port), name="other.test", timeout=PATIENCE, context=trusting)
    with closing(connection), pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.test'"):
        connection.connect()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_speaks_no_tls(serve: Serve, trusting: ssl.SSLContext, said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(said)

    plain = socket.create_connection(("127.0.0.1", serve(talk)), PATIENCE)
    descriptor = plain.fileno()
    with pytest.raises(ssl.SSLError):
        TlsSocket(plain, trusting, "127.0.0.1")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_nothing_is_waited_for_longer_than_it_may(
    serve: Serve, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        """Say that a long record comes, and bring it byte by byte."""
        with suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")
            for _ in range(200):
                if ended.wait(0.05):
                    break
                connection.sendall(b"\x02")

    for say in (lambda _: ended.wait(PATIENCE), drip):
        port = serve(say)
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            connect(port, trusting, timeout=0.3)
        assert time.monotonic() - begin < 5
        ended.set()
        ended.clear()

    def stall(connection: socket.socket) -> None:
        connection.sendall(encrypted(connection, certificate.context(), CONTENT)[: -RECORD // 2])
        ended.wait(PATIENCE)

    ended.clear()
    with closing(connect(serve(stall), trusting)) as sock:
        sock.settimeout(0.2)
        came = bytearray()
        with pytest.raises(TimeoutError):
            collect(sock, came)
        assert came == CONTENT[: len(came)]
        assert len(CONTENT) - 2 * RECORD < len(came) < len(CONTENT)
        ended.set()


def test_shutdown_ends_the_wait_of_another_thread(
    serve: Serve, certificate: Certificate, trusting: ssl.SSLContext
) -> None:
    def wait(connection: socket.socket) -> None:
        connection.sendall(encrypted(connection, certificate.context(), CONTENT[:10]))
        connection.recv(1 << 16)  # until the client goes away

    with closing(connect(serve(wait), trusting)) as sock:
        assert read(sock, 10) == CONTENT[:10]
        timer = threading.Timer(0.2, sock.shutdown, [socket.SHUT_RDWR])
        timer.start()
        assert sock.recv_into(bytearray(10)) == 0
        timer.join()


def test_nothing_is_sent_in_clear(serve: Serve, certificate: Certificate, trusting: ssl.SSLContext) -> None:
    heard = []

    def listen(connection: socket.socket) -> None:
        with certificate.context().wrap_socket(connection, server_side=True) as secure:
            for _ in range(3):
                heard.append(secure.recv(100))
                secure.sendall(heard[-1])

    with closing(connect(serve(listen), trusting)) as sock:
        assert sock.send(b"one") == 3
        assert sock.recv(100) == b"one"
        with sock.makefile("wb") as file:
            file.write(b"two")
        assert sock.recv(2) + sock.recv(100) == b"two"
        assert sock.is_idle
        for refused in (sock.sendmsg, sock.sendto, sock.recvfrom, sock.recvmsg, sock.sendfile, sock.recvmsg_into):
            with pytest.raises(NotImplementedError):
                refused([b"secret"])
        for call in (lambda: sock.recv(1, socket.MSG_PEEK), lambda: sock.recv_into(bytearray(1), 1, socket.MSG_PEEK)):
            with pytest.raises(ValueError, match="2"):
                call()
        sock.sendall(b"three")
        assert sock.recv(100) == b"three"
    assert heard == [b"one", b"two", b"three"]


@pytest.mark.parametrize("good_bye", [False, True])
def test_what_was_read_ahead_makes_it_not_idle(
    serve: Serve, certificate: Certificate, trusting: ssl.SSLContext, *, good_bye: bool
) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with certificate.context().wrap_socket(connection, server_side=True) as secure:
            secure.sendall(b"answer")
            if good_bye:
                secure.settimeout(0.1)
                with suppress(OSError):
                    secure.unwrap()
            else:
                secure.sendall(b"and what nobody asked for")
            ended.wait(PATIENCE)

    with closing(connect(serve(answer), trusting)) as sock:
        time.sleep(0.3)  # all of it is there
        assert read(sock, 6) == b"answer"
        assert not sock.is_idle
        ended.set()


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next(
    serve: Serve, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-9999/10000\r\nContent-Length: 10000\r\n\r\n"

    behind = [b"", head + b"x" * 10_000]  # of the second connection, and of the first

    def answer(connection: socket.socket) -> None:
        more = behind.pop()
        with suppress(OSError), certificate.context().wrap_socket(connection, server_side=True) as secure:
            while secure.recv(1 << 16):
                secure.sendall(head + CONTENT[:10_000])
                secure.sendall(more)

    with closing(RangeClient(timeout=PATIENCE)) as client:
        port = serve(answer)
        serve(answer)
        for _ in range(3):
            time.sleep(0.2)
            opened = client.open(f"https://127.0.0.1:{port}/a", 0, 10_000)
            time.sleep(0.2)  # what comes behind it is there too
            buffer, count = memoryview(bytearray(10_000)), 0
            while more := opened.readinto(buffer[count:]):
                count += more
            assert buffer == CONTENT[:10_000]
