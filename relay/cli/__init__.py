"""The command ``relay``. Exit codes: 0 fine, 1 failed while running, 2 bad usage or configuration."""

import contextlib
import errno
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
from relay.ops import kernel_tls


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    protocols = " ".join(row["name"] for row in _native.protocols())
    loop = "uvloop" if find_spec("uvloop") else "asyncio"
    click.echo(f"relay {__version__} ({_native.BUILD_PROFILE} build; h1 h2 h3; {protocols}; {loop})")
    click.echo(f"kernel TLS: {kernel_tls()}; TLS is done in user space either way")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show version, build profile and features, and whether the kernel has TLS.",
)
def cli() -> None:
    """An HTTP capsule relay: connect-tcp, connect-udp and CONNECT over HTTP/1.1, HTTP/2 and HTTP/3."""


cli.add_command(serve)
cli.add_command(check)
cli.add_command(auth)
cli.add_command(bench)


def _fail(lines: Iterable[str], code: int) -> NoReturn:
    # Standard error may be what cannot be written to.
    with contextlib.suppress(OSError):
        for line in lines:
            click.echo(line, err=True)
    sys.exit(code)


def _keep_standard_descriptors() -> None:
    """Opens the standard descriptors that the caller closed: the next file would get their numbers and bytes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _told(error: OSError) -> str:
    """What went wrong outside, in one line."""
    unwritten = error.filename is None and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EBADF,
    )
    try:
        sys.stdout.flush()
    except OSError:
        # What is still to be written would be tried again, in vain, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        unwritten = True
    place = "the output cannot be written: " if unwritten else f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def main() -> None:
    """Runs the command line of this process."""
    _keep_standard_descriptors()
    try:
        cli(prog_name="relay")
    except (ConfigError, StartError) as error:
        _fail(error.errors, 2)
    except RelayError as error:
        _fail([str(error)], 1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _fail([_told(error)], 1)
