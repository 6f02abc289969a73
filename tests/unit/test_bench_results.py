"""The benchmark's own arithmetic: accounts, medians, floors, noise."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from compare import compare, drift
from harness import page, process, results, summary
from harness.cells import Run
from harness.floors import FLOORS, PARTS
from harness.results import Results


def run(peer: str, number: int, cost: float, *, transport: str = "h3", form: str = "connect", size: int = 10**9) -> Run:
    return Run(
        peer=peer,
        transport=transport,
        form=form,
        direction="down",
        round=number,
        bytes=size,
        seconds=1.0,
        gbit_s=8.0 / cost,
        open_seconds=0.01,
        client_cpu_s=0.5,
        proxy_cpu_s=cost * size / 1e9,
        proxy_rss=1 << 20,
    )


def result(costs: list[float], floor: float = 0.5, peer: float = 3.0) -> Results:
    found = results.begin({"bytes": 1e9, "rounds": len(costs), "only": "", "peers": []})
    found.floors = {name: [floor, floor * 1.5] for name in PARTS}
    for number, cost in enumerate(costs, 1):
        found.runs += [run("capsule-relay", number, cost), run("Envoy", number, peer)]
    return found


def test_cpu_of_the_whole_tree_counts() -> None:
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('done', flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert process.first_line(child, "the child") == "done"
        assert process.cpu_seconds(child.pid) >= 0.2
        assert child.pid in process.tree(os.getpid())
        assert process.resident(child.pid) > 0
        child.communicate("\n")


def test_what_was_started_is_ended_with_its_children(tmp_path: Path) -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
    with process.running([sys.executable, "-c", deaf], cwd=tmp_path) as child:
        assert process.first_line(child, "the child") == "up"
        process.end(child, patience=0.1)
        assert child.poll() is not None
        assert process.tree(child.pid) == {}


def test_ratios_to_the_best_peer_and_to_the_floor() -> None:
    found = result([1.0, 1.2, 1.1])
    key = ("capsule-relay", "h3", "connect", "down")
    assert found.median(key) == pytest.approx(1.1)
    assert found.best_peer("h3", "down") == ("Envoy", 3.0)
    assert found.floor("h3", "down") == pytest.approx(1.5), "three parts, each in its best round"
    assert found.floor("tcp", "down") is None
    assert found.best_peer("h2", "down") is None
    line = next(line for line in summary.table(found).splitlines() if "capsule-relay" in line)
    assert " 1.10  (1.00)   0.37   0.73 " in line
    assert "h3 down         0.37 × Envoy      (mark 0.35) MISSED" in summary.marks(found)


def test_every_floor_has_its_parts() -> None:
    assert {name for ways in FLOORS.values() for parts in ways.values() for name in parts} <= set(PARTS)


def test_a_slow_peer_moves_less_and_is_counted_per_byte() -> None:
    assert run("aioquic", 1, 80.0, size=10**7).proxy_cost == pytest.approx(80.0)


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    found = result([1.0, 1.1, 1.2])
    path = results.save(found, tmp_path)
    again = results.load(path)
    assert again == found
    assert results.find(found.commit.rstrip("+"), tmp_path) == path
    (tmp_path / "other.json").write_text("{}")
    assert results.history(tmp_path) == [found]
    with pytest.raises(process.BenchError, match="not a result"):
        results.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("after", "floor", "verdict"),
    [
        ([1.30, 1.31, 1.32, 1.33, 1.34], 0.5, "WORSE"),
        ([0.80, 0.81, 0.82, 0.83, 0.84], 0.5, "better"),
        ([1.01, 1.02, 1.00, 1.03, 1.02], 0.5, ""),
        ([0.90, 1.40, 1.00, 1.30, 0.95], 0.5, ""),
        # The machine itself became a third slower.
        ([1.30, 1.31, 1.32, 1.33, 1.34], 0.68, ""),
        ([1.30], 0.5, "too few rounds"),
    ],
)
def test_only_what_is_beyond_noise_is_a_change(after: list[float], floor: float, verdict: str) -> None:
    before, later = result([1.00, 1.01, 1.02, 1.03, 1.04]), result(after, floor)
    assert drift(before, later) == pytest.approx(floor / 0.5)
    relay = next(change for change in compare(before, later, "proxy_cost") if "capsule-relay" in change.name)
    assert relay.verdict == verdict


class Tags(HTMLParser):
    """Checks that all that was opened was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_has_no_script(tmp_path: Path) -> None:
    first, second = result([1.0, 1.1]), result([0.9, 0.8])
    second.absent["<h2o>"] = "not there & not wanted"
    text = page.render([first, second])
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {"svg", "rect", "polyline", "table", "pre"} <= tags.seen
    assert "script" not in tags.seen
    assert "&lt;h2o&gt;: not there &amp; not wanted" in text
    assert page.write(tmp_path) is None
