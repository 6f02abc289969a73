"""``relay check``: validate and print the effective configuration."""

import click

from relay.config import Config
from relay.errors import ConfigError
from relay.policy import load_hook


@click.command()
@click.option("-c", "--config", "path", required=True, metavar="FILE", help="The configuration, relay.toml.")
def check(path: str) -> None:
    """Validate a configuration and print it as it is in force, defaults included."""
    config = Config.load(path)
    if config.policy.hook:
        try:
            load_hook(config.policy.hook)
        except ValueError as error:
            raise ConfigError([config.fault(("policy", "hook"), str(error))]) from error
    for line in config.warnings():
        click.echo(line, err=True)
    click.echo(config.effective(), nl=False)
