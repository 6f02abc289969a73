"""``relay serve``: run until told to end."""

import tempfile
from pathlib import Path

import click

from relay.cli import demo
from relay.config import Config
from relay.errors import StartError
from relay.ops import configure_logging, run
from relay.ops.process import Process
from relay.server import Relay


@click.command()
@click.option("-c", "--config", "path", metavar="FILE", help="The configuration, relay.toml.")
@click.option("--dev", is_flag=True, help="On loopback with a throw-away certificate, a token and a demo page.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="With --dev: another port than 8443; 0 = any free one.",
)
def serve(path: str | None, dev: bool, port: int | None) -> None:
    """Serve until SIGTERM, which lets open tunnels end first; SIGHUP reloads the configuration."""
    if dev == (path is not None):
        raise click.UsageError("expected either -c FILE or --dev")
    if port is not None and not dev:
        raise click.UsageError("--port goes with --dev; otherwise the listeners are in the configuration")
    if path is not None:
        config = Config.load(path)
        configure_logging(config.log.level)
        for line in config.warnings():
            click.echo(line, err=True)
        run(Process(Relay(config)).serve(_say_ready))
    else:
        configure_logging("warning")
        with tempfile.TemporaryDirectory(prefix="relay-dev-") as directory:
            run(_serve_dev(Path(directory), 8443 if port is None else port))


def _say_ready(relay: Relay) -> None:
    click.echo(f"relay ready: {', '.join(map(str, relay.addresses))}")


async def _serve_dev(directory: Path, port: int) -> None:
    async with demo.DemoPage() as page:
        config, token = demo.prepare(directory, port, page.port)

        def ready(relay: Relay) -> None:
            _say_ready(relay)
            for line in demo.curl_lines(relay.addresses[0].url, directory, token, page.port):
                click.echo(line)

        try:
            await Process(Relay(config)).serve(ready)
        except StartError as error:
            raise StartError([*error.errors, "relay serve --dev --port PORT takes another port"]) from None
