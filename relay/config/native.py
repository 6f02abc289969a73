"""The engine's form of a configuration, and the effective one that people read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay import _native
from relay.auth import files
from relay.config import values
from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.config.config import Config


def dumps(config: "Config", hook: bool) -> str:
    """JSON as the engine reads it."""
    errors: list[str] = []

    def credentials(key: str, read: Any, name: str | None) -> list[tuple[str, str]]:
        try:
            return list(read(Path(name))) if name else []
        except files.CredentialsError as error:
            errors.extend(config.fault(("auth", key), line) for line in error.errors)
            return []

    users = credentials("users_file", files.read_users, _text(config.auth.users_file))
    tokens = credentials("tokens_file", files.read_tokens, _text(config.auth.tokens_file))
    if errors:
        raise ConfigError(errors)
    egress, policy, limits = config.egress, config.policy, config.limits
    seconds = values.seconds_of
    return json.dumps(
        {
            "workers": config.workers,
            "listeners": [
                {
                    "address": listener.address,
                    "http": listener.versions,
                    "certificate": _text(listener.certificate),
                    "private_key": _text(listener.private_key),
                    "client_ca": _text(listener.client_ca),
                    "client_auth_required": listener.client_auth == "required",
                }
                for listener in config.listeners
            ],
            "auth": {
                "required": config.auth.required,
                "realm": config.auth.realm,
                "users": users,
                "tokens": tokens,
            },
            "protocols": _protocols(config),
            "egress": {
                "dial_timeout": seconds(egress.dial_timeout),
                "source_addresses": egress.source_addresses,
                "nameservers": egress.nameservers,
            },
            "policy": {
                "allow_networks": policy.allow_networks,
                "deny_networks": policy.deny_networks,
                "deny_ports": policy.deny_ports,
                "rules": [
                    {
                        "allow": rule.action == "allow",
                        "principals": rule.principals,
                        "hosts": rule.hosts,
                        "networks": rule.networks,
                        "ports": [values.ports_of(ports) for ports in rule.ports],
                        "protocols": rule.protocols,
                    }
                    for rule in policy.rules
                ],
                "hook": hook,
                "hook_timeout": seconds(policy.hook_timeout),
                "hook_cache": seconds(policy.hook_cache),
            },
            "quic": {"congestion_control": config.quic.congestion_control},
            "limits": {
                "header_timeout": seconds(limits.header_timeout),
                "idle_timeout": seconds(limits.idle_timeout),
                "idle_timeout_datagram": seconds(limits.idle_timeout_datagram),
                "drain_timeout": seconds(limits.drain_timeout),
                "max_connections": limits.max_connections,
                "max_tunnels_per_principal": limits.max_tunnels_per_principal,
                "buffer_per_tunnel": values.bytes_of(limits.buffer_per_tunnel),
                "memory": values.bytes_of(limits.memory),
            },
            "log": {"access": str(config.log.access)},
        }
    )


def _text(name: object) -> str | None:
    return None if name is None else str(name)


def _protocols(config: "Config") -> dict[str, Any]:
    connect = False
    templated: list[dict[str, Any]] = []
    for row in _native.protocols():
        table = config.protocols.get(row["name"])
        if table is not None and not table.enabled:
            continue
        if not row["templated"]:
            connect = True
            continue
        if table is None and not row["on_by_default"]:
            continue
        templated.append(
            {
                "protocol": row["name"],
                "template": (table and table.template) or row["default_template"],
                "profiles": _profiles(row, table),
                "bind": {"public_addresses": table.public_addresses} if table is not None and table.bind else None,
                "ecn_dscp": _ecn_dscp(table),
            }
        )
    return {"connect": connect, "templated": templated}


def _ecn_dscp(table: Any) -> dict[str, Any] | None:
    if table is None or not table.ecn_dscp:
        return None
    capsules = table.ecn_dscp_capsules
    return {"capsules": capsules and capsules.model_dump()}


def tokens_of(row: "_native.ProtocolRow") -> list[str]:
    """Tokens to choose from: of protocols whose capsule types go with them."""
    return [token for token, data, _ in row["profiles"] if data]


def _profiles(row: "_native.ProtocolRow", table: Any) -> list[dict[str, Any]]:
    chosen = table.profiles if table is not None else None
    profiles = [
        {"token": token, "data": data, "final_data": final}
        for token, data, final in row["profiles"]
        if chosen is None or token in chosen
    ]
    if chosen is not None:
        profiles.sort(key=lambda profile: chosen.index(profile["token"]))
    if table is not None:
        profiles += [profile.model_dump() for profile in table.profile]
    return profiles


def effective(config: "Config") -> dict[str, Any]:
    """Every value in force, as the tables of the file."""
    tree = config.model_dump(exclude_none=True)
    for index, listener in enumerate(config.listeners):
        entry = {"address": listener.address, "http": listener.versions} | tree["listeners"][index]
        entry.pop("proxy_protocol_from")
        if listener.client_ca:
            entry["client_auth"] = listener.client_auth or "optional"
        tree["listeners"][index] = entry
    tree["protocols"] = {}
    for row in _native.protocols():
        table = config.protocols.get(row["name"])
        described: dict[str, Any] = {"enabled": table.enabled if table is not None else row["on_by_default"]}
        if row["templated"]:
            described["template"] = (table and table.template) or row["default_template"]
        if tokens := tokens_of(row):
            chosen = table.profiles if table is not None else None
            described["profiles"] = chosen or tokens
            if table is not None and table.profile:
                described["profile"] = [profile.model_dump() for profile in table.profile]
        if row["can_bind"]:
            described["bind"] = table.bind if table is not None else False
            if table is not None and table.bind:
                described["public_addresses"] = table.public_addresses
        if row["can_mark"]:
            described["ecn_dscp"] = table.ecn_dscp if table is not None else False
            if table is not None and table.ecn_dscp_capsules:
                described["ecn_dscp_capsules"] = table.ecn_dscp_capsules.model_dump()
        tree["protocols"][row["name"]] = described
    for name, table in config.protocols.items():
        if name not in tree["protocols"]:
            tree["protocols"][name] = table.model_dump(
                exclude_none=True, exclude={"profile", "bind", "public_addresses", "ecn_dscp", "ecn_dscp_capsules"}
            )
    return tree
