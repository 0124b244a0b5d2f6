"""Who listens where: a table, real sockets, real network namespaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmrt.errors import ConfigError
from vllmrt.preflight.listeners import Endpoint, endpoint, listening, targets
from vllmrt.preflight.sockdiag import is_silent, v6only_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
ANY = "0.0.0.0"  # noqa: S104 - what is bound there lives no longer than its test
FAMILIES = {True: socket.AF_INET6, False: socket.AF_INET}


def taken(address: str, *, v6only: bool = False) -> Endpoint:
    return endpoint(socket.inet_pton(FAMILIES[":" in address], address), v6only=v6only)


@contextmanager
def listener(address: str, *, v6only: bool | None = None) -> Iterator[int]:
    with socket.socket(FAMILIES[":" in address]) as one:
        if v6only is not None:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        one.bind((address, 0))
        one.listen()
        yield one.getsockname()[1]


# the kernel itself is asked below whether this table is right
OVERLAPS = [
    ("127.0.0.1", "127.0.0.1", False, True),
    ("127.0.0.1", "127.0.0.2", False, False),
    ("127.0.0.1", ANY, False, True),
    (ANY, "127.0.0.1", False, True),
    (ANY, ANY, False, True),
    ("::1", "::1", False, True),
    ("::", "::1", False, True),
    ("::", "::1", True, True),
    ("::1", "127.0.0.1", False, False),
    ("::1", ANY, False, False),
    ("::", "127.0.0.1", False, True),
    ("::", "127.0.0.1", True, False),
    ("::", ANY, False, True),
    ("::", ANY, True, False),
    ("::ffff:127.0.0.1", "127.0.0.1", False, True),
    ("::ffff:127.0.0.1", "127.0.0.2", False, False),
    ("::ffff:127.0.0.1", "::1", False, False),
]


@pytest.mark.parametrize(("held", "wanted", "v6only", "expected"), OVERLAPS)
def test_what_is_in_the_way_of_what(*, held: str, wanted: str, v6only: bool, expected: bool) -> None:
    assert taken(held, v6only=v6only).overlaps(taken(wanted)) is expected


@pytest.mark.parametrize(("held", "wanted", "v6only", "expected"), OVERLAPS)
def test_the_kernel_agrees_and_so_do_real_listeners(*, held: str, wanted: str, v6only: bool, expected: bool) -> None:
    with listener(held, v6only=v6only if ":" in held else None) as port:
        with socket.socket(FAMILIES[":" in wanted]) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            refused = _refuses(other, wanted, port)
        assert refused is expected
        found = listening(targets(wanted, port), port)
        assert bool(found) is expected
        assert [one.address for one in found] == ([f"[{held}]:{port}" if ":" in held else f"{held}:{port}"] * expected)


def _refuses(sock: socket.socket, address: str, port: int) -> bool:
    try:
        sock.bind((address, port))
    except OSError:
        return True
    return False


@given(
    packed=st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), v6only=st.booleans(), data=st.data()
)
def test_overlapping_is_mutual_and_everything_overlaps_itself(
    *, packed: bytes, v6only: bool, data: st.DataObject
) -> None:
    other = endpoint(
        data.draw(st.sampled_from([packed, bytes(4), bytes(16), bytes(10) + b"\xff\xff" + packed[:4]])),
        v6only=data.draw(st.booleans()),
    )
    one = endpoint(packed, v6only=v6only)
    assert one.overlaps(one)
    assert one.overlaps(other) is other.overlaps(one)


def test_another_port_and_a_connection_are_not_in_the_way() -> None:
    with listener("127.0.0.1") as port, socket.create_connection(("127.0.0.1", port)) as client:
        own = client.getsockname()[1]
        assert listening(targets("127.0.0.1", own), own) == []
        assert len(listening(targets("127.0.0.1", port), port)) == 1


def test_the_inode_and_the_uid_are_those_of_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        (found,) = listening(targets("127.0.0.1", port), port)
        assert (found.inode, found.uid) == (os.fstat(one.fileno()).st_ino, os.geteuid())


def test_a_name_is_all_its_addresses() -> None:
    with listener("127.0.0.1") as port:
        assert listening(targets("localhost", port), port)
        assert listening(targets("[::]", port), port)


def test_a_star_is_every_address_as_for_those_who_bind_it() -> None:
    assert targets("*", 80)[0] == taken(ANY)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "300.1.1.1", "http://127.0.0.1", "a" * 70 + ".b", "x..y"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no address and no name"):
        targets(host, 80)


def test_many_listeners_are_told_apart_by_sock_diag() -> None:
    """More than one netlink message has room for."""
    with listener("::", v6only=True) as port:
        others = [socket.create_server(("::1", 0), family=socket.AF_INET6) for _ in range(400)]
        try:
            found = listening(targets("::1", port), port)
            assert v6only_listeners(port) == {found[0].inode}
        finally:
            for other in others:
                other.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104 - for a moment
def test_a_port_is_silent_where_nobody_listens(address: str) -> None:
    with listener(address) as port:
        assert not is_silent(port)
    assert is_silent(port)


def test_where_the_kernel_does_not_say_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without the module for a protocol refuses the query; protocol 253 has none anywhere (RFC 3692)."""
    with listener("127.0.0.1") as port:
        monkeypatch.setattr(socket, "IPPROTO_TCP", 253)
        assert v6only_listeners(port) is None
        assert not is_silent(port)
        assert not is_silent(1)
        assert [one.address for one in listening(targets("127.0.0.1", port), port)] == [f"127.0.0.1:{port}"]
        assert listening(targets("127.0.0.1", 1), 1) == []


RECORDED = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0 100 0 0 10 0
   1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 333 1 0 20 4 30 10 -1
"""
NOWHERE = f"{0:032X}:0000"
RECORDED6 = f"""\
  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode
   0: {0:032X}:1F92 {NOWHERE} 0A 00000000:00000000 00:00000000 00000000 7 0 444 1 0 100
   1: {1 << 24:032X}:1F90 {NOWHERE} 0A 00000000:00000000 00:00000000 00000000 0 0 555 1 0 100
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A /proc of another machine, without any process."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text(RECORDED)
    (tmp_path / "net/tcp6").write_text(RECORDED6)
    (tmp_path / "sys/net/ipv6").mkdir(parents=True)
    return tmp_path


@pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian machine")
@pytest.mark.parametrize(
    ("host", "port", "v6only", "expected"),
    [
        ("127.0.0.1", 8080, "0", [("127.0.0.1:8080", 111, 1000)]),
        ("::1", 8080, "0", [("[::1]:8080", 555, 0)]),
        (ANY, 8080, "0", [("127.0.0.1:8080", 111, 1000)]),
        ("::", 8080, "0", [("127.0.0.1:8080", 111, 1000), ("[::1]:8080", 555, 0)]),
        ("::", 8080, "1", [("[::1]:8080", 555, 0)]),
        ("10.0.0.9", 8081, "0", [("0.0.0.0:8081", 222, 0)]),
        ("10.0.0.9", 8082, "0", [("[::]:8082", 444, 7)]),
        ("10.0.0.9", 8082, "1", []),
        ("fe80::1", 8082, "1", [("[::]:8082", 444, 7)]),
    ],
)
def test_a_recorded_table(recorded: Path, host: str, port: int, v6only: str, expected: list[object]) -> None:
    (recorded / "sys/net/ipv6/bindv6only").write_text(v6only)
    found = listening(targets(host, port, recorded), port, recorded)
    assert [(one.address, one.inode, one.uid) for one in found] == expected


def test_a_machine_without_ipv6(recorded: Path) -> None:
    (recorded / "net/tcp6").unlink()
    assert len(listening(targets("127.0.0.1", 8080, recorded), 8080, recorded)) == 1


def test_without_a_table_nothing_is_assumed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="tcp"):
        listening(targets("127.0.0.1", 80, tmp_path), 80, tmp_path)


# In a namespace of its own: whether ``::`` takes IPv4, by the system's default, and who is seen from inside.
INSIDE = """\
import json, socket, subprocess, sys
from pathlib import Path
from vllmrt.preflight.listeners import listening, targets
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
def look(port): return [bool(listening(targets(host, port), port)) for host in ("127.0.0.1", "::1", "::")]
Path("/proc/sys/net/ipv6/bindv6only").write_text(sys.argv[1])
held = socket.socket(socket.AF_INET6); held.bind(("::", 0)); held.listen()
four = socket.create_server(("127.0.0.1", 0))
print(json.dumps([look(held.getsockname()[1]), look(four.getsockname()[1]), look(int(sys.argv[2]))]))
"""


@root_only
@pytest.mark.parametrize(
    ("bindv6only", "held", "four"),
    [
        ("0", [True, True, True], [True, False, True]),
        ("1", [False, True, True], [True, False, False]),
    ],
)
def test_bindv6only_and_another_network_namespace(bindv6only: str, held: list[bool], four: list[bool]) -> None:
    with listener(ANY) as outside:
        command = ["unshare", "--net", sys.executable, "-c", INSIDE, bindv6only, str(outside)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [held, four, [False, False, False]]
        assert listening(targets("127.0.0.1", outside), outside)
