"""Tells a service manager how far a start is, as sd_notify(3) does.

vllmrt becomes the server, so it cannot tell when that is ready. A watcher does: a process of its own, which no server
has to bury, and which ends with the message or with the server. Run as
``python -P -m vllmrt.background.notify ADDRESS PID URL NAME``.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from vllmrt.serve.client import Failed, ask, parse_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.events import Emit, Event

_PAUSE_MS = 250
_SECONDS = 5.0
_OK = 200
_LONGEST = 200


def send(address: str, *lines: str) -> None:
    """Send a message; one that cannot be delivered is of no consequence for the start.

    Args:
        address: a path, or the name of an abstract socket behind ``@``.
        lines: assignments such as ``READY=1``.
    """
    text = "\n".join(line.replace("\n", " ")[:_LONGEST] for line in lines)
    target = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(_SECONDS)
        manager.connect(target)
        manager.send(text.encode(errors="replace"))


def telling(emit: Emit, address: str) -> Emit:
    """Return a function that shows events, and tells the service manager of them too."""

    def told(event: Event) -> None:
        if event.text:
            send(address, f"STATUS={event.label}: {event.text}")
        emit(event)

    return told


def watch(address: str, pid: int, url: str, name: str) -> None:
    """Start the watcher of a server; a process that is about to become the server will do.

    Args:
        address: of the service manager.
        pid: of the server.
        url: where the server will answer.
        name: of the model, for people.

    Raises:
        OSError: no process can be started.
    """
    command = [sys.executable, "-P", "-m", __name__, address, str(pid), url, name]
    null = subprocess.DEVNULL
    # it forks when it has hold of the server, and what we started ends: nobody is left to be buried
    subprocess.run(command, stdin=null, stdout=null, stderr=null, check=False)


def main(arguments: Sequence[str]) -> int:
    """Wait until the server is healthy, and say so."""
    address, pid, url, name = arguments
    server = os.pidfd_open(int(pid))
    send(address, f"MAINPID={pid}", f"STATUS=vLLM loads {name}")
    if os.fork():
        return 0
    os.setsid()
    poller = select.poll()
    poller.register(server, select.POLLIN)
    while not poller.poll(_PAUSE_MS):
        if _is_healthy(url):
            send(address, "READY=1", f"MAINPID={pid}", f"STATUS=serving {name} on {url}")
            break
    return 0


def _is_healthy(url: str) -> bool:
    with suppress(Failed):
        return ask(parse_url(url), "/health", key=None, body=None, seconds=_SECONDS).status == _OK
    return False


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
