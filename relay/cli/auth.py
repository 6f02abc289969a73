"""``relay auth``: users and tokens."""

import secrets
import sys
from pathlib import Path

import click

from relay import _native
from relay.auth import files


@click.group()
def auth() -> None:
    """Add users and tokens to the files that the configuration names."""


def _check_name(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return files.check_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _write(path: str, name: str, secret: str) -> None:
    try:
        replaced = files.write_entry(Path(path), name, secret)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise click.UsageError(f"{path}: cannot be written: {reason}") from None
    click.echo(f"{path}: {name} {'replaced' if replaced else 'added'}", err=True)


@auth.command()
@click.argument("file")
@click.argument("name", callback=_check_name)
def user(file: str, name: str) -> None:
    """Add or replace user NAME in FILE; the password is read from standard input."""
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        try:
            password = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise click.UsageError("expected a password in UTF-8 on standard input") from None
    try:
        files.check_password(name, password)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _write(file, name, _native.hash_password(password))


@auth.command()
@click.argument("file")
@click.argument("name", callback=_check_name)
def token(file: str, name: str) -> None:
    """Make a token for NAME in FILE (replacing an earlier one) and print it; it is not stored in clear."""
    made = secrets.token_urlsafe(32)
    _write(file, name, _native.hash_token(made))
    click.echo(made)
