"""What an adapter gets and gives.

An adapter is a module with `start(site)`: it installs its program if it is not there, writes a configuration, starts it
on loopback for as long as `site.stack` is open, and says which cells it serves. What it cannot serve it leaves out.
Programs come from public registries only and live in a cache directory; nothing is installed into the system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.cells import Cell
from harness.process import BenchError, running, wait_listening

INSTALL_TIMEOUT = 900


def cache_directory() -> Path:
    """Where installed peers stay between runs: BENCH_CACHE, or the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "capsule-relay-bench"
    return Path(os.environ.get("BENCH_CACHE", default))


@dataclass(frozen=True)
class Site:
    """Where one benchmark runs."""

    stack: contextlib.ExitStack
    directory: Path
    cache: Path
    certificate: Path
    key: Path
    origin: str
    #: A cleartext CONNECT proxy of its own account. It answers CONNECT for peers that only end TLS.
    behind: str

    def home(self, name: str) -> Path:
        """An empty directory for one peer's files."""
        path = self.directory / name
        path.mkdir()
        return path

    def serve(
        self, command: Sequence[str], listening: Sequence[str], home: Path, environment: dict[str, str] | None = None
    ) -> int:
        """Starts the command, waits for its TCP ports; its process number."""
        log = home / "output.log"
        process = self.stack.enter_context(running(command, log=log, environment=environment, cwd=home))
        for address in listening:
            wait_listening(process, address, log)
        return process.pid


@dataclass(frozen=True)
class Started:
    """A running peer."""

    version: str
    cells: Sequence[Cell]
    note: str = ""
    #: Ways of datagrams.
    datagrams: Sequence[Cell] = ()
    #: Further facts for the record.
    facts: Mapping[str, str] = field(default_factory=dict)


def run(command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Runs an installation step; its output, or a fault with the last line of it."""
    try:
        done = subprocess.run(
            list(command),
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"not installed: {error}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        told = next((line for line in lines if re.search(r"error|forbidden|unable|not found", line, re.I)), lines[-1])
        raise BenchError(f"not installed: {Path(command[0]).name}: {told[:240]}")
    return done.stdout


def version_of(command: Sequence[str], pattern: str, environment: Mapping[str, str] | None = None) -> str:
    found = re.search(pattern, run(command, environment=environment))
    return found.group(1) if found else "unknown"


def from_pypi(cache: Path, requirement: str, *further: str) -> Path:
    """The `bin` directory of a virtual environment with this requirement."""
    home = cache / re.sub(r"[^\w.]+", "-", requirement)
    if not (home / ".done").exists():
        shutil.rmtree(home, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(home)])
        run([str(home / "bin" / "pip"), "install", "--quiet", requirement, *further])
        (home / ".done").touch()
    return home / "bin"


@dataclass(frozen=True)
class Unpacked:
    """Debian packages unpacked into a directory, with what this system lacks of their dependencies."""

    root: Path

    def program(self, name: str) -> str:
        for folder in ("usr/sbin", "usr/bin", "sbin", "bin"):
            if (self.root / folder / name).exists():
                return str(self.root / folder / name)
        raise BenchError(f"not installed: {name} is not in the package")

    @property
    def environment(self) -> dict[str, str]:
        libraries = [str(path) for path in (self.root / "usr/lib").glob("*-linux-gnu*")]
        return {"LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":")}


def from_debian(cache: Path, name: str, *packages: str) -> Unpacked:
    """Downloads packages with apt and unpacks them: no service starts and no root is needed."""
    home = cache / f"debian-{name}"
    root = home / "root"
    if not (home / ".done").exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise BenchError("not installed: needs apt-get and dpkg-deb")
        shutil.rmtree(home, ignore_errors=True)
        archives = home / "archives"
        (archives / "partial").mkdir(parents=True)
        options = ["-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={archives}"]
        command = ["apt-get", "install", "-y", "-qq", "--download-only", "--no-install-recommends"]
        run([*command, *options, *packages], environment={"DEBIAN_FRONTEND": "noninteractive"})
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "-x", str(archive), str(root)])
        shutil.rmtree(archives)
        (home / ".done").touch()
    return Unpacked(root)


def from_go(cache: Path, source: Path, program: str, package: str = ".") -> Path:
    """Builds a package of the Go module in `source`, whose go.mod pins what it needs, in the cache."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise BenchError("not installed: needs Go")
    home = cache / f"go-{program}"
    files = sorted(path for path in source.iterdir() if path.suffix in {".go", ".mod", ".sum"})
    text = "".join(path.read_text() for path in files)
    stamp = home / ".done"
    if not stamp.exists() or stamp.read_text() != text:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for path in files:
            shutil.copy(path, home)
        run([go, "mod", "tidy"], cwd=home)
        run([go, "build", "-trimpath", "-o", program, package], cwd=home)
        stamp.write_text(text)
    return home / program
