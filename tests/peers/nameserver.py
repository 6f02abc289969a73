"""A name server of the tests' own, on a random UDP and TCP port of loopback."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading

A, AAAA, SOA = 1, 28, 6
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5


class NameServer:
    """Answers from `records`; a name may also have a failure (`rcodes`) or silence."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {
            "four.test": ["127.0.0.1"],
            "six.test": ["::1"],
            "both.test": ["127.0.0.1", "::1"],
            "private.test": ["10.0.0.1"],
            "mixed.test": ["10.0.0.1", "127.0.0.1"],
            "nothing.test": [],
        }
        self.rcodes = {"servfail.test": SERVFAIL, "refused.test": REFUSED}
        self.silent = {"silent.test"}
        self.queries: list[tuple[str, int]] = []
        self.udp, self.tcp, self.port = self.bind()
        self.threads = [
            threading.Thread(target=self.serve_udp, daemon=True),
            threading.Thread(target=self.serve_tcp, daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def bind() -> tuple[socket.socket, socket.socket, int]:
        while True:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            tcp = socket.socket()
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                udp.close()
                tcp.close()
                continue
            tcp.listen(64)
            return udp, tcp, port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()

    def serve_udp(self) -> None:
        while True:
            try:
                query, client = self.udp.recvfrom(4096)
                if answer := self.answer(query):
                    self.udp.sendto(answer, client)
            except OSError:
                return

    def serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            threading.Thread(target=self.serve_connection, args=(connection,), daemon=True).start()

    def serve_connection(self, connection: socket.socket) -> None:
        with connection:
            while head := connection.recv(2, socket.MSG_WAITALL):
                query = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                if answer := self.answer(query):
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def answer(self, query: bytes) -> bytes | None:
        identity, flags, questions = struct.unpack("!HHH", query[:6])
        assert questions == 1
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
            at += 1 + length
        question = query[12 : at + 5]
        name, kind = ".".join(labels), int.from_bytes(query[at + 1 : at + 3], "big")
        self.queries.append((name, kind))
        if name in self.silent:
            return None
        rcode, answers = NOERROR, []
        if name in self.rcodes:
            rcode = self.rcodes[name]
        elif name in self.records:
            for text in self.records[name]:
                address = ipaddress.ip_address(text)
                if kind == (A if address.version == 4 else AAAA):
                    data = address.packed
                    answers.append(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(data)) + data)
        else:
            rcode = NXDOMAIN
        authority = b""
        if not answers and rcode in (NOERROR, NXDOMAIN):
            # A zero-second SOA: failures must not be remembered from one test to the next.
            data = b"\x00\x00" + struct.pack("!IIIII", 1, 1, 1, 1, 0)
            authority = b"\x00" + struct.pack("!HHIH", SOA, 1, 0, len(data)) + data
        header = struct.pack(
            "!HHHHHH", identity, 0x8580 | (flags & 0x0100) | rcode, 1, len(answers), 1 if authority else 0, 0
        )
        return header + question + b"".join(answers) + authority
