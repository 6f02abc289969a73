"""`relay bench`: every kind of load in every cell, two hosts' worth of processes, and faults in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.model import TOKEN
from peers.process import RelayProcess

HTTP = ("h1", "h1tls", "h2c", "h2", "h3")
BENCH = [sys.executable, "-m", "relay", "bench"]


def bench(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RELAY_TOKEN"}
    done = subprocess.run(
        [*BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def results(*arguments: object) -> list[dict[str, Any]]:
    document = json.loads(bench(*arguments, "--json").stdout)
    found: list[dict[str, Any]] = document["results"]
    return found


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """`relay bench origin`, as the other host would run it."""
    process = subprocess.Popen([*BENCH, "origin"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    match = re.fullmatch(r"origin ready: (127\.0\.0\.1:\d+)\n", process.stdout.readline())
    assert match
    yield match[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stdout.close()


@pytest.fixture
def gateway(relay: RelayProcess, origin: str) -> list[object]:
    """Options that lead through the relay of the tests to the origin."""
    clear, secure = relay.endpoint("h1"), relay.endpoint("h2")
    assert secure.authority_file is not None
    return [
        *("--proxy", f"http://127.0.0.1:{clear.port}", "--proxy", f"https://127.0.0.1:{secure.port}"),
        *("--ca", secure.authority_file, "--token", TOKEN, "--target", origin, "--pid", relay.process.pid),
    ]


def cells() -> list[object]:
    """Options for all modes and versions."""
    return [*("--mode", "connect", "--mode", "connect-tcp"), *(part for http in HTTP for part in ("--http", http))]


def test_bytes_arrive_in_every_cell(gateway: list[object]) -> None:
    found = results("bulk", "--bytes", "2e6", "--verify", "-c", 2, "-s", 2, *cells(), *gateway)
    assert len(found) == 2 * 2 * len(HTTP)
    assert {(one["mode"], one["http"], one["direction"]) for one in found} == {
        (mode, http, direction) for mode in ("connect", "connect-tcp") for http in HTTP for direction in ("down", "up")
    }
    for one in found:
        assert one["bytes"] == 2_000_000
        assert one["verified"]
        assert one["gbit_s"] > 0
        assert one["relay_cpu_s"] > 0
        assert one["client_cpu_s"] > 0


def test_tunnels_are_opened_in_every_cell(gateway: list[object]) -> None:
    for one in results("rate", "--seconds", 0.2, "-s", 4, *cells(), *gateway):
        assert one["opened"] >= 4
        assert one["relay_us_per_tunnel"] > 0
        assert one["latency_us"]["p50"] <= one["latency_us"]["p99_9"] <= one["latency_us"]["max"] * 1.001


def test_answers_are_timed_in_every_cell(gateway: list[object]) -> None:
    for one in results("latency", "--seconds", 0.3, "--rate", 500, "-s", 3, *cells(), *gateway):
        assert one["messages"] == 150
        assert one["unanswered"] == 0
        assert one["latency_us"]["p50"] > 0


def test_idle_tunnels_are_weighed(gateway: list[object]) -> None:
    for one in results("idle", "-s", 50, "--hold", 0, *cells(), *gateway):
        assert one["opened"] == 50
        assert one["relay_pss_end"] > 0
        assert (one["pss_per_connection"] is None) == one["http"].startswith("h1")


@pytest.mark.parametrize("streams", [1, 3])
def test_datagrams_are_accounted_for_in_every_cell(gateway: list[object], streams: int) -> None:
    versions = [part for http in HTTP for part in ("--http", http)]
    shape = ("--seconds", 0.3, "--rate", 1000, "-s", streams)
    found = results("udp", *shape, *versions, "--mode", "direct", "--mode", "connect-udp", *gateway)
    found += results("udp", "--direction", "echo", *shape, *versions, *gateway)
    assert len(found) == 2 * (len(HTTP) + 1) + len(HTTP)
    for one in found:
        assert 297 <= one["offered"] <= 300
        assert one["received"] + one["lost"] == one["sent"] <= one["offered"]
        assert one["received"] >= 150
        assert one["duplicates"] == 0
        assert (one["relay_cpu_s"] is None) == (one["mode"] == "direct")
        assert ("latency_us" in one) == (one["direction"] == "echo")


def test_datagrams_in_a_table() -> None:
    done = bench("udp", "--seconds", 0.2, "--rate", 500, "--direction", "echo", "--http", "h2", "--http", "h3")
    assert re.search(r"(?m)^udp: ", done.stdout)
    assert re.findall(r"(?m)^connect-udp +(h2|h3) +echo +500 ", done.stdout) == ["h2", "h3"]


def test_nothing_is_left_behind(relay: RelayProcess, gateway: list[object]) -> None:
    bench("idle", "-s", 20, "--hold", 0, "--http", "h2", *gateway)
    before = relay.descriptors
    bench("rate", "--seconds", 0.2, "-s", 4, *cells(), *gateway)
    deadline = time.monotonic() + 10
    while relay.descriptors > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert relay.descriptors <= before


def test_everything_by_itself_in_one_table() -> None:
    small = ("--bytes", "1e6", "--seconds", 0.2, "--rate", 100, "-s", 2, "--idle", 5)
    done = bench("run", *small, "--mode", "direct", "--mode", "connect-tcp", "--http", "h1", "--http", "h3")
    for title in ("bulk", "rate", "latency", "idle"):
        assert re.search(rf"(?m)^{title}: ", done.stdout)
    rows = re.findall(r"(?m)^(direct|connect-tcp) +(-|h1|h3) ", done.stdout)
    assert len(rows) == 5 * 3
    assert done.stderr == ""


def test_threads_share_the_connections(gateway: list[object]) -> None:
    (one,) = results("rate", "--seconds", 0.2, "-c", 3, "--threads", 2, "--http", "h2", *gateway)
    assert (one["threads"], one["connections"]) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["bulk", "--http", "h9"], 2, "h9"),
        (["bulk", "--mode", "direct", "--http", "h2"], 2, "--http goes with"),
        (["bulk", "--proxy", "ftp://x"], 2, "expected http://HOST:PORT"),
        (["bulk", "--proxy", "http://127.0.0.1:1", "--http", "h2"], 2, "needs a --proxy https://"),
        (["bulk", "--proxy", "http://127.0.0.1:1", "--target", "nowhere"], 2, "expected HOST:PORT"),
        (["bulk", "--proxy", "http://127.0.0.1:1", "--token", "a", "--user", "b:c"], 2, "only one of"),
        (["bulk", "--proxy", "https://127.0.0.1:1", "--ca", "/none.pem"], 2, "No such file"),
        (["bulk", "--http", "h1", "--profile", "none"], 2, "no profile of connect-tcp"),
        (["bulk", "--http", "h1", "--template", "no template"], 2, "no template"),
        (["bulk", "--pid", "1"], 2, "--pid goes with --proxy"),
        (["latency", "--rate", "0"], 2, "--rate"),
        (["udp", "--size", "63"], 2, "--size"),
        (["udp", "--mode", "connect-tcp"], 2, "connect-tcp"),
        (["bulk", "--mode", "connect-udp"], 2, "connect-udp"),
        (["udp", "--http", "h3", "--seconds", "0.2", "--size", "9000"], 1, "do not fit"),
        (["origin", "--address", "localhost"], 2, "expected HOST:PORT"),
        (["origin", "--address", "192.0.2.1:0"], 1, "192.0.2.1:0: "),
        (["bulk", "--proxy", "http://127.0.0.1:1", "--http", "h1"], 1, "bulk down connect-tcp h1: "),
        (["bulk", "--mode", "direct", "--target", "127.0.0.1:1"], 1, "bulk down direct: 127.0.0.1:1: "),
        (["rate", "--mode", "direct", "--seconds", "30", "--timeout", "0.3"], 1, "not done after 0.3 s"),
    ],
)
def test_faults(arguments: list[str], code: int, says: str) -> None:
    done = bench(*arguments, code=code)
    assert done.stdout == ""
    assert says in done.stderr
    if code == 1:
        assert len(done.stderr.splitlines()) == 1


def test_a_refusal_says_what_the_gateway_said(gateway: list[object]) -> None:
    gateway[gateway.index("--token") + 1] = "wrong"
    done = bench("bulk", "--http", "h2", *gateway, code=1)
    assert "refused with status 401" in done.stderr


def test_a_policy_refusal_carries_its_proxy_status(gateway: list[object]) -> None:
    gateway[gateway.index("--target") + 1] = "10.255.255.1:9"
    done = bench("bulk", "--http", "h1tls", *gateway, code=1)
    assert "403" in done.stderr
    assert "destination_ip_prohibited" in done.stderr


def test_a_missing_process(gateway: list[object]) -> None:
    gateway[gateway.index("--pid") + 1] = 2**22 + 1
    done = bench("rate", "--http", "h2", *gateway, code=1)
    assert f"process {2**22 + 1}: " in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_it_started(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*BENCH, "rate", "--seconds", "60", "--http", "h1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # The client's thread runs once origin and relay serve.
    deadline = time.monotonic() + 30
    threads = Path(f"/proc/{process.pid}/task")
    while not any((task / "comm").read_text().strip() == "load-0" for task in threads.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [int(child) for child in (threads / str(process.pid) / "children").read_text().split()]
    assert len(children) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert err.strip() == ("Aborted!" if number == signal.SIGINT else "")
    assert not any(Path(f"/proc/{child}").exists() for child in children)
