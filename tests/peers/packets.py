"""Packets as they go over loopback."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

ATTACH_FILTER = 26
ETHERNET = 14


class Packets:
    """IPv4 packets of UDP to one port. The kernel leaves out all others, however many there are."""

    def __init__(self, port: int) -> None:
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0800))
        except PermissionError:
            pytest.skip("reading packets takes privileges")
        program = [
            (0x30, 0, 0, ETHERNET + 9),  # the protocol
            (0x15, 0, 4, socket.IPPROTO_UDP),
            (0xB1, 0, 0, ETHERNET),  # the length of the header
            (0x48, 0, 0, ETHERNET + 2),  # the port behind it
            (0x15, 0, 1, port),
            (0x06, 0, 0, 0xFFFF),
            (0x06, 0, 0, 0),
        ]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
        self.socket.setsockopt(
            socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )
        self.socket.bind(("lo", 0))
        self.socket.settimeout(10)

    def __enter__(self) -> Packets:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def next(self) -> bytes:
        """The next packet, from its IP header on."""
        return self.socket.recv(65535)[ETHERNET:]
