"""What the documentation shows is run as written.

A fenced block says after its language what is done with it: `check` gives a TOML block to `relay check`, `run` runs a
shell or Python block (exit code 0), `file=NAME` writes the block to a file. The blocks of a page share one folder, in
their order, with a certificate for loopback and somebody's credentials in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers.pki import Authority

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([a-z]+)([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SECONDS = 60


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    marks: list[str]
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3].split(), found[4])
        for found in FENCE.finditer(text)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def scripts() -> Path:
    """Where the `relay` of the running interpreter is."""
    return Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    chain, key = authority.server()
    shutil.copy(chain, tmp_path / "server.pem")
    shutil.copy(key, tmp_path / "server.key")
    shutil.copy(authority.file, tmp_path / "clients.pem")
    relay = str(scripts() / "relay")
    for what, file in (("user", "users"), ("token", "tokens")):
        subprocess.run([relay, "auth", what, tmp_path / file, "someone"], input="a password", text=True, check=True)
    return tmp_path


def commands(block: Block, mark: str) -> list[str] | None:
    """The command for a block's mark; None where it is a file only."""
    relay = str(scripts() / "relay")
    match (block.language, mark):
        case ("toml", "check"):
            return [relay, "check", "-c", "relay.toml"]
        case ("sh", "run"):
            return ["bash", "-euo", "pipefail", "-c", block.text]
        case ("python", "run"):
            return [sys.executable, "-c", block.text]
        case (_, _) if mark.startswith("file="):
            return None
    raise AssertionError(f"{name(block.page)}:{block.line}: unknown mark {block.language} {mark}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_of_a_page_run_in_their_order(page: Path, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    environment["PATH"] = f"{scripts()}{os.pathsep}{environment['PATH']}"
    for block in blocks(page):
        for mark in block.marks:
            command = commands(block, mark)
            if mark.startswith("file="):
                target = folder / mark.removeprefix("file=")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text)
            elif mark == "check":
                (folder / "relay.toml").write_text(block.text)
            if command is None:
                continue
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
            assert done.returncode == 0, f"{name(page)}:{block.line}\n{done.stdout}{done.stderr}"
            if mark == "check":
                assert not done.stderr, f"{name(page)}:{block.line}: warned\n{done.stderr}"


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("[A-Z]*.md")], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for link in LINK.findall(text):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{name(page)}: {link}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{name(page)}: {link}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("[A-Z]*.md")], ids=name)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4}|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_named_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|^ {4}|^)relay ((?:auth )?[a-z]+)\b", page.read_text(), re.MULTILINE))
    for command in sorted(named):
        if command == "ready":
            continue
        done = subprocess.run(
            [str(scripts() / "relay"), *command.split(), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name(page)}: relay {command}\n{done.stderr}"
