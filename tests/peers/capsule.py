"""RFC 9297 capsules once more, written for the tests alone."""

from __future__ import annotations

DATA_TYPES = {"connect-tcp-12": (0x2028D7F2, 0x2028D7F3), "connect-tcp-07": (0x2028D7F0, 0x2028D7F1)}
MAX = (1 << 62) - 1


def varint(value: int, size: int | None = None) -> bytes:
    """RFC 9000 §16; `size` forces a longer form than needed."""
    for exponent, length in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * length - 2) and (size is None or size == length):
            return (value | exponent << (8 * length - 2)).to_bytes(length, "big")
    raise ValueError(f"{value} does not fit {size} bytes")


def read_varint(data: bytes, at: int = 0) -> tuple[int, int] | None:
    """(value, position after it), or nothing while bytes are missing."""
    if at >= len(data):
        return None
    length = 1 << (data[at] >> 6)
    if at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length], "big") & ((1 << (8 * length - 2)) - 1)
    return value, at + length


def capsule(
    kind: int,
    value: bytes = b"",
    *,
    length: int | None = None,
    kind_size: int | None = None,
    length_size: int | None = None,
) -> bytes:
    """One capsule; `length` lies about the value's length."""
    return varint(kind, kind_size) + varint(len(value) if length is None else length, length_size) + value


def grease(n: int) -> int:
    """The n-th reserved capsule type."""
    return 0x29 * n + 0x17


class Decoder:
    """Cuts a data stream into (type, piece of value, last piece?)."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.kind: int | None = None
        self.left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """What the bytes so far make out; payload is given before its capsule is complete."""
        self.buffer += data
        out: list[tuple[int, bytes, bool]] = []
        while True:
            if self.kind is None:
                head = bytes(self.buffer[:16])
                first = read_varint(head)
                second = read_varint(head, first[1]) if first else None
                if first is None or second is None:
                    return out
                self.kind, self.left = first[0], second[0]
                del self.buffer[: second[1]]
                if self.left == 0:
                    out.append((self.kind, b"", True))
                    self.kind = None
                    continue
            if not self.buffer:
                return out
            piece = bytes(self.buffer[: self.left])
            del self.buffer[: len(piece)]
            self.left -= len(piece)
            out.append((self.kind, piece, self.left == 0))
            if self.left == 0:
                self.kind = None

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""
        return self.kind is None and not self.buffer
