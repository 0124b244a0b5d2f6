"""Two network namespaces with a long wire between them; all of it is gone with the block."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.measure import Missing
from bench.servers import process

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER, CLIENT = "10.99.0.1", "10.99.0.2"
BUFFERS = "4096 131072 33554432"
"""Bytes; with Linux's 4 MB to send from, less than is under way at 100 MB/s and 50 ms, all tools would be the same."""


class Wire(NamedTuple):
    """Commands that run another one in a namespace, and what makes the delay."""

    server: list[str]
    client: list[str]
    by: str


@contextmanager
def wire(milliseconds: float) -> Iterator[Wire]:
    """Lay a wire with a delay each way, of ``tc netem`` where the kernel has it, else of `bench.delay`.

    Raises:
        Missing: this needs root and ip(8), or something could not be set up.
    """
    if os.getuid() or not shutil.which("ip"):
        raise Missing("network namespaces need root and iproute2")
    names = [f"vb-{end}-{os.getpid()}" for end in ("s", "c")]
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        by = _netem(names, milliseconds) or stack.enter_context(_tun(names, milliseconds))
        for name, address in zip(names, (SERVER, CLIENT), strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            for buffers in ("tcp_rmem", "tcp_wmem"):
                line = f"echo {BUFFERS} > /proc/sys/net/ipv4/{buffers}"
                _ip("netns", "exec", name, "sh", "-c", line)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "txqueuelen", "10000", "up")
        yield Wire(*(["ip", "netns", "exec", name] for name in names), by)


def _netem(names: list[str], milliseconds: float) -> str | None:
    _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
    delay = ["root", "netem", "delay", f"{milliseconds}ms", "limit", "100000"]
    for name in names:
        command = ["tc", "-n", name, "qdisc", "add", "dev", name, *delay]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            _ip("-n", names[0], "link", "del", names[0])
            return None
    return "tc netem"


@contextmanager
def _tun(names: list[str], milliseconds: float) -> Iterator[str]:
    command = [sys.executable, Path(__file__).with_name("delay.py"), *names, milliseconds]
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        if running.stdout.readline() != b"ready\n":
            raise Missing("there are no TUN devices")
        for name in names:
            _ip("link", "set", name, "netns", name)
        yield "TUN devices, as this kernel has no netem"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"ip {' '.join(words)}: {done.stderr.strip()}")
