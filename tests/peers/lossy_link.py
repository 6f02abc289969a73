"""A link in user space in front of a UDP port, which loses a share of the packets of either direction. A program of its own, so that
its CPU is nobody's; one client at a time.
"""

from __future__ import annotations

import random
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 65_535
#: Packets taken from one side before the other one has its turn.
TURN = 64


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 1 << 22)
    sock.setblocking(False)
    return sock


def main(host: str, port: str, loss: str) -> None:
    near, far, share, dice = udp(), udp(), float(loss), random.Random(7)
    near.bind(("127.0.0.1", 0))
    far.connect((host, int(port)))
    client = None
    print(near.getsockname()[1], flush=True)
    with selectors.DefaultSelector() as selector:
        for source in (near, far, sys.stdin):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                with suppress(BlockingIOError, ConnectionRefusedError):
                    for _ in range(TURN):
                        if key.fileobj is near:
                            packet, client = near.recvfrom(LONGEST)
                            if dice.random() >= share:
                                far.send(packet)
                        else:
                            packet = far.recv(LONGEST)
                            if client is not None and dice.random() >= share:
                                near.sendto(packet, client)


@contextmanager
def losing(share: float, host: str, port: int) -> Iterator[int]:
    """The port on 127.0.0.1 of such a link to `host` and `port`."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), host, str(port), str(share)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=5)
        process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
