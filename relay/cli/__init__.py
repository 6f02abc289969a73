"""The command ``relay``. Exit codes: 0 fine, 1 failed while running, 2 bad usage or configuration."""

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import NoReturn

import click

from relay import __version__, _native
from relay.cli.auth import auth
from relay.cli.bench import bench
from relay.cli.check import check
from relay.cli.serve import serve
from relay.errors import ConfigError, RelayError, StartError


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    protocols = " ".join(row["name"] for row in _native.protocols())
    loop = "uvloop" if find_spec("uvloop") else "asyncio"
    click.echo(f"relay {__version__} ({_native.BUILD_PROFILE} build; h1 h2 h3; {protocols}; {loop})")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show version, build profile and features.",
)
def cli() -> None:
    """An HTTP capsule relay: connect-tcp and CONNECT over HTTP/1.1, HTTP/2 and HTTP/3."""


cli.add_command(serve)
cli.add_command(check)
cli.add_command(auth)
cli.add_command(bench)


def _fail(lines: Iterable[str], code: int) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(code)


def main() -> None:
    """Runs the command line of this process."""
    _open_standard_files()
    try:
        cli(prog_name="relay")
    except (ConfigError, StartError) as error:
        _fail(error.errors, 2)
    except RelayError as error:
        _fail([str(error)], 1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _fail([f"{error.filename or 'output'}: {error.strerror or error}"], 1)


def _open_standard_files() -> None:
    """Where one is closed, a socket or a log would get its number, and what is meant for one end up in the other."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
