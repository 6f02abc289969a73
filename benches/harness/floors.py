"""The floors of the machine: what the parts of relaying cost by themselves, in CPU seconds per 10^9 bytes.

They are measured in the same rounds as the peers, so that a slow moment falls on both. Each floor counts one process:
the far end of a socket is another one, of its own account.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .process import BenchError

BLOCK = 64 << 10
#: One QUIC payload at an MTU of 1,500 less headers, and how many of them fit a UDP datagram buffer.
PACKET, SEGMENTS = 1452, 44
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
PIPE = 1 << 20


@dataclass(frozen=True)
class Floor:
    """One part: its name and what it cost in one round."""

    name: str
    cost: float


def own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def far_end(work: Callable[[], None]) -> Iterator[None]:
    """Runs `work` in a child until the block ends."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def fill(sock: socket.socket) -> None:
    block = bytes(BLOCK)
    while True:
        sock.sendall(block)


def drain(sock: socket.socket) -> None:
    block = bytearray(BLOCK)
    while sock.recv_into(block):
        pass


def tcp_rx(size: int) -> float:
    near, far = pair()
    with near, far, far_end(lambda: fill(far)):
        block, got, before = bytearray(BLOCK), 0, own_cpu()
        while got < size:
            got += near.recv_into(block)
        return (own_cpu() - before) / (got / 1e9)


def tcp_tx(size: int) -> float:
    near, far = pair()
    with near, far, far_end(lambda: drain(far)):
        block, sent, before = bytes(BLOCK), 0, own_cpu()
        while sent < size:
            sent += near.send(block)
        return (own_cpu() - before) / (sent / 1e9)


def splice(size: int) -> float:
    """Socket to pipe to socket."""
    source, feed = pair()
    sink, taker = pair()
    with source, feed, sink, taker, far_end(lambda: fill(feed)), far_end(lambda: drain(taker)):
        out, into = os.pipe()
        try:
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)
            moved, before = 0, own_cpu()
            while moved < size:
                waiting = os.splice(source.fileno(), into, PIPE, flags=1)
                moved += waiting
                while waiting:
                    waiting -= os.splice(out, sink.fileno(), waiting, flags=1)
            return (own_cpu() - before) / (moved / 1e9)
        finally:
            os.close(out)
            os.close(into)


def udp_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
    for sock in (near, far):
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    return near, far


def udp_send(sock: socket.socket) -> Iterator[int]:
    """Full GSO batches, for ever."""
    sock.setsockopt(SOL_UDP, UDP_SEGMENT, PACKET)
    batch = bytes(PACKET * SEGMENTS)
    while True:
        yield sock.send(batch)


def udp_drain(sock: socket.socket) -> None:
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    block = bytearray(BLOCK)
    while True:
        sock.recv_into(block)


def udp_fill(sock: socket.socket) -> None:
    for _ in udp_send(sock):
        pass


def udp_tx(size: int) -> float:
    near, far = udp_pair()
    with near, far, far_end(lambda: udp_drain(far)):
        sent, before = 0, own_cpu()
        for count in udp_send(near):
            sent += count
            if sent >= size:
                break
        return (own_cpu() - before) / (sent / 1e9)


def udp_rx(size: int) -> float:
    """What overruns the socket is lost and not counted."""
    near, far = udp_pair()
    near.setsockopt(SOL_UDP, UDP_GRO, 1)
    with near, far, far_end(lambda: udp_fill(far)):
        block, got, before = bytearray(BLOCK), 0, own_cpu()
        while got < size:
            got += near.recv_into(block)
        return (own_cpu() - before) / (got / 1e9)


@dataclass(frozen=True)
class Flows:
    """Datagrams of many connected sockets, one a system call: what a relay cannot do without where each tunnel has its
    own. They come by a timetable of milliseconds, as the load client's do; results are CPU µs of one."""

    count: int
    rate: int
    size: int
    seconds: float

    def ticks(self) -> Iterator[range]:
        """The datagrams of each millisecond, when it has come."""
        start, sent = time.monotonic(), 0
        for tick in range(int(self.seconds * 1000)):
            due = self.rate * (tick + 1) // 1000
            time.sleep(max(start + tick / 1000 - time.monotonic(), 0))
            yield range(sent, due)
            sent = due

    @contextmanager
    def sockets(self) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
        """One socket, and those that are connected to it."""
        with ExitStack() as stack:
            hub = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            hub.bind(("127.0.0.1", 0))
            hub.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            ends = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(self.count)]
            for end in ends:
                end.connect(hub.getsockname())
                end.setblocking(False)
            yield hub, ends

    def send(self) -> float:
        payload = bytes(self.size)
        with self.sockets() as (hub, ends), far_end(lambda: drain(hub)):
            sent, before = 0, own_cpu()
            for tick in self.ticks():
                for number in tick:
                    ends[number % self.count].send(payload)
                    sent += 1
            return (own_cpu() - before) / sent * 1e6

    def receive(self) -> float:
        def feed(hub: socket.socket, addresses: list[tuple[str, int]]) -> None:
            payload = bytes(self.size)
            for tick in self.ticks():
                for number in tick:
                    hub.sendto(payload, addresses[number % self.count])

        with self.sockets() as (hub, ends), select.epoll() as poll:
            by_number = {end.fileno(): end for end in ends}
            for number in by_number:
                poll.register(number, select.EPOLLIN)
            addresses = [end.getsockname() for end in ends]
            block, got, before = bytearray(self.size), 0, own_cpu()
            with far_end(lambda: feed(hub, addresses)):
                while ready := poll.poll(1.0):
                    for number, _ in ready:
                        by_number[number].recv_into(block)
                        got += 1
                return (own_cpu() - before) / max(got, 1) * 1e6


def aead(size: int, *, opening: bool) -> float:
    """AES-128-GCM by OpenSSL, one message after another of `size` bytes."""
    program = shutil.which("openssl")
    if program is None:
        raise BenchError("openssl is not installed")
    command = [program, "speed", "-mr", "-seconds", "1", "-aead", "-bytes", str(size), "-evp", "aes-128-gcm"]
    command += ["-decrypt"] if opening else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    rate = re.search(r"\+F:\d+:[^:\s]+:([\d.]+)", done.stdout)
    if rate is None:
        raise BenchError("openssl speed gives no figure")
    return 1e9 / float(rate.group(1))


#: Every part; the kernel's take the number of bytes to move.
PARTS: dict[str, Callable[[int], float]] = {
    "TCP rx": tcp_rx,
    "TCP tx": tcp_tx,
    "splice": splice,
    "UDP GSO tx": udp_tx,
    "UDP GRO rx": udp_rx,
    "seal 16 KiB": lambda _: aead(16384, opening=False),
    "open 16 KiB": lambda _: aead(16384, opening=True),
    f"seal {PACKET} B": lambda _: aead(PACKET, opening=False),
    f"open {PACKET} B": lambda _: aead(PACKET, opening=True),
}
_TLS: dict[str, tuple[str, ...]] = {
    "down": ("TCP rx", "seal 16 KiB", "TCP tx"),
    "up": ("TCP rx", "open 16 KiB", "TCP tx"),
}
#: Which parts a relay cannot do without, by transport and direction.
FLOORS: dict[str, dict[str, tuple[str, ...]]] = {
    "h1": {"down": ("splice",), "up": ("splice",)},
    "h1tls": _TLS,
    "h2": _TLS,
    "h3": {
        "down": ("TCP rx", f"seal {PACKET} B", "UDP GSO tx"),
        "up": ("UDP GRO rx", f"open {PACKET} B", "TCP tx"),
    },
}


def measure(size: int) -> tuple[list[Floor], list[str]]:
    """One round of all parts, and what could not be measured."""
    found, faults = [], []
    for name, part in PARTS.items():
        try:
            found.append(Floor(name, part(size)))
        except (OSError, BenchError, subprocess.TimeoutExpired) as error:
            faults.append(f"floor {name}: {error}")
    return found, faults
