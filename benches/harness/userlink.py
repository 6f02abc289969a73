"""A link with delay and loss in user space, for kernels without netem: two TUN devices and a process between them.

Run as a program with two descriptors it forwards packets from each device to the other: every packet waits for the
delay, some are dropped, and no more wait than the queue has room for. Lines on standard input (`DELAY_SECONDS
LOSS_SHARE`, for either direction) change what it does.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
#: Packets that may wait in one direction, and the longest of them.
QUEUE, LONGEST = 20_000, 2048
#: Packets taken from a device before the other one has its turn.
TURN = 64


def device(name: str) -> int:
    """Makes a TUN device in this namespace; returns the descriptor that keeps it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def forwarding(near: int, far: int) -> Iterator[subprocess.Popen[str]]:
    """The process that forwards between two devices, as a program of its own: its CPU is nobody's."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(near), str(far)],
        stdin=subprocess.PIPE,
        pass_fds=(near, far),
        text=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


def become(process: subprocess.Popen[str], delay_ms: float, loss_percent: float) -> None:
    """Changes the link: half the delay and all the loss in either direction, as with netem at both ends."""
    assert process.stdin is not None
    process.stdin.write(f"{delay_ms / 2000} {loss_percent / 100}\n")
    process.stdin.flush()


class Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.waiting: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self, now: float, delay: float, loss: float) -> None:
        for _ in range(TURN):
            try:
                packet = os.read(self.source, LONGEST)
            except BlockingIOError:
                return
            if random.random() >= loss and len(self.waiting) < QUEUE:
                self.waiting.append((now + delay, packet))

    def deliver(self, now: float) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            packet = self.waiting.popleft()[1]
            try:
                os.write(self.sink, packet)
            except OSError as error:
                # The device is being set up or taken down, or cannot take more: a link loses such packets.
                if error.errno not in (errno.EIO, errno.EAGAIN, errno.EINVAL):
                    raise


def forward(near: int, far: int) -> None:
    delay = loss = 0.0
    ways = [Direction(near, far), Direction(far, near)]
    with selectors.DefaultSelector() as selector:
        for way in ways:
            selector.register(way.source, selectors.EVENT_READ, way)
        selector.register(sys.stdin, selectors.EVENT_READ, None)
        while True:
            due = min((way.waiting[0][0] for way in ways if way.waiting), default=None)
            wait = None if due is None else max(due - time.monotonic(), 0)
            for key, _ in selector.select(wait):
                if key.data is None:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    delay, loss = (float(part) for part in line.split())
                else:
                    key.data.take(time.monotonic(), delay, loss)
            for way in ways:
                way.deliver(time.monotonic())


if __name__ == "__main__":
    forward(int(sys.argv[1]), int(sys.argv[2]))
