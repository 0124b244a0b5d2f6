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


@pytest.fixture
def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate.chain))


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
        assert len(came) < at


def test_new_keys_in_the_middle(certificate: Certificate, trusting: ssl.SSLContext) -> None:
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-cert", certificate.chain]
    with subprocess.Popen(
        [*command, "-key", certificate.key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            accepting = next(line for line in server.stdout if line.startswith(b"ACCEPT"))
            with closing(connect(int(accepting.rsplit(b":")[-1]), trusting)) as sock:
                for number in range(3):
                    # a letter alone is a command: new keys, of both sides
                    for typed in (b"K\n", b"line %d\n" % number):
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
    port = serve(lambda _: ended.wait(PATIENCE))
    with pytest.raises(TimeoutError):
        connect(port, trusting, timeout=0.2)
    ended.set()

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
