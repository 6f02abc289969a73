"""The files of users and tokens."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay import _native
from relay.auth import files


def test_a_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    assert files.write_entry(path, "ci", _native.hash_token("x")) is False
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.read_tokens(path) == [("ci", _native.hash_token("x"))]


def test_an_entry_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# kept: this\n\nother:{'0' * 64}\nci:{'1' * 64}\n")
    path.chmod(0o640)
    assert files.write_entry(path, "ci", "2" * 64) is True
    assert path.read_text() == f"# kept: this\n\nother:{'0' * 64}\nci:{'2' * 64}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    files.write_entry(tmp_path / "link", "ci", "2" * 64)
    assert (tmp_path / "link").is_symlink()
    assert files.read_tokens(tmp_path / "real") == [("ci", "2" * 64)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_an_owner_stays_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("")
    path.chmod(0o640)
    os.chown(path, 12345, 23456)
    files.write_entry(path, "ci", "2" * 64)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o640)


def test_entries_written_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    names = [f"ci-{number}" for number in range(64)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: files.write_entry(path, name, "2" * 64), names))
    assert sorted(name for name, _ in files.read_tokens(path)) == sorted(names)


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    for path in (pipe, tmp_path / "link", tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            files.write_entry(path, "ci", "2" * 64)
        with pytest.raises(files.CredentialsError, match="not a regular file"):
            files.read_tokens(path)
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ci:{'1' * 64}\n", encoding="utf-8-sig")
    assert files.read_tokens(path) == [("ci", "1" * 64)]
    assert files.write_entry(path, "ci", "2" * 64) is True
    assert files.read_tokens(path) == [("ci", "2" * 64)]


def test_hashes_that_nothing_can_be_verified_with(tmp_path: Path) -> None:
    path = tmp_path / "users"
    tail = "$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdHNvbWVzYWx0c29tZXNhbHQ"
    path.write_text(
        "".join(
            f"{name}:$argon2id$v=19${costs}{tail}\n"
            for name, costs in [
                ("alice", "m=19456,t=2,p=1"),
                ("bob", "m=0,t=0,p=0"),
                ("carol", "m=4294967295,t=2,p=1"),
            ]
        )
    )
    with pytest.raises(files.CredentialsError) as caught:
        files.read_users(path)
    assert [line.partition(": ")[0] for line in caught.value.errors] == [f"{path}:2", f"{path}:3"]


def test_passwords_that_no_request_could_carry() -> None:
    longest = "é" * ((_native.MAX_USER_PASS - len("alice:")) // 2)
    assert files.check_password("alice", longest) == longest
    with pytest.raises(ValueError, match=f"at most {_native.MAX_USER_PASS} bytes together"):
        files.check_password("alice", longest + "ab")


def test_hashes_are_what_the_files_take(tmp_path: Path) -> None:
    phc = _native.hash_password("påss wörd")
    assert _native.is_argon2id(phc)
    assert phc.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert phc != _native.hash_password("påss wörd")
    assert _native.hash_token("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    files.write_entry(tmp_path / "users", "alice", phc)
    assert files.read_users(tmp_path / "users") == [("alice", phc)]


@pytest.mark.parametrize("name", ["", "a:b", " a", "a\n", "#a", "\x07"])
def test_names_that_no_line_holds(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        files.write_entry(tmp_path / "users", name, "x")
    assert list(tmp_path.iterdir()) == []
