"""A long wire between two network interfaces: what goes in at one comes out of the other some milliseconds later.

    python tests/bench/delay.py NAME NAME MILLISECONDS     prints "ready"; until stdin ends

It does what ``tc netem delay`` does, for kernels without it. The interfaces are TUN devices which take packets as large
as the kernel likes (64 KiB, as a real card's would be before it cuts them), so that Python can keep up.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CHECKSUMS_AND_LARGE_PACKETS = 0x01 | 0x02  # TUN_F_CSUM, TUN_F_TSO4
LARGEST = (64 << 10) + 64


def main(first: str, second: str, milliseconds: str) -> None:
    """Carry packets both ways, one process each."""
    ends = [_device(first), _device(second)]
    forward = os.fork() == 0
    if not forward:
        print("ready", flush=True)
    way = ends if forward else ends[::-1]
    threading.Thread(target=carry, args=(*way, float(milliseconds) / 1000), daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def carry(source: int, target: int, delay: float) -> None:
    """Write to `target` what `source` had, `delay` seconds later; what waits when `source` ends is lost."""
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        rest = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([source], [], [], rest)[0]:
            packet = os.read(source, LARGEST)
            if not packet:
                return
            waiting.append((time.monotonic() + delay, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            with suppress(OSError):  # an interface that is not up yet: what nobody takes is lost, as on any wire
                os.write(target, waiting.popleft()[1])


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, CHECKSUMS_AND_LARGE_PACKETS)
    return descriptor


if __name__ == "__main__":
    main(*sys.argv[1:])
