"""What the relay says about itself goes to standard error; the access log is the engine's."""

import logging
import sys


def configure_logging(level: str) -> None:
    """Sends records from this level on (``debug``, ``info``, ``warning``, ``error``) to standard error."""
    logger = logging.getLogger("relay")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
