"""The values of the configuration: strings with units, addresses, networks, ports, file names.

Each ``check_…`` function returns the value in its canonical form or raises ValueError with what was expected. Each
``…_of`` function turns a checked value into what the engine takes.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator, ValidationInfo

from relay.auth.files import open_regular

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 10 * 365 * 86400.0

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_LARGEST = 2**62

_HOST_PATTERN = re.compile(r"(?:\*|(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.:-]*[A-Za-z0-9_.])?)")


def seconds_of(text: str) -> float:
    """The seconds of a duration such as ``"10s"``, ``"1h30m"``, ``"250ms"`` or ``"0"``."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise ValueError('expected a duration with a unit (ms, s, m, h, d), such as "10s" or "1h30m"')
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if seconds > _LONGEST:
        raise ValueError("expected a duration of at most ten years")
    return seconds


def duration(at_least: str = "0s") -> AfterValidator:
    """A validator for durations that are at least so long."""

    def check(text: str) -> str:
        if seconds_of(text) < seconds_of(at_least):
            raise ValueError(f"expected a duration of at least {at_least}")
        return text

    return AfterValidator(check)


def bytes_of(text: str) -> int:
    """The bytes of a size such as ``"1MiB"``, ``"64 kB"`` or ``"0"``."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError('expected a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as "1MiB"')
    size = float(match[1]) * _BYTES[match[2]]
    if size > _LARGEST:
        raise ValueError("expected a smaller size")
    return int(size)


def size(at_least: str = "0", zero: bool = False) -> AfterValidator:
    """A validator for sizes that are at least so large, or zero where that has a meaning."""

    def check(text: str) -> str:
        number = bytes_of(text)
        if number < bytes_of(at_least) and not (zero and number == 0):
            raise ValueError(f"expected a size of at least {at_least}" + (', or "0"' if zero else ""))
        return text

    return AfterValidator(check)


def socket_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Splits ``127.0.0.1:8443`` or ``[::1]:8443``; ValueError when it is neither."""
    host, colon, port = text.rpartition(":")
    if default_port is not None and (not colon or ("[" not in text and text.count(":") > 1)):
        host, port = text, str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError("not an IPv6 address")
    elif ":" in host and default_port is None:
        raise ValueError("IPv6 address without brackets")
    if "%" in host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("not an address and port")
    return str(ipaddress.ip_address(host)), int(port)


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_listen_address(text: str) -> str:
    """An IP address and a port, 0 included."""
    try:
        host, port = socket_address(text)
    except ValueError:
        raise ValueError(
            'expected an IP address and a port, such as "127.0.0.1:8443" or "[::1]:8443"; "0.0.0.0:8443" for every one'
        ) from None
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        # Listeners for IPv6 take no IPv4, so that both can have the same port.
        raise ValueError(f'expected an IPv4 address as such: write "{address.ipv4_mapped}:{port}"')
    return join_address(host, port)


def check_admin_address(text: str) -> str:
    """A listening address, or nothing."""
    return check_listen_address(text) if text else ""


def check_name_server(text: str) -> str:
    """An IP address with or without a port; 53 is added where there is none."""
    try:
        host, port = socket_address(text, default_port=53)
    except ValueError:
        host, port = "", 0
    if port == 0:
        raise ValueError('expected the IP address of a name server, such as "192.0.2.53" or "[2001:db8::53]:5353"')
    return join_address(host, port)


def check_ip_address(text: str) -> str:
    """An IP address without a zone."""
    try:
        if "%" in text:
            raise ValueError
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError('expected an IP address, such as "192.0.2.1"') from None


def check_network(text: str) -> str:
    """A network in CIDR form; one address is a network of its own."""
    try:
        if "%" in text:
            raise ValueError
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError('expected a network, such as "10.0.0.0/8" or "fd00::/8"') from None
    if interface.ip != interface.network.network_address:
        raise ValueError(f'expected a network without host bits: did you mean "{interface.network}"?')
    return str(interface.network)


def check_port(number: int) -> int:
    """A port that can be dialled."""
    if not 1 <= number <= 65535:
        raise ValueError("expected a port from 1 to 65535")
    return number


def ports_of(text: str) -> tuple[int, int]:
    """The inclusive range of ``"443"`` or ``"8000-8999"``."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if match:
        first = int(match[1])
        last = int(match[2] or match[1])
        if 1 <= first <= last <= 65535:
            return first, last
    raise ValueError('expected a port or a range of ports, such as "443" or "8000-8999"')


def _check_ports(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError('expected a port or a range of ports, such as "443" or "8000-8999"')
    ports_of(value)
    return value


def check_host_pattern(text: str) -> str:
    """A host name, an address, or ``*.`` and a name."""
    if not _HOST_PATTERN.fullmatch(text):
        raise ValueError('expected a host name or a pattern, such as "www.example.com" or "*.example.com"')
    return text


def check_hook(text: str) -> str:
    """``package.module:function``, or nothing."""
    if text and not re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*", text):
        raise ValueError('expected "package.module:function"')
    return text


def check_name(text: str) -> str:
    """The name of a principal: something printable."""
    if not text or not text.isprintable():
        raise ValueError("expected a name")
    return text


def check_realm(text: str) -> str:
    """What fits into a quoted string of a header field."""
    if not re.fullmatch(r"[ -!#-\[\]-~]+", text):
        raise ValueError("expected printable ASCII without quotes and backslashes")
    return text


def resolved(name: str | os.PathLike[str], info: ValidationInfo) -> Path:
    """A file name, taken relative to the file that the configuration came from, else to the working directory.

    It is absolute, so that a reload finds the file wherever the process works by then.
    """
    base = (info.context or {}).get("base")
    try:
        path = Path(name).expanduser()
        if "\0" in str(path):
            raise ValueError("expected a file name without NUL")
        return Path(base, path) if base is not None else path.absolute()
    except RuntimeError:
        raise ValueError(f"expected a file name: {name}: no such user, or none with a home") from None
    except OSError as error:
        raise ValueError(f"expected a file name: {name}: no working directory: {error.strerror}") from None


def _check_file(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError("expected a file name")
    path = resolved(value, info)
    try:
        with open_regular(path) as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"expected a readable file: {path}: {error.strerror}") from None
    return str(path)


def _check_log(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise ValueError('expected "-" for standard output, "" for none, or a file name')
    if value in ("", "-"):
        return value
    path = resolved(value, info)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"expected a file in a directory that exists: {path}")
    return str(path)


def each(check: Callable[[str], str]) -> AfterValidator:
    """A validator from a check."""
    return AfterValidator(check)


ListenAddress = Annotated[str, each(check_listen_address)]
AdminAddress = Annotated[str, each(check_admin_address)]
NameServer = Annotated[str, each(check_name_server)]
Address = Annotated[str, each(check_ip_address)]
Network = Annotated[str, each(check_network)]
Port = Annotated[int, AfterValidator(check_port)]
Ports = Annotated[str, PlainValidator(_check_ports)]
HostPattern = Annotated[str, each(check_host_pattern)]
Hook = Annotated[str, each(check_hook)]
Name = Annotated[str, each(check_name)]
Realm = Annotated[str, each(check_realm)]
File = Annotated[str | os.PathLike[str], PlainValidator(_check_file)]
LogFile = Annotated[str | os.PathLike[str], PlainValidator(_check_log)]
