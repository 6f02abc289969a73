"""The codec from Python: varints, capsules, connect-tcp, connect-udp; any split, any buffer."""

import array
import contextlib
import ctypes
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import framing
from relay.framing import (
    Capsule,
    CapsuleDecoder,
    CapsuleHeader,
    CapsuleValue,
    ConnectTcp,
    ConnectUdp,
    ConnectUdpBind,
    FramingError,
    decode_varint,
    encode_capsule,
    encode_capsule_header,
    encode_varint,
)

VARINTS = st.integers(0, framing.MAX_VARINT)
BUFFERS: list[Callable[[bytes], Any]] = [
    bytes,
    bytearray,
    memoryview,
    lambda data: array.array("B", data),
    lambda data: array.array("b", data),
    lambda data: (ctypes.c_ubyte * len(data)).from_buffer_copy(data),
    lambda data: (ctypes.c_char * len(data)).from_buffer_copy(data),
    lambda data: memoryview(data).cast("b"),
]


@pytest.mark.parametrize(
    ("wire", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("4025", 37),
        ("25", 37),
    ],
)
def test_the_vectors_of_rfc_9000(wire: str, value: int) -> None:
    data = bytes.fromhex(wire)
    assert decode_varint(data) == (value, len(data))
    if wire != "4025":
        assert encode_varint(value) == data


@given(VARINTS, st.binary(max_size=3))
def test_varints_come_back(value: int, before: bytes) -> None:
    wire = encode_varint(value)
    assert decode_varint(before + wire, len(before)) == (value, len(wire))
    assert all(decode_varint(wire[:cut]) is None for cut in range(len(wire)))


@pytest.mark.parametrize("value", [-1, framing.MAX_VARINT + 1, 1 << 70])
def test_what_no_varint_holds(value: int) -> None:
    with pytest.raises(ValueError, match="from 0 to"):
        encode_varint(value)
    with pytest.raises(ValueError, match="from 0 to"):
        encode_capsule(value, b"")
    with pytest.raises(ValueError, match="from 0 to"):
        encode_capsule_header(0, value)
    with pytest.raises(ValueError, match="kind must be from 0 to"):
        Capsule(value, b"")
    with pytest.raises(ValueError, match="length must be from 0 to"):
        CapsuleHeader(1, value)
    with pytest.raises(ValueError, match="remaining must be from 0 to"):
        CapsuleValue(b"", value)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_counts_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="max_whole must be from 0 to"):
        CapsuleDecoder(value)
    with pytest.raises(ValueError, match="offset must be from 0 to"):
        decode_varint(b"", value)


def test_counts_may_be_larger_than_anything_there_is() -> None:
    assert decode_varint(b"\x01", 1) is None
    assert decode_varint(b"\x01", sys.maxsize) is None
    assert CapsuleDecoder(sys.maxsize).feed(b"\x05\x01a") == [Capsule(5, b"a")]


def test_what_is_no_bytes() -> None:
    for wrong in ("text", 7, None, [1], memoryview(b"abcdefgh").cast("H")[::2]):
        with pytest.raises(TypeError):
            decode_varint(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", BUFFERS)
def test_any_buffer_will_do(buffer: Callable[[bytes], Any]) -> None:
    assert decode_varint(buffer(b"\x40\x25")) == (37, 2)
    wire = encode_capsule(7, buffer(b"abc"))
    assert wire == b"\x07\x03abc"
    assert CapsuleDecoder().feed(buffer(wire)) == [Capsule(7, b"abc")]
    machine = ConnectTcp()
    assert ConnectTcp().receive(buffer(machine.send(buffer(b"abc")))) == b"abc"
    assert ConnectUdp().receive(buffer(ConnectUdp.send(buffer(b"abc")))) == [b"abc"]
    assert ConnectUdp().receive_datagram(buffer(ConnectUdp.send_datagram(buffer(b"abc")))) == b"abc"


def test_wider_items_are_the_bytes_that_they_are_in_memory() -> None:
    for wide in (
        memoryview(b"abcd").cast("H"),
        array.array("I", b"abcd"),
        (ctypes.c_uint16 * 2).from_buffer_copy(b"abcd"),
    ):
        assert encode_capsule(1, wide) == b"\x01\x04abcd"


def test_a_strided_view_is_taken_as_it_reads() -> None:
    assert encode_capsule(1, memoryview(b"a-b-c-")[::2]) == b"\x01\x03abc"


def collected(pieces: list[bytes], max_whole: int) -> list[tuple[int, bytes]]:
    """The capsules that come out of a decoder, put together again."""
    decoder = CapsuleDecoder(max_whole)
    found: list[tuple[int, bytes]] = []
    for event in itertools.chain.from_iterable(decoder.feed(piece) for piece in pieces):
        match event:
            case Capsule(kind, value):
                assert len(value) <= max_whole
                found.append((kind, value))
            case CapsuleHeader(kind, length):
                assert length > max_whole
                found.append((kind, b""))
            case CapsuleValue(data, _):
                kind, so_far = found.pop()
                found.append((kind, so_far + data))
    assert decoder.at_boundary
    decoder.finish()
    return found


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(
    st.lists(st.tuples(VARINTS, st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(0, 500), max_size=12),
    st.integers(0, 50),
)
def test_any_split_gives_the_same_capsules(capsules: list[tuple[int, bytes]], cuts: list[int], max_whole: int) -> None:
    wire = b"".join(encode_capsule(kind, value) for kind, value in capsules)
    assert collected(split(wire, cuts), max_whole) == capsules
    assert collected([bytes([byte]) for byte in wire], max_whole) == capsules


def test_a_capsule_of_any_length_streams() -> None:
    # = rfc9297 §3.2 never-accumulate
    decoder = CapsuleDecoder()
    length = framing.MAX_VARINT
    assert decoder.feed(encode_capsule_header(5, length)) == [CapsuleHeader(5, length)]
    assert decoder.feed(b"abc") == [CapsuleValue(b"abc", length - 3)]
    assert not decoder.at_boundary


@pytest.mark.parametrize("wire", [b"\x00", b"\x00\x40", b"\x00\x02a", b"\xa0\x28"])
def test_an_end_inside_a_capsule_is_malformed(wire: bytes) -> None:
    # = rfc9297 §3.3 truncated-capsule
    decoder = CapsuleDecoder()
    decoder.feed(wire)
    with pytest.raises(FramingError):
        decoder.finish()


def test_grease() -> None:
    assert [kind for kind in range(0x70) if framing.is_grease(kind)] == [0x17, 0x40, 0x69]


@given(st.lists(st.binary(max_size=30), max_size=5), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_a_stream_arrives_however_it_is_split(payloads: list[bytes], cuts: list[int], greased: bool) -> None:
    near, far = ConnectTcp(), ConnectTcp()
    between = encode_capsule(0x17, b"grease") if greased else encode_capsule(0x1234, b"?")
    wire = b"".join(near.send(payload) + between for payload in payloads) + near.send_final() + between
    assert b"".join(far.receive(piece) for piece in split(wire, cuts)) == b"".join(payloads)
    assert far.receive_finished
    assert near.send_finished
    assert far.receive_end() is True
    assert far.unknown_capsules == (0 if greased else len(payloads) + 1)


def test_nothing_is_sent_after_the_end() -> None:
    # = connect-tcp §3 no-data-after-own-final
    near = ConnectTcp()
    near.send_final()
    for send in (lambda: near.send(b""), lambda: near.send_header(1), near.send_final):
        with pytest.raises(FramingError):
            send()


def test_data_after_the_end_is_malformed() -> None:
    # = connect-tcp §3 data-after-final
    far = ConnectTcp()
    far.receive(ConnectTcp().send_final())
    for _ in range(2):
        with pytest.raises(FramingError):
            far.receive(ConnectTcp().send(b"late"))


def received(pieces: list[bytes]) -> tuple[bytes, bool]:
    """The payload among the pieces up to a fault, and whether FINAL_DATA was before it."""
    machine = ConnectTcp()
    payload = b""
    with contextlib.suppress(FramingError):
        for piece in pieces:
            payload += machine.receive(piece)
    for _ in range(2):
        with pytest.raises(FramingError):
            machine.receive(b"")
    with pytest.raises(FramingError):
        machine.receive_end()
    return payload, machine.receive_finished


@given(st.booleans(), st.lists(st.integers(0, 100), max_size=8))
def test_payload_before_a_fault_arrives_however_it_is_split(after_final: bool, cuts: list[int]) -> None:
    # = connect-tcp §3 data-after-final
    near = ConnectTcp()
    good = near.send(b"go") + encode_capsule(0x17, b"grease") + near.send(b"od")
    fault = near.send_final() + ConnectTcp().send(b"z") if after_final else encode_capsule(framing.DATAGRAM, b"z")
    assert received([good + fault]) == (b"good", after_final)
    assert received(split(good + fault, cuts)) == (b"good", after_final)


def test_how_a_data_stream_may_end() -> None:
    assert ConnectTcp().receive_end() is False
    cut = ConnectTcp()
    cut.receive(ConnectTcp().send(b"abc")[:-1])
    with pytest.raises(FramingError):
        cut.receive_end()


def test_tokens_have_their_own_types() -> None:
    assert ConnectTcp("connect-tcp-07").send(b"") == bytes.fromhex("a028d7f000")
    assert ConnectTcp("connect-tcp-12").send_final() == bytes.fromhex("a028d7f300")
    own = ConnectTcp("connect-tcp", data=1, final_data=2)
    assert own.send_header(1 << 61) == b"\x01" + encode_varint(1 << 61)
    assert own.send_final() == b"\x02\x00"
    with pytest.raises(ValueError, match="unknown token"):
        ConnectTcp("connect-tcp")
    with pytest.raises(ValueError, match="go together"):
        ConnectTcp(data=1)


@pytest.mark.parametrize(
    ("data", "final_data", "expected"),
    [
        (5, 5, "data and final_data must differ"),
        (framing.DATAGRAM, 1, "data must be neither 0"),
        (1, framing.DATAGRAM, "final_data must be neither 0"),
        (0x17, 1, "data must be neither 0"),
        (1, 0x29 * 7 + 0x17, "final_data must be neither 0"),
        (1 << 62, 1, "data must be from 0 to"),
    ],
)
def test_types_that_no_tunnel_can_have(data: int, final_data: int, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}"):
        ConnectTcp("own", data=data, final_data=final_data)


LONGEST = 65_527


def test_how_a_payload_looks_on_the_wire() -> None:
    # = rfc9298 §5 context-0-payload
    assert ConnectUdp.send(b"abc") == b"\x00\x04\x00abc"
    assert ConnectUdp.send_datagram(b"abc") == b"\x00abc"
    assert ConnectUdp.send(b"") == b"\x00\x01\x00"
    assert ConnectUdp.send_datagram(b"") == b"\x00"


@given(
    st.lists(
        st.tuples(st.binary(max_size=30), st.sampled_from(["payload", "grease", "unknown", "context"])), max_size=6
    ),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_datagrams_arrive_however_they_are_split(given: list[tuple[bytes, str]], cuts: list[int]) -> None:
    # = rfc9298 §4 unknown-context
    # = rfc9297 §3.2 skip-unknown
    makers: dict[str, Callable[[bytes], bytes]] = {
        "payload": ConnectUdp.send,
        "grease": lambda value: encode_capsule(0x17, value),
        "unknown": lambda value: encode_capsule(0x1234, value),
        "context": lambda value: encode_capsule(framing.DATAGRAM, encode_varint(77) + value),
    }
    wire = b"".join(makers[kind](value) for value, kind in given)
    for pieces in (split(wire, cuts), [bytes([byte]) for byte in wire]):
        machine = ConnectUdp()
        found = [payload for piece in pieces for payload in machine.receive(piece)]
        assert found == [value for value, kind in given if kind == "payload"]
        machine.receive_end()
        kinds = [kind for _, kind in given]
        assert (machine.unknown_capsules, machine.unknown_contexts) == (kinds.count("unknown"), kinds.count("context"))


def test_datagrams_of_frames() -> None:
    # = rfc9298 §4 unknown-context
    machine = ConnectUdp()
    assert machine.receive_datagram(b"\x00abc") == b"abc"
    assert machine.receive_datagram(b"\x40\x00abc") == b"abc"
    assert machine.receive_datagram(b"\x00") == b""
    assert machine.receive_datagram(b"\x02abc") is None
    assert machine.unknown_contexts == 1
    for _ in range(2):
        with pytest.raises(FramingError):
            machine.receive_datagram(b"")
    with pytest.raises(FramingError):
        machine.receive(ConnectUdp.send(b"late"))


def test_the_longest_payload() -> None:
    # = rfc9298 §5 context-0-limit
    payload = bytes(LONGEST)
    assert framing.MAX_UDP_PAYLOAD == LONGEST
    assert ConnectUdp().receive(ConnectUdp.send(payload)) == [payload]
    for send in (ConnectUdp.send, ConnectUdp.send_datagram):
        with pytest.raises(ValueError, match="at most 65527"):
            send(payload + b"!")
    with pytest.raises(FramingError):
        ConnectUdp().receive_datagram(b"\x00" + payload + b"!")


def test_what_is_too_long_is_told_at_once_and_never_held() -> None:
    # = rfc9298 §5 context-0-limit
    machine = ConnectUdp()
    good = ConnectUdp.send(b"one") + ConnectUdp.send(b"two")
    assert machine.receive(good + encode_capsule_header(framing.DATAGRAM, LONGEST + 2) + b"\x00") == [b"one", b"two"]
    for _ in range(2):
        with pytest.raises(FramingError):
            machine.receive(b"more")
    # Of another context's datagrams nothing is known but that they are not for us.
    machine = ConnectUdp()
    assert machine.receive(encode_capsule_header(framing.DATAGRAM, 1 << 40) + b"\x02" + bytes(1000)) == []
    assert machine.unknown_contexts == 1
    with pytest.raises(FramingError):
        machine.receive_end()


def test_a_datagram_without_a_context_is_malformed() -> None:
    # = rfc9297 §3.3 malformed-capsule
    for wire in (b"\x00\x00", b"\x00\x01\x40"):
        with pytest.raises(FramingError):
            ConnectUdp().receive(wire)


@pytest.mark.parametrize("cut", range(1, 6))
def test_datagrams_may_not_end_inside_a_capsule(cut: int) -> None:
    # = rfc9297 §3.3 truncated-capsule
    machine = ConnectUdp()
    assert machine.receive(ConnectUdp.send(b"abc")[:cut]) == []
    with pytest.raises(FramingError):
        machine.receive_end()


PEER, OTHER = ("192.0.2.1", 53), ("2001:db8::1", 443)


def bound(**options: Any) -> tuple[ConnectUdpBind, ConnectUdpBind]:
    return ConnectUdpBind("client", **options), ConnectUdpBind("proxy", permit=lambda host, port: port != 25, **options)


@given(
    st.lists(st.tuples(st.sampled_from([PEER, OTHER, ("192.0.2.7", 1)]), st.binary(max_size=30)), max_size=6), st.data()
)
def test_bound_datagrams_arrive_however_they_are_split(given: list[tuple[Any, bytes]], data: st.DataObject) -> None:
    # = connect-udp-bind §4 uncompressed-format
    near, far = bound()
    near.open()
    near.open(OTHER)
    wire = near.take_pending() + b"".join(near.send(peer, payload) or b"" for peer, payload in given)
    cuts = data.draw(st.lists(st.integers(0, 400), max_size=12))
    assert [found for piece in split(wire, cuts) for found in far.receive(piece)] == given
    far.receive_end()
    near.receive(far.take_pending())
    # = connect-udp-bind §8 forward-by-context
    assert [near.receive_datagram(far.send_datagram(peer, payload) or b"") for peer, payload in given] == given


def test_contexts_of_peers() -> None:
    near, far = bound()
    with pytest.raises(FramingError):
        far.open(PEER)  # not while the uncompressed context is closed
    assert near.send(PEER, b"x") is None
    assert near.send_datagram(PEER, b"x") is None
    uncompressed, ours = near.open(), near.open(PEER)
    for again in (None, PEER):
        with pytest.raises(FramingError):
            near.open(again)
    # = connect-udp-bind §3 parity
    assert (uncompressed, ours) == (2, 4)
    assert not near.is_acknowledged(ours)
    # Until it is acknowledged the uncompressed one is the surer way.
    assert near.send_datagram(PEER, b"x") == b"\x02\x04\xc0\x00\x02\x01\x00\x35x"
    far.receive(near.take_pending())
    near.receive(far.take_pending())
    assert near.is_acknowledged(ours)
    assert near.send_datagram(PEER, b"x") == b"\x04x"
    theirs = far.open(OTHER)
    assert theirs == 1
    near.receive(far.take_pending())
    far.receive(near.take_pending())
    assert far.send_datagram(OTHER, b"y") == b"\x01y"
    # = connect-udp-bind §3.3 none-after-close
    assert near.close(theirs)
    assert not near.close(theirs)
    assert near.receive_datagram(b"\x01late") is None
    assert near.unknown_contexts == 1


def test_what_a_proxy_permits() -> None:
    # = connect-udp-bind §9 check-each-target
    near, far = bound()
    near.open()
    rejected = near.open(("192.0.2.1", 25))
    assert far.receive(near.take_pending() + (near.send(("192.0.2.9", 25), b"x") or b"")) == []
    assert far.refused == 1
    near.receive(far.take_pending())
    assert not near.close(rejected)

    def broken(host: str, port: int) -> bool:
        raise LookupError(host)

    angry = ConnectUdpBind("proxy", permit=broken)
    client = ConnectUdpBind("client")
    client.open(PEER)
    with pytest.raises(LookupError, match=r"192\.0\.2\.1"):
        angry.receive(client.take_pending())


def test_context_0_of_bound_tunnels() -> None:
    # = connect-udp-bind §3 context-0-target
    near, far = bound(target=PEER)
    assert near.send_datagram(PEER, b"x") == b"\x00x"
    assert far.receive_datagram(b"\x00x") == (PEER, b"x")
    # = connect-udp-bind §3 context-0-aborts
    _, far = bound()
    for _ in range(2):
        with pytest.raises(FramingError):
            far.receive_datagram(b"\x00x")


def test_arguments_of_bound_tunnels() -> None:
    with pytest.raises(ValueError, match="role must be"):
        ConnectUdpBind("server")
    with pytest.raises(ValueError, match="needs permit"):
        ConnectUdpBind("proxy")
    near, _ = bound()
    near.open()
    for peer in (("host", 1), ("[::1]", 1)):
        with pytest.raises(ValueError, match="IP address"):
            near.send(peer, b"")
    with pytest.raises(ValueError, match="at most 65527"):
        near.send(PEER, bytes(LONGEST + 1))
    with pytest.raises(OverflowError):
        near.open(("::1", 65_536))


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_no_input_breaks_the_decoders(pieces: list[bytes]) -> None:
    decoder, machine, datagrams = CapsuleDecoder(8), ConnectTcp(data=1, final_data=2), ConnectUdp()
    peers = bound()
    for piece in pieces:
        decoder.feed(piece)
        with contextlib.suppress(FramingError):
            machine.receive(piece)
        with contextlib.suppress(FramingError):
            datagrams.receive(piece)
        for end in peers:
            with contextlib.suppress(FramingError):
                end.receive(piece)
