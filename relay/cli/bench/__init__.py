"""``relay bench``: what a gateway costs and how fast it answers."""

from relay.cli.bench.commands import bench

__all__ = ["bench"]
