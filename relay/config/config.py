"""``Config``: read from TOML and the environment, or made in code; checked as a whole."""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationError, ValidationInfo, model_validator

from relay import _native
from relay.config import environment, faults, models, native, toml, values
from relay.config.origins import Origins
from relay.errors import ConfigError


class Config(models.Section):
    """The whole configuration of a relay.

    Made in code (``Config(listeners=[Listener(address="127.0.0.1:0")])``) or read by :meth:`load`. Durations and sizes
    are strings with units (``"10s"``, ``"1MiB"``). Every fault is found at once and raised as :class:`ConfigError`; a
    section made in code raises its own.
    """

    workers: int = Field(default=0, ge=0, le=1024)
    listeners: list[models.Listener] = Field(min_length=1)
    auth: models.Auth = models.Auth()
    protocols: dict[str, models.Protocol] = {}
    egress: models.Egress = models.Egress()
    policy: models.Policy = models.Policy()
    quic: models.Quic = models.Quic()
    limits: models.Limits = models.Limits()
    admin: models.Admin = models.Admin()
    log: models.Log = models.Log()

    #: The file as it was named, its absolute name, the variables given.
    _source: tuple[Path, Path, Mapping[str, str] | None] | None = PrivateAttr(default=None)
    _origins: Origins = PrivateAttr(default_factory=Origins)

    @classmethod
    def load(cls, path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Self:
        """Reads a TOML file and the overrides in the environment (``os.environ`` unless given).

        Relative file names in it are relative to the file. A reload reads the same file with the same overrides, or
        with those that ``os.environ`` has by then. Raises ConfigError with every fault.
        """
        name = Path(path)
        try:
            file = name.absolute()
        except OSError as error:
            raise ConfigError([f"{name}: cannot be read: {error.strerror}"]) from None
        return cls._read(name, file, None if environ is None else dict(environ))

    @classmethod
    def _read(cls, name: Path, file: Path, environ: Mapping[str, str] | None) -> Self:
        tree, lines, line = _parse(name, file)
        found, wrong = environment.overrides(os.environ if environ is None else environ)
        variables: dict[str, str] = {}
        for keys, value, variable in found:
            table = tree
            for key in keys[:-1]:
                inner = table.setdefault(key, {})
                table = inner if isinstance(inner, dict) else {}
            table[keys[-1]] = value
            variables[".".join(keys)] = variable
        origins = Origins(str(name), lines, variables, line)
        context = {"base": file.parent, "origins": origins, "faults": wrong}
        config = cls.model_validate(tree, context=context)
        config._source = (name, file, environ)
        config._origins = origins
        return config

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """Makes a configuration from the same tables as the file has. Raises ConfigError with every fault."""
        if not isinstance(tree, Mapping):
            raise ConfigError([f"expected the tables of a configuration, not {type(tree).__name__}"])
        return cls.model_validate(dict(tree))

    def reread(self) -> "Config":
        """The configuration anew from where it came from: the file, or for one made in code the files it names."""
        if self._source is not None:
            return self._read(*self._source)
        return type(self).model_validate(self.model_dump(exclude_unset=True))

    def warnings(self) -> list[str]:
        """What is accepted, but not as it may be meant; one line each."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.admin.address:
            found.append((("admin", "address"), "this version does not serve the admin endpoint yet"))
        known = self.auth.users_file or self.auth.tokens_file or any(at.client_ca for at in self.listeners)
        if self.auth.required and not known:
            found.append(
                (("auth",), "nobody has credentials: set users_file or tokens_file, or client_ca at a listener")
            )
        return [self.fault(path, text) for path, text in found]

    def fault(self, path: tuple[str | int, ...], text: str) -> str:
        """A line about a key, with its place: ``relay.toml:LINE: key: text``."""
        return f"{self._origins.place(path)}: {text}"

    def effective(self) -> str:
        """The configuration as it is in force, defaults included, as TOML."""
        return toml.dumps(native.effective(self))

    def to_native(self, hook: bool | None = None) -> str:
        """The engine's form: JSON with seconds, bytes and the credentials themselves. Raises ConfigError.

        ``hook`` tells whether tunnels are asked about; without it, whether ``policy.hook`` is set.
        """
        return native.dumps(self, bool(self.policy.hook) if hook is None else hook)

    def located(self, line: str) -> str:
        """A line of the engine's, ``key: text``, with the place of its key."""
        match = re.match(r"([a-z_]+(?:\[\d+\]|\.[a-z_-]+)*): ", line)
        if not match:
            return line
        parts = re.findall(r"[a-z_-]+|\d+", match[1])
        return self.fault(tuple(int(part) if part.isdigit() else part for part in parts), line[match.end() :])

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        context = info.context or {}
        origins: Origins = context.get("origins", Origins())
        found = [(path, f"{origins.place(path)}: {text}") for path, text in _across(data)]
        config = None
        try:
            config = handler(data)
        except ValidationError as error:
            found += faults.lines(cls, error, origins)
        if config is not None and not found and not context.get("faults"):
            return config
        order = {line: number for number, line in enumerate(dict.fromkeys(line for _, line in found))}
        raise ConfigError([*context.get("faults", []), *sorted(order, key=lambda line: (_line(line), order[line]))])


def _line(text: str) -> int:
    match = re.match(r".*?:(\d+): ", text)
    return int(match[1]) if match else 0


def _parse(name: Path, file: Path) -> tuple[dict[str, Any], dict[str, int], int]:
    """The tables of a file, the line of each key, and a line for what has none. Faults have the name as given."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([f"{name}:{line}: expected text in UTF-8"]) from None
    lines, refused = _native.toml_lines(text)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        match = re.search(r" \(at line (\d+), column (\d+)\)", message)
        line = int(match[1]) if match else text.rstrip("\n").count("\n") + 1
        what = message[: match.start()] + f" (column {match[2]})" if match else message
        raise ConfigError([f"{name}:{line}: expected TOML: {what}"]) from None
    except (RecursionError, ValueError) as error:
        what = "brackets nested too deeply" if isinstance(error, RecursionError) else "an integer of too many digits"
        raise ConfigError([f"{name}:{refused or 1}: expected TOML: {what}"]) from None
    return tree, lines, 1 if lines or refused is None else refused


def _get(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, Mapping) else getattr(table, key, None)


def _across(data: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Faults between sections, found in whatever state the rest is."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    auth, listeners, protocols = (_get(data, key) for key in ("auth", "listeners", "protocols"))
    if _get(auth, "required") is False and _get(auth, "open") is not True and isinstance(listeners, list):
        for listener in listeners:
            address = _get(listener, "address")
            if isinstance(address, str) and not _is_loopback(address):
                found.append(
                    (
                        ("auth", "required"),
                        f"false would open {address} to everybody: listen on loopback, or put open = true beside it",
                    )
                )
                break
    known = models.known_protocols()
    rows = {row["name"]: row for row in _native.protocols()}
    for name, table in protocols.items() if isinstance(protocols, Mapping) else ():
        if name not in known:
            found.append((("protocols", name), faults.unknown(str(name), known)))
            continue
        row = rows.get(name)
        tokens = native.tokens_of(row) if row else []
        found += [
            (("protocols", name, key), f"{name} has no {key}: take it out")
            for key in ("template", "profiles", "profile")
            if _get(table, key) and not ((row is None or row["templated"]) and (key == "template" or tokens))
        ]
        found += _bind_faults(name, row, table)
        found += _mark_faults(name, row, table)
        chosen = _get(table, "profiles")
        for number, token in enumerate(chosen if isinstance(chosen, list) else ()):
            if tokens and isinstance(token, str) and token not in tokens:
                found.append(
                    (
                        ("protocols", name, "profiles", number),
                        f"expected one of {', '.join(tokens)}; others need a [[protocols.{name}.profile]] table",
                    )
                )
        found += _repeated_tokens(name, tokens, _get(table, "profile"))
    return found


def _bind_faults(name: str, row: "_native.ProtocolRow | None", table: Any) -> list[tuple[tuple[str | int, ...], str]]:
    found: list[tuple[tuple[str | int, ...], str]] = []
    bind, addresses = _get(table, "bind"), _get(table, "public_addresses")
    if row is not None and not row["can_bind"]:
        found += [
            (("protocols", name, key), f"{name} has no {key}: take it out")
            for key, value in (("bind", bind), ("public_addresses", addresses))
            if value
        ]
    elif addresses and not bind:
        found.append((("protocols", name, "public_addresses"), "needs bind = true beside it"))
    families: set[bool] = set()
    for number, address in enumerate(addresses if isinstance(addresses, list) else ()):
        if isinstance(address, str) and (":" in address) in families:
            found.append((("protocols", name, "public_addresses", number), "expected one address of each family"))
        families.add(":" in str(address))
    return found


def _mark_faults(name: str, row: "_native.ProtocolRow | None", table: Any) -> list[tuple[tuple[str | int, ...], str]]:
    marks, capsules = _get(table, "ecn_dscp"), _get(table, "ecn_dscp_capsules")
    if row is not None and not row["can_mark"]:
        given = (("ecn_dscp", marks), ("ecn_dscp_capsules", capsules))
        return [(("protocols", name, key), f"{name} has no {key}: take it out") for key, value in given if value]
    if capsules and not marks:
        return [(("protocols", name, "ecn_dscp_capsules"), "needs ecn_dscp = true beside it")]
    return []


def _repeated_tokens(name: str, built_in: list[str], profiles: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Tokens that two profiles have; HTTP/1.1 compares them without regard to case (RFC 9110 §7.8)."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    taken = {token.lower(): "is built in" for token in built_in}
    for number, profile in enumerate(profiles if isinstance(profiles, list) else ()):
        token = _get(profile, "token")
        if not isinstance(token, str):
            continue
        if token.lower() in taken:
            path = ("protocols", name, "profile", number, "token")
            found.append((path, f"expected another token: {token} {taken[token.lower()]}"))
        taken.setdefault(token.lower(), "is that of another profile")
    return found


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(values.socket_address(values.check_listen_address(address))[0]).is_loopback
    except ValueError:
        return True
