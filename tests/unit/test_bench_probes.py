"""The probes' marks and the counting of stacks: arithmetic, no measurement."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from compare import compare_figures
from harness import datagrams, figures, probes, stacks
from harness.cells import Cell
from harness.probes import Gateway, Loads, Mark, Probe

# As perf prints them, innermost function first.
SCRIPT = """\
relay-0
\tffffffff81a1b2c3 rep_movs_alternative+0x4a ([kernel.kallsyms])
\tffffffff81b00000 tcp_recvmsg_locked+0x1 ([kernel.kallsyms])
\tffffffff81b00010 tcp_recvmsg+0x1 ([kernel.kallsyms])
\tffffffff81c00000 __x64_sys_recvfrom+0x1 ([kernel.kallsyms])
\t    55d0c0ffee00 relay_engine::pump::stream::run+0x20 (/opt/serve)

relay-0
\tffffffff81a00000 tcp_v4_rcv+0x1 ([kernel.kallsyms])
\tffffffff81a00010 tcp_sendmsg+0x1 ([kernel.kallsyms])
\t    55d0c0ffee00 relay_engine::pump::stream::run+0x20 (/opt/serve)

relay-0
\t    55d0c0ffee00 aes_gcm_enc_update_vaes_avx2+0x20 (/opt/serve)
\t    55d0c0ffee10 quinn_proto::packet::seal+0x20 (/opt/serve)

relay-0
\t    55d0c0ffee00 core::ptr::drop_in_place<bytes::Bytes>+0x20 (/opt/serve)
\t    55d0c0ffee10 <quinn_proto::connection::Connection>::poll_transmit+0x20 (/opt/serve)

relay-0
\t    7f00c0ffee00 [unknown] (/usr/lib/x86_64-linux-gnu/libc.so.6)
"""


def test_stacks_are_read_and_counted() -> None:
    found = list(stacks.parse(SCRIPT.splitlines()))
    assert [stacks.category(stack) for stack in found] == ["TCP rx", "TCP tx", "AEAD", "quinn", "other"]
    assert found[4][0].symbol == "[libc.so.6]"
    shares = stacks.shares(found)
    assert list(shares) == list(stacks.CATEGORIES)
    assert shares["AEAD"] == pytest.approx(0.2)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (["__memmove_avx_unaligned_erms", "relay_engine::pool::fill"], "memmove"),
        (["_rjem_malloc", "relay_engine::pool::fill"], "allocator"),
        (["<h2::proto::streams::Streams<B, P>>::poll", "tokio::runtime::park"], "h2"),
        (["<tokio_rustls::common::Stream<IO, C> as tokio::io::AsyncWrite>::poll_write"], "rustls"),
        (["alloc::vec::Vec<T>::push", "tokio::runtime::task::poll"], "tokio"),
        (["serde_json::ser::to_string", "relay_engine::access_log::line"], "relay"),
        (["main"], "other"),
        ([], "other"),
    ],
)
def test_a_function_of_the_language_counts_for_its_caller(symbols: list[str], expected: str) -> None:
    assert stacks.category([stacks.Frame(symbol, kernel=False) for symbol in symbols]) == expected


def test_equal_stacks_fold_into_one_line() -> None:
    stack = (stacks.Frame("tcp_sendmsg", True), stacks.Frame("run; twice", False))
    assert stacks.folded([stack, stack]) == "run: twice;tcp_sendmsg_[k] 2\n"


def test_marks_hold_medians_against_their_limits() -> None:
    values = {"a": [1.0, 9.0, 2.0], "b": [4.0]}
    assert Mark("", "a", "µs", 3.0).value(values) == 2.0
    assert Mark("", "b", "µs", 3.0, "a").value(values) == 2.0
    assert Mark("", "b", "×", 3.0, "a").value(values) == 2.0
    assert Mark("", "c", "µs", 3.0).value(values) is None
    assert Mark("", "a", "×", 3.0, "c").value(values) is None


def test_every_mark_has_its_probes_and_a_verdict(tmp_path: Path) -> None:
    gateway = Gateway(1, {"http": "127.0.0.1:1", "https": "127.0.0.1:2"})
    loads = Loads(Path("relay-load"), "127.0.0.1:3", "", 1e9, 1.0)
    known = [
        *probes.opening(loads, gateway, gateway),
        *probes.idling(loads, lambda use: use(gateway)),
        *probes.workers(loads, gateway, gateway),
        *probes.spread(loads, gateway),
        *probes.frames(loads, gateway),
    ]
    names = [probe.name for probe in known]
    assert len(set(names)) == len(names)
    marks = list(probes.marks())
    assert {name for mark in marks for name in (mark.figure, mark.base) if name} <= set(names)
    found = figures.Figures("2026-01-01T00:00:00Z", "abc", {}, {}, "relay 0")
    for value in (1.0, 3.0, 2.0):
        for probe in known:
            found.add(Probe(probe.name, probe.unit, lambda: 0.0), value)
    lines = figures.verdicts(found)
    assert len(lines) == len(marks)
    # All figures are the same: only our frames have to be better than others.
    assert [line.split()[0] for line in lines if line.endswith("MISSED")] == ["h2", "h2"]
    saved = json.loads(figures.save(found, tmp_path).read_text())
    assert statistics.median(saved["values"]["open h2 rules"]) == 2.0
    assert {mark["label"] for mark in saved["marks"]} == {mark.label for mark in marks}


def test_marks_of_datagrams_have_their_probes_and_are_compared(tmp_path: Path) -> None:
    cells = [Cell(peer, "h3", "connect-udp", "127.0.0.1:1", 1) for peer in ("capsule-relay", "masque-go")]
    cells.append(Cell("capsule-relay", "h2", "connect-udp", "127.0.0.1:1", 1))
    loads = datagrams.Loads(Path("relay-load"), "127.0.0.1:3", "", 1.0)
    known = list(datagrams.probes(loads, cells))
    names = [probe.name for probe in known]
    assert len(set(names)) == len(names) == 3 * 2 * 3
    marks = list(datagrams.marks())
    assert {name for mark in marks for name in (mark.figure, mark.base) if name} <= set(names)
    runs = []
    for day, factor in ((1, 1.0), (2, 2.0)):
        found = figures.Figures(f"2026-01-0{day}T00:00:00Z", "abc", {}, {}, "relay 0", kind="udp", marks=marks)
        for probe in known:
            for value in (2.0, 2.01, 2.02):
                found.add(probe, value * (factor if probe.name == "h3 up 1 flow capsule-relay" else 1.0))
        path = figures.save(found, tmp_path)
        assert path.name.startswith("udp-")
        runs.append(figures.load(path))
        assert runs[-1] == found
        # Two microseconds are cheap enough, two per cent are too many lost, and as dear as others is too dear.
        told = [line for line in figures.verdicts(found) if line.endswith("MISSED")]
        assert len(told) == 4 + 4 + (day == 2)
    changed = [change for change in compare_figures(*runs) if change.verdict]
    assert [(change.name.strip(), change.verdict) for change in changed] == [("h3 up 1 flow capsule-relay", "WORSE")]
