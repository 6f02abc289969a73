"""What the kernel could do for a relay."""

import platform
from pathlib import Path
from typing import Literal

_LOADED = Path("/proc/sys/net/ipv4/tcp_available_ulp")
_MODULES = Path("/lib/modules")


def kernel_tls() -> Literal["yes", "not loaded", "no"]:
    """Whether the kernel can encrypt TLS records itself (``TCP_ULP``). The relay does not ask it to.

    Only looks: to try it on a socket would load the module.
    """
    try:
        if "tls" in _LOADED.read_text().split():
            return "yes"
        found = any((_MODULES / platform.release() / "kernel" / "net" / "tls").glob("tls.ko*"))
    except OSError:
        return "no"
    return "not loaded" if found else "no"
