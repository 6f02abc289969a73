"""Reloads with an access log: neither old logs nor their writers stay while tunnels of before live on."""

from __future__ import annotations

import signal
from pathlib import Path

from peers.flow import Flow
from peers.matrix import connect
from peers.model import Session, tunnel_request
from peers.process import RelayProcess, StartRelay, until
from peers.target import Target, echo

TCP = "connect-tcp-12"
MIB = 1 << 20


def open_logs(relay: RelayProcess) -> list[str]:
    """The access logs that the relay has open, rotated and deleted ones too."""
    found = []
    for entry in Path(f"/proc/{relay.process.pid}/fd").iterdir():
        try:
            name = str(entry.readlink())
        except FileNotFoundError:
            continue
        if "access.log" in name:
            found.append(name)
    return found


async def reload(relay: RelayProcess) -> None:
    """Sends SIGHUP and waits until it was obeyed."""
    before = relay.stderr().count("reloaded")
    relay.signal(signal.SIGHUP)
    assert await until(lambda: relay.stderr().count("reloaded") > before), relay.stderr()[-2000:]


async def test_a_rotated_log_is_let_go_while_its_tunnels_live(launch: StartRelay) -> None:
    relay = launch()
    rounds = 8
    async with Target(echo) as target:
        sessions: list[Session] = []
        flows: list[Flow] = []
        threads = relay.threads
        for number in range(rounds):
            session = await connect(relay, ("h1", "h1tls", "h2", "h3")[number % 4])
            sessions.append(session)
            flow = Flow(await session.open(tunnel_request(TCP, target.host, target.port)), TCP)
            await flow.tunnel.answer()
            flows.append(flow)
            relay.access_log.rename(relay.folder / f"rotated-access.log.{number}")
            await reload(relay)
        (relay.folder / "rotated-access.log.0").unlink()
        assert await until(lambda: open_logs(relay) == [str(relay.access_log)]), open_logs(relay)
        # A thread may have come for the resolver or the loop's pool; never one for each reload.
        assert await until(lambda: relay.threads <= threads + 2), (threads, relay.threads)
        for flow in flows:
            await flow.write(b"still here")
            assert await flow.read_exactly(10) == b"still here"
            await flow.write_final()
            assert await flow.read_to_fin() == b""
        for session in sessions:
            await session.close()
        # What ends now is told to the log of now.
        assert await until(lambda: len(relay.log()) == rounds), relay.log()
    assert all(old.stat().st_size == 0 for old in relay.folder.glob("rotated-access.log.*"))
    relay.stop()


async def test_idle_reloads_add_up_to_nothing(launch: StartRelay) -> None:
    relay = launch()
    for _ in range(20):
        await reload(relay)
    threads, descriptors, grown = relay.threads, relay.descriptors, []
    for _ in range(3):
        mapped = relay.status("VmSize")
        for _ in range(30):
            await reload(relay)
        assert await until(lambda: relay.threads <= threads), (threads, relay.threads)
        grown.append(relay.status("VmSize") - mapped)
    assert await relay.settled_descriptors(descriptors) <= descriptors
    # A thread that ended and was not joined keeps its stack mapped: 2 MiB each time, and every time. Address space that the C
    # library sets aside for the allocations of threads (64 MiB for one more) is taken once and kept.
    assert min(grown) < 32 * MIB, grown
    relay.stop()
