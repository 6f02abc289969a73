"""The command line: exit codes, what goes to which stream, signals."""

import os
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RELAY = [sys.executable, "-m", "relay"]
SERVES = '[[listeners]]\naddress = "127.0.0.1:0"\n[auth]\nrequired = false\n[log]\naccess = ""\n'


def relay(
    *arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*RELAY, *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})}, check=False
    )


class Serving:
    """A running ``relay serve``."""

    def __init__(self, *arguments: str | Path, cwd: Path | None = None, shell: str = "") -> None:
        command = [*RELAY, "serve", *map(str, arguments)]
        if shell:
            command = ["/bin/sh", "-c", f"exec {shlex.join(command)} {shell}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd)
        self.read = {"stdout": b"", "stderr": b""}

    def wait_for(self, stream: str, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Reads on until the stream has said something."""
        pipe = getattr(self.process, stream)
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.read[stream].decode())):
            ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
            data = os.read(pipe.fileno(), 65536) if ready else b""
            assert data, f"no {pattern!r} on {stream}: {self.read}"
            self.read[stream] += data
        return match

    def ready(self) -> tuple[str, int]:
        match = self.wait_for("stdout", r"relay ready: (https?)://127\.0\.0\.1:(\d+)/ \([a-z0-9 ]+\).*\n")
        return match[1], int(match[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.exit_code()

    def exit_code(self) -> int:
        out, err = self.process.communicate(timeout=30)
        self.read["stdout"] += out
        self.read["stderr"] += err
        return self.process.returncode


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES)
    process = Serving("-c", path)
    yield process
    if process.process.poll() is None:
        process.process.kill()
        process.process.communicate()


def test_version() -> None:
    done = relay("--version")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"relay \d+\.\d+\.\d+ \((quick|shipped) build; h1 h2 h3; connect connect-tcp.*\)", first)
    assert re.fullmatch(r"kernel TLS: (yes|not loaded|no); TLS is done in user space either way", second)


def test_version_knows_whether_the_kernel_takes_tls() -> None:
    tcp_ulp = 31
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        try:
            client.setsockopt(socket.IPPROTO_TCP, tcp_ulp, b"tls")
            expected = ("yes",)
        except OSError:
            expected = ("not loaded", "no")
    line = relay("--version").stdout.splitlines()[1]
    assert line.startswith(tuple(f"kernel TLS: {word};" for word in expected))


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["serve"], ["serve", "-c", "a", "--dev"], ["serve", "-c", "a", "--port", "1"], ["check"]],
)
def test_bad_usage(arguments: list[str]) -> None:
    done = relay(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_bad_configuration_is_one_line_per_fault(tmp_path: Path, command: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('[[listeners]]\naddress = "nowhere"\n[limits]\nmax_conections = 1\n')
    done = relay(command, "-c", path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [f"{path}:2", f"{path}:4"]


def test_check_prints_what_is_in_force(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + '[admin]\naddress = "127.0.0.1:9090"\n')
    done = relay("check", "-c", path, env={"RELAY_EGRESS__DIAL_TIMEOUT": "3s", "RELAY_PORT": "tcp://10.0.0.1:1"})
    assert done.returncode == 0
    assert 'dial_timeout = "3s"' in done.stdout
    assert done.stderr == f"{path}:8: admin.address: this version does not serve the admin endpoint yet\n"
    again = tmp_path / "again.toml"
    again.write_text(done.stdout)
    assert relay("check", "-c", again).stdout == done.stdout


def test_check_and_serve_look_for_the_hook(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + '[policy]\nhook = "no_such_module:decide"\n')
    for command in ("check", "serve"):
        done = relay(command, "-c", path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"{path}:8: policy.hook: expected a module")


def test_users(tmp_path: Path) -> None:
    path = tmp_path / "users"
    for name in ("alice", "bob"):
        assert relay("auth", "user", path, name, stdin="sécret word\n").returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = path.read_text().splitlines()
    assert first.startswith("alice:$argon2id$")
    assert second.startswith("bob:$argon2id$")
    relay("auth", "user", path, "alice", stdin="new")
    assert len(path.read_text().splitlines()) == 2
    assert first not in path.read_text()


@pytest.mark.parametrize(
    ("name", "password"),
    [("alice", ""), ("alice", "\n"), ("a:b", "x"), ("", "x"), ("alice", "two\nlines\n"), ("alice", "x" * 4500)],
)
def test_users_that_cannot_be(tmp_path: Path, name: str, password: str) -> None:
    done = relay("auth", "user", tmp_path / "users", name, stdin=password)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "users").exists()


def test_tokens(tmp_path: Path) -> None:
    done = relay("auth", "token", tmp_path / "tokens", "ci")
    assert done.returncode == 0
    token = done.stdout.splitlines()[-1]
    assert len(token) >= 32
    text = (tmp_path / "tokens").read_text()
    assert re.fullmatch(r"ci:[0-9a-f]{64}\n", text)
    assert token not in text


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = relay("auth", "token", tmp_path / "none" / "tokens", "ci")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such file" in done.stderr


def test_auth_writes_into_regular_files_only(tmp_path: Path) -> None:
    pipe = tmp_path / "tokens"
    os.mkfifo(pipe)
    done = relay("auth", "token", pipe, "ci")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"Error: {pipe}: cannot be written: not a regular file"
    assert pipe.is_fifo()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(serving: Serving, number: int) -> None:
    scheme, port = serving.ready()
    assert scheme == "http"
    socket.create_connection(("127.0.0.1", port)).close()
    assert serving.end(number) == 0
    assert serving.read["stdout"].decode().count("relay ready") == 1
    assert b"Traceback" not in serving.read["stderr"]


def test_a_second_signal_closes_at_once(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + '[policy]\nallow_networks = ["127.0.0.0/8"]\n[limits]\ndrain_timeout = "1h"\n')
    _, port = serving.ready()
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("stderr", "reloaded")
    with socket.create_server(("127.0.0.1", 0)) as target, socket.create_connection(("127.0.0.1", port)) as client:
        name = f"127.0.0.1:{target.getsockname()[1]}"
        client.sendall(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        serving.process.send_signal(signal.SIGTERM)
        serving.wait_for("stderr", "draining")
        assert serving.process.poll() is None
        assert serving.end(signal.SIGTERM) == 0


def test_a_reload_that_fails_says_why_and_changes_nothing(serving: Serving, tmp_path: Path) -> None:
    _, port = serving.ready()
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + "[limits]\nmax_connections = 0\n")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("stderr", r"not reloaded: .*relay\.toml:8: limits\.max_connections: expected 1 or more")
    socket.create_connection(("127.0.0.1", port)).close()
    path.write_text(SERVES)
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("stderr", r"relay: reloaded")
    assert serving.end() == 0


def test_a_reload_that_fails_in_an_unexpected_way_is_one_line(serving: Serving, tmp_path: Path) -> None:
    _, port = serving.ready()
    (tmp_path / "relay.toml").write_text(SERVES + "x = " + "[" * 3000 + "]" * 3000 + "\n")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("stderr", r"not reloaded: .+\n")
    socket.create_connection(("127.0.0.1", port)).close()
    assert serving.end() == 0
    assert b"Traceback" not in serving.read["stderr"]
    assert b"never retrieved" not in serving.read["stderr"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_descriptors_that_are_closed(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "relay.toml"
    # To standard output: a foreign descriptor must not have its number.
    path.write_text(SERVES.replace('access = ""', 'access = "-"').replace(":0", f":{(port := free_port())}"))
    serving = Serving("-c", path, shell=closed)
    try:
        deadline = time.monotonic() + 30
        # It cannot say when it is ready; until then connections are refused or reset.
        while not (answer := ask(port)):
            assert serving.process.poll() is None
            assert time.monotonic() < deadline
        assert answer.startswith(b"HTTP/1.1 403")
        assert serving.end() == 0
    finally:
        serving.process.kill()
        serving.process.communicate()


def ask(port: int) -> bytes:
    """The answer to a request for a tunnel to a place that no relay goes to; nothing if there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n")
            return client.recv(65536)
    except ConnectionError:
        return b""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_password_from_a_closed_standard_input(tmp_path: Path) -> None:
    command = shlex.join([*RELAY, "auth", "user", str(tmp_path / "users"), "alice"])
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {command} <&-"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "not empty" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check", "serve"])
def test_output_that_cannot_be_written(tmp_path: Path, command: str, unbuffered: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*RELAY, command, "-c", path],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_errors_that_cannot_be_written(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*RELAY, "check", "-c", tmp_path / "none"], stderr=full, timeout=60, check=False)
    assert done.returncode == 2


def test_an_access_log_that_nobody_reads(serving: Serving, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = tmp_path / "piped.toml"
    path.write_text(SERVES.replace('access = ""', f'access = "{pipe}"'))
    done = relay("serve", "-c", path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{path}:6: log.access: {pipe}: nobody reads this pipe")
    # A reload says the same and keeps what it has.
    serving.ready()
    (tmp_path / "relay.toml").write_text(path.read_text())
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("stderr", "not reloaded: .*nobody reads this pipe")
    assert serving.end() == 0


@pytest.mark.parametrize("kind", ["pipe", "/dev/stdout"])
def test_an_access_log_that_is_a_pipe_with_a_reader(tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    path = tmp_path / "relay.toml"
    path.write_text(SERVES.replace('access = ""', f'access = "{pipe if kind == "pipe" else kind}"'))
    serving = Serving("-c", path)
    try:
        _, port = serving.ready()
        assert ask(port).startswith(b"HTTP/1.1 403")
        assert serving.end() == 0
        written = os.read(reader, 65536) if kind == "pipe" else serving.read["stdout"]
        assert b'"target":"127.0.0.1:9"' in written
    finally:
        os.close(reader)
        serving.process.kill()
        serving.process.communicate()


def test_a_hook_module_that_ends_the_program(tmp_path: Path) -> None:
    (tmp_path / "ends_itself.py").write_text("import sys\nsys.exit(0)\n")
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + '[policy]\nhook = "ends_itself:decide"\n')
    search_path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    for command in ("check", "serve"):
        done = relay(command, "-c", path, env={"PYTHONPATH": search_path})
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == f"{path}:8: policy.hook: ends_itself fails to import: SystemExit: 0\n"


def test_a_hook_without_a_working_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    path = tmp_path / "relay.toml"
    path.write_text(SERVES + '[policy]\nhook = "json:dumps"\n')
    command = shlex.join([*RELAY, "check", "-c", str(path)])
    done = subprocess.run(
        ["/bin/sh", "-c", f"rmdir {gone} && exec {command}"],
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "relay.toml"
        path.write_text(f'[[listeners]]\naddress = "127.0.0.1:{port}"\n[auth]\nrequired = false\n')
        done = relay("serve", "-c", path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"{path}:2: listeners[0].address: 127.0.0.1:{port}")
        done = relay("serve", "--dev", "--port", str(port))
        assert done.returncode == 2
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(SERVES)
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"ulimit -n 64; exec {shlex.join([*RELAY, 'serve', '-c', str(path)])}"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"relay ready: ")
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_lines_fetch_the_demo_page() -> None:
    serving = Serving("--dev", "--port", "0")
    try:
        assert serving.ready()[0] == "https"
        serving.wait_for("stdout", r"(?m)(^curl .*\n){2}")
        lines = serving.read["stdout"].decode().splitlines()
        assert lines[0].startswith("relay ready: https://127.0.0.1:")
        assert lines[0].endswith(" (h1 h2 h3)")
        for line in lines[1:3]:
            page = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=False)
            assert page.returncode == 0, page.stderr
            assert "this page came through the relay" in page.stdout
        refused = re.sub(r"http://127\.0\.0\.1:\d+/", f"http://127.0.0.1:{serving.ready()[1]}/", lines[1])
        assert subprocess.run(["/bin/sh", "-c", refused], capture_output=True, timeout=30, check=False).returncode == 56
        (folder,) = re.findall(r"--proxy-cacert (\S+)/relay\.pem", lines[1])
        assert serving.end() == 0
        assert not Path(folder).exists()
    finally:
        serving.process.kill()
