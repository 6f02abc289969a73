"""Running a relay as a process: signals and logs."""

from relay.ops.logs import configure_logging
from relay.ops.process import run

__all__ = ["configure_logging", "run"]
