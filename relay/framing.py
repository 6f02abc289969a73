"""The codec for people who have their own HTTP stack: varints, capsules, connect-tcp and connect-udp. No I/O anywhere.

Everything that takes bytes takes any contiguous buffer: ``bytes``, ``bytearray``, ``memoryview``, arrays of ``array``
and ``ctypes``; items wider than a byte count as the bytes that they are in memory. Bytes may be split anywhere; nothing
waits for a whole capsule unless it is small.

Varints (RFC 9000 §16)
    ``encode_varint(value) -> bytes`` writes the shortest form of an integer from 0 to 2**62 - 1 (else ValueError).
    ``decode_varint(data, offset=0) -> (value, bytes taken) | None`` accepts longer forms; None = more bytes are needed.

Capsules (RFC 9297 §3.2)
    ``encode_capsule(kind, value=None) -> bytes`` makes a whole capsule; ``encode_capsule_header(kind, length)`` makes
    the header for a value that follows separately.
    ``CapsuleDecoder(max_whole=65536)``: ``feed(data)`` returns events. A value of up to ``max_whole`` bytes comes as
    one ``Capsule(kind, value)``; a longer one as ``CapsuleHeader(kind, length)`` and then
    ``CapsuleValue(data, remaining)`` as its bytes arrive, the last of them with ``remaining`` 0. ``finish()`` raises
    FramingError when the data stream ended inside a capsule (§3.3).

connect-tcp
    ``ConnectTcp(token="connect-tcp-12")``: one end of a tunnel, client or proxy alike; ``data`` and ``final_data`` name
    the capsule types of a token that is not built in: two types, neither of them DATAGRAM or reserved (else
    ValueError).
    ``receive(data) -> bytes`` takes bytes of the data stream and returns the payload among them; once
    ``receive_finished`` is true the peer has sent everything (write FIN to the TCP side). Other capsules are skipped,
    and counted by ``unknown_capsules`` unless they are reserved ones. Data after FINAL_DATA raises FramingError, and so
    does every later call. Payload before a fault is returned first, and the next call raises: what arrives does not
    depend on how the bytes were split.
    ``receive_end() -> bool`` tells that the data stream ended cleanly: True = as it should, False = without FINAL_DATA
    (reset the TCP side); an end inside a capsule raises FramingError.
    ``send(payload) -> bytes`` wraps payload in a DATA capsule, ``send_header(length)`` makes its header alone,
    ``send_final()`` makes the FINAL_DATA capsule; after that ``send`` raises FramingError.

    >>> near, far = ConnectTcp(), ConnectTcp()
    >>> far.receive(near.send(b"hello") + near.send_final())
    b'hello'
    >>> far.receive_finished
    True

connect-udp (RFC 9298)
    ``ConnectUdp()``: one end of a tunnel, client or proxy alike. Datagrams may come both ways on HTTP/3: in DATAGRAM
    capsules of the data stream, and in QUIC DATAGRAM frames, whose quarter stream ID (RFC 9297 §2.1) is yours to take
    off and put on.
    ``receive(data) -> list[bytes]`` takes bytes of the data stream and returns the UDP payloads that they complete;
    what is kept of one that is not complete is never more than the longest needs. ``receive_datagram(datagram)``
    takes the HTTP datagram of a frame and returns its payload, or None for a context that nobody registered (§4).
    Payloads may be empty. Other capsules are skipped and counted by ``unknown_capsules``, unless they are reserved
    ones; ``unknown_contexts`` counts datagrams that were dropped. A datagram without a context ID and a payload of
    more than MAX_UDP_PAYLOAD bytes (65527, §5) raise FramingError, and so does every later call; payloads before the
    fault are returned first.
    ``receive_end()`` tells that the data stream ended cleanly; an end inside a capsule raises FramingError.
    ``send(payload) -> bytes`` makes a DATAGRAM capsule, ``send_datagram(payload) -> bytes`` the HTTP datagram for a
    frame: context ID 0 and the payload. ValueError for a payload that is too long.

    >>> tunnel = ConnectUdp()
    >>> tunnel.receive(ConnectUdp.send(b"one") + ConnectUdp.send(b""))
    [b'one', b'']
    >>> tunnel.receive_datagram(ConnectUdp.send_datagram(b"two"))
    b'two'

connect-udp's bind mode (draft-ietf-masque-connect-udp-listen)
    ``ConnectUdpBind(role, target=None, permit=None)``: one end of a tunnel to and from many peers; ``role`` is
    ``"client"`` or ``"proxy"``, ``target`` where the request led if it named a target, an address. A peer is
    ``(address, port)``. ``permit(address, port) -> bool`` is asked for each registration and each uncompressed datagram
    that is received; proxies must have one (else ValueError), and what it raises comes out of the call that asked.
    ``receive(data) -> [(peer, payload), …]`` and ``receive_datagram(datagram) -> (peer, payload) | None`` are as for
    ConnectUdp; datagrams to peers that are not permitted are dropped and counted by ``refused``.
    ``open(peer) -> int`` registers a context for a peer and returns its ID, ``open()`` the uncompressed one, for the
    client only; FramingError if that may not be. ``close(context) -> bool`` ends one, whoever registered it;
    ``is_acknowledged(context)`` tells whether the other end agreed to one of ours.
    ``take_pending() -> bytes`` are the capsules that are to go on the data stream after any of these calls, and before
    what is sent next: registrations, and the answers to those of the other end.
    ``send(peer, payload)`` and ``send_datagram(peer, payload)`` are as for ConnectUdp; None = no context leads to the
    peer, and the payload is to be dropped.

    >>> near, far = ConnectUdpBind("client"), ConnectUdpBind("proxy", permit=lambda address, port: port != 25)
    >>> context = near.open()
    >>> far.receive(near.take_pending() + near.send(("192.0.2.1", 53), b"who?"))
    [(('192.0.2.1', 53), b'who?')]
    >>> near.receive(far.take_pending() + far.send(("192.0.2.1", 53), b"me"))
    [(('192.0.2.1', 53), b'me')]
    >>> near.is_acknowledged(context)
    True
"""

from relay._native import (
    MAX_UDP_PAYLOAD,
    MAX_VARINT,
    Capsule,
    CapsuleDecoder,
    CapsuleHeader,
    CapsuleValue,
    ConnectTcp,
    ConnectUdp,
    ConnectUdpBind,
    decode_varint,
    encode_capsule,
    encode_capsule_header,
    encode_varint,
)
from relay.errors import FramingError

__all__ = [
    "DATAGRAM",
    "MAX_UDP_PAYLOAD",
    "MAX_VARINT",
    "Capsule",
    "CapsuleDecoder",
    "CapsuleHeader",
    "CapsuleValue",
    "ConnectTcp",
    "ConnectUdp",
    "ConnectUdpBind",
    "FramingError",
    "decode_varint",
    "encode_capsule",
    "encode_capsule_header",
    "encode_varint",
    "is_grease",
]

#: The type of a capsule that holds an HTTP datagram (RFC 9297 §3.5).
DATAGRAM = 0x00


def is_grease(kind: int) -> bool:
    """Whether a capsule type is one of those reserved to be skipped, 0x29 * N + 0x17 (RFC 9297 §5.4)."""
    return kind >= 0x17 and (kind - 0x17) % 0x29 == 0
