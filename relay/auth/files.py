"""The files of users and tokens: one ``name:secret`` line each, secrets never in clear.

``users_file`` holds ``name:$argon2id$…`` lines, ``tokens_file`` holds ``name:`` and the SHA-256 of the token in hex.
Blank lines and lines that begin with ``#`` are skipped.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from relay import _native

TOKEN_HASH: Final = re.compile(r"[0-9a-f]{64}")


class CredentialsError(ValueError):
    """A file of credentials that cannot be used; ``errors`` holds one line for each fault."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = errors
        super().__init__("\n".join(errors))


def check_name(name: str) -> str:
    """A name that fits into the file and into Basic credentials (RFC 7617 §2): ValueError otherwise."""
    if not name or ":" in name or name != name.strip() or name.startswith("#") or not name.isprintable():
        raise ValueError("expected a name without colon, control characters and spaces around it")
    return name


def check_password(name: str, password: str) -> str:
    """A password that Basic credentials can carry beside a name (RFC 7617 §2): ValueError otherwise."""
    if not password:
        raise ValueError("expected a password that is not empty")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in password):
        raise ValueError("expected a password of one line without control characters (RFC 7617 §2)")
    length = len(f"{name}:{password}".encode())
    if length > _native.MAX_USER_PASS:
        raise ValueError(
            f"expected name and password of at most {_native.MAX_USER_PASS} bytes together, the colon between them"
            f" included: these are {length}, and a relay ignores longer credentials"
        )
    return password


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. OSError for all others: a pipe would wait, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_users(path: Path) -> list[tuple[str, str]]:
    """(name, argon2id hash) of every user."""
    return _read(path, _native.is_argon2id, "name:$argon2id$…, as `relay auth user` writes it")


def read_tokens(path: Path) -> list[tuple[str, str]]:
    """(name, SHA-256 in lower-case hex) of every token."""
    return _read(path, _is_token_hash, "name:SHA-256 in hex, as `relay auth token` writes it")


def _is_token_hash(value: str) -> bool:
    return TOKEN_HASH.fullmatch(value) is not None


def _read(path: Path, is_secret: Callable[[str], bool], expected: str) -> list[tuple[str, str]]:
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise CredentialsError([f"expected a readable file: {path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise CredentialsError([f"expected a text file in UTF-8: {path}"]) from None
    entries: dict[str, str] = {}
    errors: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(":")
        try:
            check_name(name)
        except ValueError:
            value = ""
        if not is_secret(value):
            errors.append(f"{path}:{number}: expected {expected}")
        elif name in entries:
            errors.append(f"{path}:{number}: {name!r} is there twice: remove one of the lines")
        entries[name] = value
    if errors:
        raise CredentialsError(errors)
    return list(entries.items())


def write_entry(path: Path, name: str, secret: str) -> bool:
    """Adds or replaces the line of a name; the file is made with mode 0600. True when the name was there before.

    The file is replaced in one step, so that a running relay that reloads never reads half of it; mode and owner stay.
    Writers wait for each other.
    """
    check_name(name)
    line = f"{name}:{secret}"
    real = Path(os.path.realpath(path))
    with _locked(real.parent):
        try:
            with open_regular(real) as file:
                lines = file.read().decode("utf-8-sig").splitlines()
                before = os.fstat(file.fileno())
        except FileNotFoundError:
            lines, before = [], None
        kept = [old for old in lines if old.strip().partition(":")[0] != name or old.lstrip().startswith("#")]
        _replace(real, [*kept, line], before)
    return len(kept) != len(lines)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. The file itself would not do: it is another one after each change."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, lines: list[str], before: os.stat_result | None) -> None:
    """Puts a new file of these lines in the place of another; mode and owner are those it had."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            if before is not None:
                # Only root may give a file away; a group may be kept by its members.
                for owner in ((before.st_uid, -1), (-1, before.st_gid)):
                    with contextlib.suppress(OSError):
                        os.fchown(file.fileno(), *owner)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
