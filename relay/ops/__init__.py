"""Running a relay as a process: signals, logs, the kernel below."""

from relay.ops.kernel import kernel_tls
from relay.ops.logs import configure_logging
from relay.ops.process import run

__all__ = ["configure_logging", "kernel_tls", "run"]
