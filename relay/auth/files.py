"""The files of users and tokens: one ``name:secret`` line each, secrets never in clear.

``users_file`` holds ``name:$argon2id$…`` lines, ``tokens_file`` holds ``name:`` and the SHA-256 of the token in hex.
Blank lines and lines that begin with ``#`` are skipped.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Final

PASSWORD_HASH: Final = re.compile(
    r"\$argon2id\$v=19\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]{11,64}\$[A-Za-z0-9+/]{16,86}"
)
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


def read_users(path: Path) -> list[tuple[str, str]]:
    """(name, argon2id hash) of every user."""
    return _read(path, PASSWORD_HASH, "name:$argon2id$…, as `relay auth user` writes it")


def read_tokens(path: Path) -> list[tuple[str, str]]:
    """(name, SHA-256 in lower-case hex) of every token."""
    return _read(path, TOKEN_HASH, "name:SHA-256 in hex, as `relay auth token` writes it")


def _read(path: Path, secret: re.Pattern[str], expected: str) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
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
        if not secret.fullmatch(value):
            errors.append(f"{path}:{number}: expected {expected}")
        elif name in entries:
            errors.append(f"{path}:{number}: {name!r} is there twice: remove one of the lines")
        entries[name] = value
    if errors:
        raise CredentialsError(errors)
    return list(entries.items())


def write_entry(path: Path, name: str, secret: str) -> bool:
    """Adds or replaces the line of a name; the file is made with mode 0600. True when the name was there before.

    The file is replaced in one step, so that a running relay that reloads never reads half of it.
    """
    check_name(name)
    line = f"{name}:{secret}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        lines = []
        mode = 0o600
    kept = [old for old in lines if old.strip().partition(":")[0] != name or old.lstrip().startswith("#")]
    replaced = len(kept) != len(lines)
    real = path.resolve()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{entry}\n" for entry in [*kept, line])
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(real)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return replaced
