"""The configuration's sections. Values stay as they are written; the engine's form is made in ``native.py``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from relay import _native
from relay.auth import files
from relay.config import faults, values
from relay.config.faults import Beside
from relay.config.origins import Origins
from relay.config.values import duration, size
from relay.errors import ConfigError
from relay.framing import DATAGRAM, is_grease

Http = Literal["h1", "h2", "h3"]


def _credentials(value: Any, info: ValidationInfo, what: str) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a file name")
    path = values.resolved(value, info)
    if what == "users":
        files.read_users(path)
    else:
        files.read_tokens(path)
    return str(path)


UsersFile = Annotated[str | Path, PlainValidator(lambda value, info: _credentials(value, info, "users"))]
TokensFile = Annotated[str | Path, PlainValidator(lambda value, info: _credentials(value, info, "tokens"))]


def _check_template(text: str) -> str:
    # = rfc9298 §2 template-reject
    _native.check_template(text)
    return text


Template = Annotated[str, AfterValidator(_check_template)]


class Section(BaseModel):
    """A table of the configuration: unknown keys are faults, and nothing changes after it was read.

    Made in code, it raises ConfigError with every fault.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            raise ConfigError([line for _, line in faults.lines(type(self), error, Origins())]) from None

    # Tables inside of others are made without it, as with pydantic's own: their faults are gathered by the outermost.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Listener(Section):
    """One listening address: TCP, and UDP on the same port when ``h3`` is listed."""

    address: values.ListenAddress
    http: list[Http] | None = Field(default=None, min_length=1)
    certificate: values.File | None = None
    private_key: values.File | None = Field(default=None, validate_default=True)
    client_ca: values.File | None = None
    client_auth: Literal["optional", "required"] | None = None
    proxy_protocol_from: list[values.Network] = []

    @property
    def versions(self) -> list[Http]:
        """The HTTP versions offered; in cleartext ``h1`` and ``h2`` unless said otherwise."""
        if self.http is not None:
            return list(dict.fromkeys(self.http))
        return ["h1", "h2", "h3"] if self.certificate else ["h1", "h2"]

    @field_validator("certificate")
    @classmethod
    def _chain(cls, certificate: str | None) -> str | None:
        if certificate:
            _native.check_certificate(certificate)
        return certificate

    @field_validator("private_key")
    @classmethod
    def _pair(cls, key: str | None, info: ValidationInfo) -> str | None:
        certificate = info.data.get("certificate")
        if "certificate" in info.data:
            if certificate and not key:
                raise Beside("certificate", "needs private_key beside it; leave both out for cleartext")
            if key and not certificate:
                raise ValueError("needs certificate beside it; leave both out for cleartext")
            if not key and "h3" in (info.data.get("http") or ()):
                raise Beside("http", '"h3" needs certificate and private_key beside it: QUIC has no cleartext form')
        if key:
            _native.check_private_key(key)
        if key and certificate:
            _native.check_tls(certificate, key)
        return key

    @field_validator("client_ca")
    @classmethod
    def _roots(cls, roots: str | None, info: ValidationInfo) -> str | None:
        if roots and "certificate" in info.data and not info.data["certificate"]:
            raise ValueError("needs certificate and private_key beside it: client certificates are part of TLS")
        if roots:
            _native.check_client_ca(roots)
        return roots

    @field_validator("client_auth")
    @classmethod
    def _asks(cls, ask: str | None, info: ValidationInfo) -> str | None:
        if ask and "client_ca" in info.data and not info.data["client_ca"]:
            raise ValueError("needs client_ca beside it")
        return ask

    @field_validator("proxy_protocol_from")
    @classmethod
    def _proxied(cls, networks: list[str]) -> list[str]:
        if networks:
            raise ValueError(
                "not supported by this version: take it out, and let the balancer pass TCP through plainly"
            )
        return networks


class Auth(Section):
    """Credentials, and whether they are asked for."""

    required: bool = True
    open: bool = False
    realm: values.Realm = "relay"
    users_file: UsersFile | None = None
    tokens_file: TokensFile | None = None


def _free_type(kind: int, info: ValidationInfo, first: str) -> int:
    """A capsule type of one's own, and not that of the field ``first``."""
    if kind == DATAGRAM or is_grease(kind):
        raise ValueError("expected a capsule type that is neither 0 (DATAGRAM) nor reserved (0x29 * N + 0x17)")
    if info.field_name != first and kind == info.data.get(first):
        raise ValueError(f"expected another capsule type than that of {first}")
    return kind


class Profile(Section):
    """An upgrade token and the capsule types that go with it."""

    token: str = Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
    data: int = Field(ge=0, le=2**62 - 1)
    final_data: int = Field(ge=0, le=2**62 - 1)

    @field_validator("data", "final_data")
    @classmethod
    def _free(cls, kind: int, info: ValidationInfo) -> int:
        return _free_type(kind, info, "data")


class EcnDscpCapsules(Section):
    """The types of the capsules that register contexts for ECN and DSCP; none are assigned yet."""

    assign: int = Field(ge=0, le=2**62 - 1)
    ack: int = Field(ge=0, le=2**62 - 1)

    @field_validator("assign", "ack")
    @classmethod
    def _free(cls, kind: int, info: ValidationInfo) -> int:
        return _free_type(kind, info, "assign")


class Protocol(Section):
    """One protocol of the protocol table: on or off, and where it is served."""

    enabled: bool = True
    template: Template | None = None
    profiles: list[str] | None = Field(default=None, min_length=1)
    profile: list[Profile] = []
    bind: bool = False
    public_addresses: list[values.Address] = []
    ecn_dscp: bool = False
    ecn_dscp_capsules: EcnDscpCapsules | None = None


class Egress(Section):
    """How targets are reached."""

    dial_timeout: Annotated[str, duration("1ms")] = "10s"
    source_addresses: list[values.Address] = []
    nameservers: list[values.NameServer] = []


class Rule(Section):
    """One policy rule: conditions are ANDed, entries of one list ORed, a list left out always holds."""

    action: Literal["allow", "deny"]
    principals: list[values.Name] = []
    hosts: list[values.HostPattern] = []
    networks: list[values.Network] = []
    ports: list[values.Ports] = []
    protocols: list[str] = []

    @field_validator("protocols")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        known = known_protocols()
        for name in names:
            if name not in known:
                raise ValueError(f"unknown protocol {name!r}; known are {', '.join(known)}")
        return names


class Policy(Section):
    """Which targets may be reached."""

    allow_networks: list[values.Network] = []
    deny_networks: list[values.Network] = []
    deny_ports: list[values.Port] = [25]
    hook: values.Hook = ""
    hook_timeout: Annotated[str, duration("1ms")] = "2s"
    hook_cache: Annotated[str, duration()] = "0s"
    rules: list[Rule] = []


class Quic(Section):
    """QUIC towards clients."""

    congestion_control: Literal["cubic", "bbr"] = "cubic"


class Limits(Section):
    """What bounds everything."""

    header_timeout: Annotated[str, duration("1ms")] = "10s"
    idle_timeout: Annotated[str, duration("1ms")] = "1h"
    idle_timeout_datagram: Annotated[str, duration("2m")] = "5m"
    drain_timeout: Annotated[str, duration()] = "30s"
    max_connections: int = Field(default=100_000, ge=1, le=2**32 - 1)
    max_tunnels_per_principal: int = Field(default=10_000, ge=1, le=2**32 - 1)
    buffer_per_tunnel: Annotated[str, size("16KiB")] = "1MiB"
    memory: Annotated[str, size("1MiB", zero=True)] = "0"


class Admin(Section):
    """The admin endpoint."""

    address: values.AdminAddress = ""


class Log(Section):
    """Where the access log goes, and how much is said about the relay itself."""

    access: values.LogFile = "-"
    level: Literal["debug", "info", "warning", "error"] = "info"


def known_protocols() -> list[str]:
    """The names that ``[protocols.…]`` may have."""
    return [row["name"] for row in _native.protocols()]
