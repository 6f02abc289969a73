"""What the relay and its engine say about themselves goes to standard error; the access log has a place of its own."""

import logging
import sys

from relay import _native


def configure_logging(level: str) -> None:
    """Sends records from this level on (``debug``, ``info``, ``warning``, ``error``) to standard error."""
    _native.log_to_stderr(level)
    logger = logging.getLogger("relay")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
