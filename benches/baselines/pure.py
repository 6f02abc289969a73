"""The codec in pure Python."""

from __future__ import annotations

from typing import NamedTuple

MAX = (1 << 62) - 1


class Capsule(NamedTuple):
    """A whole capsule."""

    kind: int
    value: bytes


class CapsuleHeader(NamedTuple):
    """The header of a capsule whose value comes in parts."""

    kind: int
    length: int


class CapsuleValue(NamedTuple):
    """A part of the value of the capsule whose header came before."""

    data: bytes
    remaining: int


def encode_varint(value: int) -> bytes:
    """Encodes an integer in its shortest form (RFC 9000 §16)."""
    if value < 0 or value > MAX:
        raise ValueError("value must be from 0 to 2**62 - 1")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def decode_varint(data: bytes, offset: int = 0) -> tuple[int, int] | None:
    """Decodes the integer at `offset`: (value, bytes it took), or None when more bytes are needed."""
    if offset >= len(data):
        return None
    length = 1 << (data[offset] >> 6)
    if offset + length > len(data):
        return None
    return int.from_bytes(data[offset : offset + length], "big") & ((1 << (8 * length - 2)) - 1), length


def encode_capsule_header(kind: int, length: int) -> bytes:
    """Encodes the header of a capsule whose value follows separately."""
    return encode_varint(kind) + encode_varint(length)


def encode_capsule(kind: int, value: bytes = b"") -> bytes:
    """Encodes a whole capsule (RFC 9297 §3.2)."""
    return encode_varint(kind) + encode_varint(len(value)) + value


class CapsuleDecoder:
    """An incremental decoder: capsules of up to `max_whole` bytes come whole, longer ones in parts."""

    def __init__(self, max_whole: int = 65536) -> None:
        self._whole = max_whole
        self._held = b""
        self._remaining = 0

    def feed(self, data: bytes) -> list[Capsule | CapsuleHeader | CapsuleValue]:
        """What the bytes complete, in order."""
        if self._held:
            data = self._held + data
        events: list[Capsule | CapsuleHeader | CapsuleValue] = []
        at, end = 0, len(data)
        while at < end:
            if self._remaining:
                taken = min(self._remaining, end - at)
                self._remaining -= taken
                events.append(CapsuleValue(data[at : at + taken], self._remaining))
                at += taken
                continue
            first = decode_varint(data, at)
            second = first and decode_varint(data, at + first[1])
            if not first or not second:
                break
            kind, length, value = first[0], second[0], at + first[1] + second[1]
            if length <= self._whole:
                if value + length > end:
                    break
                events.append(Capsule(kind, data[value : value + length]))
                at = value + length
            else:
                events.append(CapsuleHeader(kind, length))
                self._remaining = length
                at = value
        self._held = data[at:]
        return events
