"""Stacks as `perf script` prints them: folded for a flame graph, and counted by what they were for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: What a sample can be counted as, in the order of the tables.
CATEGORIES = (
    "TCP rx",
    "TCP tx",
    "UDP rx",
    "UDP tx",
    "kernel, other",
    "AEAD",
    "memmove",
    "quinn",
    "h2",
    "rustls",
    "allocator",
    "tokio",
    "relay",
    "other",
)
#: A kernel function on the way from the system call, and the work it is the entry of.
ENTRIES = (
    (re.compile(r"^(inet6?_|sock_)?(udpv?6?|udp)_(recvmsg|splice_read)"), "UDP rx"),
    (re.compile(r"^udpv?6?_sendmsg"), "UDP tx"),
    (re.compile(r"^tcp_(recvmsg|splice_read|read_sock|zerocopy_receive|cleanup_rbuf)"), "TCP rx"),
    (re.compile(r"^(tcp_(sendmsg|sendpage|splice_eof)|splice_to_socket|generic_splice_sendpage)"), "TCP tx"),
    # Packets of others that arrive while this process happens to run.
    (re.compile(r"^udpv?6?_(rcv|queue_rcv|unicast_rcv)"), "UDP rx"),
    (re.compile(r"^tcp_v[46]_(rcv|do_rcv)"), "TCP rx"),
)
CRATES = {
    "ring": "AEAD",
    "quinn": "quinn",
    "quinn_proto": "quinn",
    "quinn_udp": "quinn",
    "h2": "h2",
    "rustls": "rustls",
    "tokio_rustls": "rustls",
    "tikv_jemallocator": "allocator",
    "tikv_jemalloc_sys": "allocator",
    "tokio": "tokio",
    "mio": "tokio",
    "relay_engine": "relay",
    "capsule_core": "relay",
}
COPY = re.compile(r"^_*(mem(move|cpy|set|mem)|rep_movs|memmove_avx|memcpy_)")
AEAD = re.compile(
    r"^_?(aes|gcm|aesni|vpaes|chacha|poly1305|gfp_|sha256|sha512|ring_core)|_aes_|_gcm_|^bn_|^ecp_|^x25519|^p256"
)
ALLOCATOR = re.compile(
    r"^(_?rjem_|_?je_|__rust_(alloc|dealloc|realloc)|__rdl_|__rg_|malloc|free|calloc|realloc|sdallocx)"
)
PATH = re.compile(r"\b([a-z][a-z0-9_]*)::")
FRAME = re.compile(r"^\s+([0-9a-f]+) (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)$")
#: Language libraries: what they do is done for whoever called them.
LANGUAGE = frozenset({"core", "alloc", "std", "hashbrown", "bytes", "smallvec", "slab", "http", "futures_util"})


@dataclass(frozen=True)
class Frame:
    """One function, and whether it is the kernel's."""

    symbol: str
    kernel: bool


#: Innermost first.
Stack = tuple[Frame, ...]


def parse(lines: Iterable[str]) -> Iterator[Stack]:
    """The samples of `perf script -F comm,ip,sym,dso`."""
    frames: list[Frame] = []
    for line in lines:
        if found := FRAME.match(line):
            symbol = found[2] if found[2] != "[unknown]" else f"[{found[3].rsplit('/', 1)[-1]}]"
            frames.append(Frame(symbol, "kernel" in found[3] or found[3].endswith(".ko")))
        elif frames:
            yield tuple(frames)
            frames = []
    if frames:
        yield tuple(frames)


def crate(symbol: str) -> str | None:
    """The crate that a Rust symbol belongs to; nothing for one of the language and for other languages."""
    for name in PATH.findall(symbol):
        if name in CRATES:
            return str(name)
        if name not in LANGUAGE:
            return None
    return None


def category(stack: Sequence[Frame]) -> str:
    """What the innermost function was at work for."""
    if not stack:
        return "other"
    if stack[0].kernel:
        # From the system call inwards: what arrives over loopback is worked off inside the sender's call.
        for frame in reversed(stack):
            if frame.kernel:
                for pattern, name in ENTRIES:
                    if pattern.match(frame.symbol):
                        return name
        return "kernel, other"
    innermost = stack[0].symbol
    if COPY.match(innermost):
        return "memmove"
    if AEAD.search(innermost):
        return "AEAD"
    for frame in stack:
        if ALLOCATOR.match(frame.symbol):
            return "allocator"
        if found := crate(frame.symbol):
            return CRATES[found]
    return "other"


def shares(stacks: Iterable[Stack]) -> dict[str, float]:
    """Category → its share of all samples."""
    counts = Counter(map(category, stacks))
    total = sum(counts.values())
    return {name: counts[name] / total if total else 0.0 for name in CATEGORIES}


def folded(stacks: Iterable[Stack]) -> str:
    """One line a distinct stack, outermost function first, with its count."""
    counts = Counter(
        ";".join(
            frame.symbol.replace(";", ":").replace("\n", "") + ("_[k]" if frame.kernel else "")
            for frame in reversed(stack)
        )
        for stack in stacks
    )
    return "".join(f"{stack} {count}\n" for stack, count in sorted(counts.items()))


def heaviest(stacks: Iterable[Stack], limit: int) -> list[tuple[str, float]]:
    """The functions in which most samples fell, with their shares."""
    counts = Counter(stack[0].symbol for stack in stacks if stack)
    total = sum(counts.values())
    return [(symbol, count / total) for symbol, count in counts.most_common(limit)]
