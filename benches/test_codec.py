"""The codec called from Python: `relay.framing` (Rust) next to Cython, pure Python and aioquic's buffer.

First that all four agree, then how long a call takes at the sizes that matter. `make bench-codec` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aioquic.buffer import Buffer, BufferReadError, encode_uint_var

from relay import framing

sys.path.insert(0, str(Path(__file__).parent / "baselines"))

import compiled
import pure

DATAGRAM = 0x00
DATA = 0x2028D7F2
VALUES = [0, 63, 64, 16383, 16384, 2**30 - 1, 2**30, 2**62 - 1]
PAYLOAD = bytes(range(64))


def decode_with_aioquic(data: bytes) -> list[tuple[int, bytes]]:
    buffer = Buffer(data=data)
    capsules = []
    while not buffer.eof():
        kind = buffer.pull_uint_var()
        capsules.append((kind, buffer.pull_bytes(buffer.pull_uint_var())))
    return capsules


def header_with_aioquic(kind: int, length: int) -> bytes:
    buffer = Buffer(capacity=16)
    buffer.push_uint_var(kind)
    buffer.push_uint_var(length)
    return buffer.data


def varint_with_aioquic(data: bytes) -> tuple[int, int] | None:
    buffer = Buffer(data=data)
    try:
        return buffer.pull_uint_var(), buffer.tell()
    except BufferReadError:
        return None


class Whole:
    """aioquic has no capsule decoder: the loop that its users write, for data that is there as a whole."""

    def feed(self, data: bytes) -> list[Any]:
        return [SimpleNamespace(kind=kind, value=value) for kind, value in decode_with_aioquic(data)]


AIOQUIC = SimpleNamespace(
    encode_varint=encode_uint_var,
    decode_varint=varint_with_aioquic,
    encode_capsule_header=header_with_aioquic,
    encode_capsule=lambda kind, value: header_with_aioquic(kind, len(value)) + value,
    CapsuleDecoder=Whole,
)
CODECS: dict[str, Any] = {"rust": framing, "cython": compiled, "python": pure, "aioquic": AIOQUIC}

Codec = ModuleType | SimpleNamespace
Measure = Callable[..., Any]


@pytest.fixture(params=CODECS, ids=CODECS)
def codec(request: pytest.FixtureRequest) -> Any:
    return CODECS[request.param]


def shapes(events: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Events as tuples, whichever codec they are of."""
    names = ("kind", "length", "value", "data", "remaining")
    return [tuple((name, getattr(event, name)) for name in names if hasattr(event, name)) for event in events]


@pytest.mark.parametrize("value", VALUES)
def test_varints_agree(codec: Any, value: int) -> None:
    encoded = codec.encode_varint(value)
    assert encoded == framing.encode_varint(value)
    assert codec.decode_varint(encoded) == (value, len(encoded))
    assert codec.decode_varint(encoded[:-1]) is None


def test_capsules_agree(codec: Any) -> None:
    stream = b"".join(codec.encode_capsule(kind, PAYLOAD) for kind in VALUES)
    assert stream == b"".join(framing.encode_capsule(kind, PAYLOAD) for kind in VALUES)
    assert shapes(codec.CapsuleDecoder().feed(stream)) == shapes(framing.CapsuleDecoder().feed(stream))


@pytest.mark.parametrize("split", range(80))
@pytest.mark.parametrize("name", ["cython", "python"])
def test_splits_agree(name: str, split: int) -> None:
    stream = b"".join(framing.encode_capsule(kind, PAYLOAD[:length]) for kind, length in ((DATA, 40), (0, 0), (64, 20)))
    ours, theirs = framing.CapsuleDecoder(32), CODECS[name].CapsuleDecoder(32)
    for part in (stream[:split], stream[split:]):
        assert shapes(theirs.feed(part)) == shapes(ours.feed(part))


@pytest.mark.benchmark(group="1: encode a varint (4 bytes)")
def test_encode_varint(codec: Any, benchmark: Measure) -> None:
    benchmark(codec.encode_varint, DATA)


@pytest.mark.benchmark(group="2: decode a varint (4 bytes)")
def test_decode_varint(codec: Any, benchmark: Measure) -> None:
    benchmark(codec.decode_varint, framing.encode_varint(DATA))


@pytest.mark.benchmark(group="3: encode a capsule header")
def test_encode_header(codec: Any, benchmark: Measure) -> None:
    benchmark(codec.encode_capsule_header, DATA, 1200)


@pytest.mark.benchmark(group="4: encode a capsule of 1,200 bytes")
def test_encode_capsule(codec: Any, benchmark: Measure) -> None:
    benchmark(codec.encode_capsule, DATAGRAM, bytes(1200))


@pytest.mark.benchmark(group="5: decode 100 capsules of 64 bytes")
def test_decode_hundred_capsules(codec: Any, benchmark: Measure) -> None:
    stream = framing.encode_capsule(DATA, PAYLOAD) * 100
    assert len(benchmark(codec.CapsuleDecoder().feed, stream)) == 100
