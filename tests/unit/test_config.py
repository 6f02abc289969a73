"""The configuration: every kind of fault, all at once, each with its line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from relay import Config, ConfigError, _native
from relay.config import Auth, Limits, Listener, Policy, Profile, Protocol, Rule

LISTENER = '[[listeners]]\naddress = "127.0.0.1:0"\n'
PROFILE = LISTENER + '[[protocols.connect-tcp.profile]]\ntoken = "{}"\ndata = {}\nfinal_data = {}\n'
USER = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZXNhbHRzb21lc2FsdHNvbWVzYWx0c29tZXNhbHQ"


def errors_of(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The faults of a file, without the folder's name."""
    path = folder / "relay.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.load(path, environ or {})
    return [line.replace(f"{folder}/", "") for line in caught.value.errors]


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = folder / "relay.toml"
    path.write_text(text)
    return Config.load(path, environ or {})


def write_pair(folder: Path, stem: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    chain, private = _native.throwaway_certificate(["localhost"])
    certificate.write_text(chain)
    key.write_text(private)
    return certificate, key


def test_the_shortest_file_has_every_default(tmp_path: Path) -> None:
    native = json.loads(load(tmp_path, LISTENER).to_native())
    assert native["listeners"] == [
        {
            "address": "127.0.0.1:0",
            "http": ["h1", "h2"],
            "certificate": None,
            "private_key": None,
            "client_ca": None,
            "client_auth_required": False,
        }
    ]
    assert native["quic"] == {"congestion_control": "cubic"}
    assert native["limits"] == {
        "header_timeout": 10.0,
        "idle_timeout": 3600.0,
        "idle_timeout_datagram": 300.0,
        "drain_timeout": 30.0,
        "max_connections": 100_000,
        "max_tunnels_per_principal": 10_000,
        "buffer_per_tunnel": 1 << 20,
        "memory": 0,
    }
    assert native["auth"] == {"required": True, "realm": "relay", "users": [], "tokens": []}
    assert native["protocols"]["connect"] is True
    tcp, udp = native["protocols"]["templated"]
    assert udp["template"] == "/.well-known/masque/udp/{target_host}/{target_port}/"
    assert [profile["token"] for profile in udp["profiles"]] == ["connect-udp"]
    assert tcp["template"] == "/.well-known/masque/tcp/{target_host}/{target_port}/"
    assert [profile["token"] for profile in tcp["profiles"]] == ["connect-tcp-12", "connect-tcp-07"]
    assert native["policy"]["deny_ports"] == [25]


FAULTS = [
    ('workers = "many"\n' + LISTENER, 1, "workers", "expected an integer"),
    ("worker = 1\n" + LISTENER, 1, "worker", "did you mean workers?"),
    ("", 1, "listeners", "is required"),
    ("listeners = []", 1, "listeners", "at least one entry"),
    ('[[listeners]]\nhttp = ["h1"]', 1, "listeners[0].address", "is required"),
    ('[[listeners]]\naddress = "localhost:1"', 2, "listeners[0].address", "an IP address and a port"),
    ('[[listeners]]\naddress = "::1:1"', 2, "listeners[0].address", "an IP address and a port"),
    ('[[listeners]]\naddress = "127.0.0.1:65536"', 2, "listeners[0].address", "an IP address and a port"),
    (LISTENER + 'http = ["h1",\n "h4"]', 4, "listeners[0].http[1]", "expected 'h1', 'h2' or 'h3'"),
    ('[[listeners]]\naddress = "[::ffff:127.0.0.1]:80"', 2, "listeners[0].address", 'write "127.0.0.1:80"'),
    (
        '[[listeners]]\naddress = "[::ffff:10.0.0.1]:80"\n[auth]\nrequired = false',
        2,
        "listeners[0].address",
        'write "10.0.0.1:80"',
    ),
    (LISTENER + 'http = ["h3"]', 3, "listeners[0].http", "QUIC has no cleartext form"),
    (LISTENER + 'certificate = "none.pem"', 3, "listeners[0].certificate", "none.pem: No such file"),
    (LISTENER + 'private_key = "relay.toml"', 3, "listeners[0].private_key", "needs certificate"),
    (LISTENER + 'certificate = "relay.toml"', 3, "listeners[0].certificate", "relay.toml: holds no PEM certificate"),
    (LISTENER + 'certificate = "~nosuchuser/x"', 3, "listeners[0].certificate", "~nosuchuser/x: no such user"),
    (LISTENER + 'certificate = "a\\u0000b"', 3, "listeners[0].certificate", "without NUL"),
    (LISTENER + 'client_ca = "relay.toml"', 3, "listeners[0].client_ca", "needs certificate and private_key"),
    (LISTENER + 'client_auth = "required"', 3, "listeners[0].client_auth", "needs client_ca"),
    (LISTENER + 'proxy_protocol_from = ["10.0.0.0/8"]', 3, "listeners[0].proxy_protocol_from", "not supported"),
    (LISTENER + '[auth]\nrealm = "a\\"b"', 4, "auth.realm", "printable ASCII"),
    (LISTENER + '[auth]\nusers_file = "none"', 4, "auth.users_file", "none: No such file"),
    (LISTENER + '[auth]\nusers_file = "~nosuchuser/x"', 4, "auth.users_file", "~nosuchuser/x: no such user"),
    (LISTENER + '[auth]\ntokens_file = ""', 4, "auth.tokens_file", "expected a file name"),
    (LISTENER + "[protocols.conect]", 3, "protocols.conect", "did you mean connect?"),
    (
        LISTENER + '[protocols.connect]\ntemplate = "/{target_host}/{target_port}"',
        4,
        "protocols.connect.template",
        "no",
    ),
    (LISTENER + '[protocols.connect-tcp]\ntemplate = "/x"', 4, "protocols.connect-tcp.template", "target_host"),
    (LISTENER + '[protocols.connect-tcp]\nprofiles = ["x"]', 4, "protocols.connect-tcp.profiles[0]", "connect-tcp-12"),
    (
        LISTENER + '[[protocols.connect-tcp.profile]]\ntoken = "a b"\ndata = 1\nfinal_data = 2',
        4,
        "protocols.connect-tcp.profile[0].token",
        "HTTP token",
    ),
    (PROFILE.format("own", 0, 2), 5, "protocols.connect-tcp.profile[0].data", "neither 0 (DATAGRAM) nor reserved"),
    (PROFILE.format("own", 1, 0x17), 6, "protocols.connect-tcp.profile[0].final_data", "neither 0 (DATAGRAM) nor"),
    (PROFILE.format("own", 1, 1), 6, "protocols.connect-tcp.profile[0].final_data", "another capsule type than"),
    (PROFILE.format("Connect-TCP-12", 1, 2), 4, "protocols.connect-tcp.profile[0].token", "is built in"),
    (
        PROFILE.format("own", 1, 2) + PROFILE.format("OWN", 3, 4).removeprefix(LISTENER),
        8,
        "protocols.connect-tcp.profile[1].token",
        "that of another profile",
    ),
    (LISTENER + "[egress]\ndial_timeout = 10", 4, "egress.dial_timeout", 'expected a string, such as "10s"'),
    (LISTENER + '[egress]\ndial_timeout = "10"', 4, "egress.dial_timeout", "with a unit"),
    (LISTENER + '[egress]\ndial_timeout = "0s"', 4, "egress.dial_timeout", "at least 1ms"),
    (LISTENER + '[egress]\nnameservers = ["dns"]', 4, "egress.nameservers[0]", "a name server"),
    (LISTENER + '[egress]\nsource_addresses = ["fe80::1%1"]', 4, "egress.source_addresses[0]", "an IP address"),
    (LISTENER + '[policy]\nallow_networks = ["10.0.0.1/8"]', 4, "policy.allow_networks[0]", 'mean "10.0.0.0/8"?'),
    (LISTENER + '[policy]\ndeny_networks = "::/0"', 4, "policy.deny_networks", "expected a list"),
    (LISTENER + "[policy]\ndeny_ports = [0]", 4, "policy.deny_ports[0]", "from 1 to 65535"),
    (LISTENER + '[policy]\nhook = "rules.decide"', 4, "policy.hook", "package.module:function"),
    (LISTENER + '[[policy.rules]]\nports = ["1"]', 3, "policy.rules[0].action", "is required"),
    (LISTENER + '[[policy.rules]]\naction = "drop"', 4, "policy.rules[0].action", "expected 'allow' or 'deny'"),
    (LISTENER + '[[policy.rules]]\naction = "deny"\nports = ["9-1"]', 5, "policy.rules[0].ports[0]", "8000-8999"),
    (
        LISTENER + '[[policy.rules]]\naction = "deny"\nhosts = ["http://a"]',
        5,
        "policy.rules[0].hosts[0]",
        "a host name",
    ),
    (LISTENER + '[[policy.rules]]\naction = "deny"\nhots = ["a"]', 5, "policy.rules[0].hots", "did you mean hosts?"),
    (LISTENER + '[[policy.rules]]\naction = "deny"\nprotocols = ["ftp"]', 5, "policy.rules[0].protocols", "'ftp'"),
    (LISTENER + '[quic]\ncongestion_control = "reno"', 4, "quic.congestion_control", "'cubic' or 'bbr'"),
    (LISTENER + "[limits]\nmax_connections = 0", 4, "limits.max_connections", "expected 1 or more"),
    (LISTENER + '[limits]\nbuffer_per_tunnel = "1 mb"', 4, "limits.buffer_per_tunnel", "with a unit"),
    (LISTENER + f'[limits]\nbuffer_per_tunnel = "{"9" * 400}MiB"', 4, "limits.buffer_per_tunnel", "a smaller size"),
    (LISTENER + f'[limits]\nmemory = "{"9" * 400}B"', 4, "limits.memory", "a smaller size"),
    (LISTENER + f'[limits]\nidle_timeout = "{"9" * 400}s"', 4, "limits.idle_timeout", "at most ten years"),
    (LISTENER + f"[limits]\nidle_timeout = 0x{'f' * 5000}", 4, "limits.idle_timeout", "a string"),
    (
        LISTENER + f'[[policy.rules]]\naction = "deny"\nports = [0x{"f" * 5000}]',
        5,
        "policy.rules[0].ports[0]",
        "a port",
    ),
    (LISTENER + '[limits]\nbuffer_per_tunnel = "1B"', 4, "limits.buffer_per_tunnel", "at least"),
    (
        LISTENER + "[protocols.connect-tcp]\nbind = true",
        4,
        "protocols.connect-tcp.bind",
        "connect-tcp has no bind",
    ),
    (
        LISTENER + '[protocols.connect-udp]\npublic_addresses = ["203.0.113.7"]',
        4,
        "protocols.connect-udp.public_addresses",
        "needs bind = true",
    ),
    (
        LISTENER + '[protocols.connect-udp]\nbind = true\npublic_addresses = ["203.0.113.7", "::2", "203.0.113.8"]',
        5,
        "protocols.connect-udp.public_addresses[2]",
        "one address of each family",
    ),
    (
        LISTENER + "[protocols.connect-tcp]\necn_dscp = true",
        4,
        "protocols.connect-tcp.ecn_dscp",
        "connect-tcp has no ecn_dscp",
    ),
    (
        LISTENER + "[protocols.connect-udp]\necn_dscp_capsules = {assign = 0x3b, ack = 0x3c}",
        4,
        "protocols.connect-udp.ecn_dscp_capsules",
        "needs ecn_dscp = true",
    ),
    (
        LISTENER + "[protocols.connect-udp]\necn_dscp = true\necn_dscp_capsules = {assign = 0x3b, ack = 0x3b}",
        5,
        "protocols.connect-udp.ecn_dscp_capsules.ack",
        "another capsule type",
    ),
    (
        LISTENER + "[protocols.connect-udp]\necn_dscp = true\necn_dscp_capsules = {assign = 0x17, ack = 0x3b}",
        5,
        "protocols.connect-udp.ecn_dscp_capsules.assign",
        "nor reserved",
    ),
    (
        LISTENER + "[protocols.connect-udp]\necn_dscp = true\necn_dscp_capsules = {assign = 0x3b}",
        5,
        "protocols.connect-udp.ecn_dscp_capsules.ack",
        "is required",
    ),
    (
        LISTENER + '[protocols.connect-udp]\nprofiles = ["connect-udp"]',
        4,
        "protocols.connect-udp.profiles",
        "connect-udp has no profiles",
    ),
    (LISTENER + '[limits]\nidle_timeout_datagram = "119s"', 4, "limits.idle_timeout_datagram", "at least 2m"),
    (LISTENER + '[admin]\naddress = "here"', 4, "admin.address", "an IP address and a port"),
    (LISTENER + '[log]\nlevel = "loud"', 4, "log.level", "'warning'"),
    (LISTENER + '[log]\naccess = "none/access.log"', 4, "log.access", "a directory that exists"),
    (LISTENER + '[log]\naccess = "~nosuchuser/x"', 4, "log.access", "~nosuchuser/x: no such user"),
    (LISTENER + '[log]\naccess = "a\\u0000b"', 4, "log.access", "without NUL"),
    (f"workers = {'9' * 30}\n" + LISTENER, 1, "workers", "expected 1024 or less"),
    (LISTENER + f"[limits]\nmax_connections = -{'9' * 40}", 4, "limits.max_connections", "expected 1 or more"),
    ("# nested\nx = " + "[" * 200 + "]" * 200 + "\n" + LISTENER, 2, "x", "unknown key"),
    (LISTENER + "limits = 3", 3, "listeners[0].limits", "unknown key"),
    ("auth = 3\n" + LISTENER, 1, "auth", "expected a table"),
]


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"), FAULTS, ids=[f"{key}-{line}" for _, line, key, _ in FAULTS]
)
def test_a_fault_names_its_line_its_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str, expected: str
) -> None:
    (error,) = errors_of(tmp_path, text)
    assert error.startswith(f"relay.toml:{line}: {key}: ")
    assert expected in error


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("/{target_host}", "target_port"),
        ("/{+target_host}/{target_port}", "at byte 1"),
        ("/{target_host}/{target_port", "at byte"),
        ("/t t/{target_host}/{target_port}", "at byte 2"),
        ("x/{target_host}/{target_port}", "at byte 0"),
    ],
)
def test_a_template_that_breaks_a_rule_is_refused(tmp_path: Path, template: str, expected: str) -> None:
    # = rfc9298 §2 template-reject
    (error,) = errors_of(tmp_path, LISTENER + f'[protocols.connect-tcp]\ntemplate = "{template}"')
    assert error.startswith("relay.toml:4: protocols.connect-tcp.template: expected a URI template: ")
    assert expected in error


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    whole = LISTENER + '[egress]\ndial_timeout = "x"\n[policy]\nhok = ""\n[limits]\nmemory = 1\n[lgo]\n'
    errors = errors_of(tmp_path, whole)
    assert [re.match(r"relay\.toml:(\d+): ([a-z._]+):", error).groups() for error in errors] == [  # type: ignore[union-attr]
        ("4", "egress.dial_timeout"),
        ("6", "policy.hok"),
        ("8", "limits.memory"),
        ("9", "lgo"),
    ]


def test_broken_toml_names_its_line(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "workers = 1\nlisteners = = 2\n")
    assert error.startswith("relay.toml:2: expected TOML: ")
    (error,) = errors_of(tmp_path, "workers = 1\nx = [\n")
    assert error.startswith("relay.toml:2: expected TOML: ")


def test_toml_that_python_gives_up_on_names_its_line(tmp_path: Path) -> None:
    for depth in (3000, 100_000):
        (error,) = errors_of(tmp_path, LISTENER + f"x = {'[' * depth}{']' * depth}\n")
        assert error == "relay.toml:3: expected TOML: brackets nested too deeply"
    (error,) = errors_of(tmp_path, LISTENER + f"workers = {'9' * 5000}\n")
    assert error == "relay.toml:3: expected TOML: an integer of too many digits"
    (error,) = errors_of(tmp_path, "a." * 500 + "a = 1\n" + LISTENER)
    assert error.startswith("relay.toml:1: a: unknown key")


def test_an_integer_out_of_range_costs_no_other_key_its_line(tmp_path: Path) -> None:
    errors = errors_of(
        tmp_path,
        f"{LISTENER}[limits]\nmax_connections = 0x{'f' * 40}\nmax_tunnels_per_principal = +{'9' * 20}\nmemory = 1\n",
    )
    assert [":".join(error.split(":")[:3]) for error in errors] == [
        "relay.toml:4: limits.max_connections",
        "relay.toml:5: limits.max_tunnels_per_principal",
        "relay.toml:6: limits.memory",
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text("workers = 3\n" + LISTENER, encoding="utf-8-sig")
    assert Config.load(path, {}).workers == 3


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    with pytest.raises(ConfigError, match=r"relay\.toml: cannot be read: No such file"):
        Config.load(path, {})
    path.write_bytes(b"workers = 1\n# \xff\n")
    with pytest.raises(ConfigError, match=r"relay\.toml:2: expected text in UTF-8"):
        Config.load(path, {})


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    write_pair(tmp_path, "two")
    text = LISTENER + 'certificate = "one.pem"\nprivate_key = "{}"'
    (error,) = errors_of(tmp_path, text.format("two.key"))
    assert error.startswith("relay.toml:4: listeners[0].private_key: ")
    assert "two.key does not belong to one.pem" in error
    (error,) = errors_of(tmp_path, text.format("relay.toml"))
    assert error.startswith("relay.toml:4: listeners[0].private_key: relay.toml: ")
    assert load(tmp_path, text.format("one.key")).listeners[0].versions == ["h1", "h2", "h3"]


def test_each_file_of_tls_is_named_at_its_own_line(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "bad.key").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    text = LISTENER + 'certificate = "{}.pem"\nprivate_key = "{}.key"\nclient_ca = "{}.pem"'
    places = [
        "relay.toml:3: listeners[0].certificate: bad.pem",
        "relay.toml:4: listeners[0].private_key: bad.key",
        "relay.toml:5: listeners[0].client_ca: bad.pem",
    ]
    for number, names in enumerate([("bad", "one", "one"), ("one", "bad", "one"), ("one", "one", "bad")]):
        (error,) = errors_of(tmp_path, text.format(*names))
        assert error.startswith(places[number] + ": ")
    errors = errors_of(tmp_path, text.format("bad", "bad", "bad"))
    assert [":".join(error.split(":")[:4]) for error in errors] == places
    load(tmp_path, text.format("one", "one", "one"))


def test_a_key_that_is_missing_is_missed_at_the_certificate(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    (error,) = errors_of(tmp_path, LISTENER + 'certificate = "one.pem"')
    assert error.startswith("relay.toml:3: listeners[0].certificate: needs private_key beside it")


def test_files_that_would_never_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    errors = errors_of(
        tmp_path, LISTENER + 'certificate = "pipe"\n[auth]\nusers_file = "pipe"\ntokens_file = "/dev/zero"\n'
    )
    assert [error.partition(": expected")[0] for error in errors] == [
        "relay.toml:3: listeners[0].certificate",
        "relay.toml:5: auth.users_file",
        "relay.toml:6: auth.tokens_file",
    ]
    assert all(error.endswith(": not a regular file") for error in errors)


def test_client_certificates_need_roots_that_can_be_read(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    text = LISTENER + 'certificate = "one.pem"\nprivate_key = "one.key"\nclient_auth = "required"\nclient_ca = "{}"'
    (error,) = errors_of(tmp_path, text.format("one.key"))
    assert error.startswith("relay.toml:6: listeners[0].client_ca: one.key: ")
    (listener,) = json.loads(load(tmp_path, text.format("one.pem")).to_native())["listeners"]
    assert listener["client_auth_required"] is True
    assert listener["client_ca"] == str(tmp_path / "one.pem")


def test_faults_in_credential_files_name_their_lines(tmp_path: Path) -> None:
    useless = USER.replace("m=19456,t=2,p=1", "m=0,t=0,p=0")
    (tmp_path / "users").write_text(f"# people\n\nalice:{USER}\nbob:plain\nalice:{USER}\ncarol:{useless}\n")
    (tmp_path / "tokens").write_text("ci:" + "a" * 64 + "\nci2:" + "A" * 64 + "\n:" + "a" * 64 + "\n")
    errors = errors_of(tmp_path, LISTENER + '[auth]\nusers_file = "users"\ntokens_file = "tokens"')
    assert [error.partition(": expected")[0] for error in errors] == [
        "relay.toml:4: auth.users_file: users:4",
        "relay.toml:4: auth.users_file: users:5: 'alice' is there twice: remove one of the lines",
        "relay.toml:4: auth.users_file: users:6",
        "relay.toml:5: auth.tokens_file: tokens:2",
        "relay.toml:5: auth.tokens_file: tokens:3",
    ]


def test_credentials_reach_the_engine(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"alice:{USER}\n")
    (tmp_path / "tokens").write_text(f"ci:{'ab' * 32}\n")
    config = load(tmp_path, LISTENER + '[auth]\nusers_file = "users"\ntokens_file = "tokens"')
    auth = json.loads(config.to_native())["auth"]
    assert auth["users"] == [["alice", USER]]
    assert auth["tokens"] == [["ci", "ab" * 32]]
    assert config.warnings() == []


def test_an_open_relay_has_to_be_wanted(tmp_path: Path) -> None:
    text = '[[listeners]]\naddress = "{}"\n[auth]\nrequired = false\n{}'
    (error,) = errors_of(tmp_path, text.format("0.0.0.0:0", ""))
    assert error.startswith("relay.toml:4: auth.required: ")
    assert "open = true" in error
    load(tmp_path, text.format("0.0.0.0:0", "open = true"))
    load(tmp_path, text.format("127.0.0.2:0", ""))
    load(tmp_path, text.format("[::1]:0", ""))


def test_what_is_accepted_but_not_served_is_said(tmp_path: Path) -> None:
    warnings = load(
        tmp_path,
        LISTENER + "[auth]\nrequired = false\n" + '[admin]\naddress = "127.0.0.1:9090"',
    ).warnings()
    assert [line.replace(f"{tmp_path}/", "") for line in warnings] == [
        "relay.toml:6: admin.address: this version does not serve the admin endpoint yet",
    ]


def test_nobody_could_get_in(tmp_path: Path) -> None:
    (warning,) = load(tmp_path, LISTENER).warnings()
    assert "nobody has credentials" in warning


def test_units(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        LISTENER
        + '[limits]\nidle_timeout = "1h30m"\nheader_timeout = "250ms"\ndrain_timeout = "0"\n'
        + 'buffer_per_tunnel = "64kB"\nmemory = "1.5GiB"',
    )
    limits = json.loads(config.to_native())["limits"]
    assert limits["idle_timeout"] == 5400.0
    assert limits["header_timeout"] == 0.25
    assert limits["drain_timeout"] == 0.0
    assert limits["buffer_per_tunnel"] == 64_000
    assert limits["memory"] == 3 << 29


def test_rules_reach_the_engine(tmp_path: Path) -> None:
    text = (
        LISTENER
        + '[egress]\nnameservers = ["192.0.2.53", "[2001:db8::53]:5353", "2001:db8::1"]\n'
        + '[[policy.rules]]\naction = "allow"'
        + '\nprincipals = ["alice"]\nhosts = ["*.example.com"]\nnetworks = ["10.1.0.0/16", "::1"]'
        + '\nports = ["443", "1-2", 7]'
        + '\nprotocols = ["connect-tcp"]'
    )
    native = json.loads(load(tmp_path, text).to_native())
    assert native["egress"]["nameservers"] == ["192.0.2.53:53", "[2001:db8::53]:5353", "[2001:db8::1]:53"]
    assert native["policy"]["rules"] == [
        {
            "allow": True,
            "principals": ["alice"],
            "hosts": ["*.example.com"],
            "networks": ["10.1.0.0/16", "::1/128"],
            "ports": [[443, 443], [1, 2], [7, 7]],
            "protocols": ["connect-tcp"],
        }
    ]


def test_protocols_can_be_turned_off_and_get_profiles(tmp_path: Path) -> None:
    names = ("connect", "connect-tcp", "connect-udp")
    off = load(tmp_path, LISTENER + "".join(f"[protocols.{name}]\nenabled = false\n" for name in names))
    assert json.loads(off.to_native())["protocols"] == {"connect": False, "templated": []}
    more = load(
        tmp_path,
        LISTENER
        + '[protocols.connect-tcp]\nprofiles = ["connect-tcp-07"]\n'
        + '[[protocols.connect-tcp.profile]]\ntoken = "connect-tcp"\ndata = 0x21\nfinal_data = 0x22',
    )
    tcp, _ = json.loads(more.to_native())["protocols"]["templated"]
    assert tcp["profiles"][0]["token"] == "connect-tcp-07"
    assert tcp["profiles"][1] == {"token": "connect-tcp", "data": 0x21, "final_data": 0x22}


def test_ecn_and_dscp(tmp_path: Path) -> None:
    def native(table: str) -> object:
        config = load(tmp_path, LISTENER + "[protocols.connect-udp]\n" + table)
        return json.loads(config.to_native())["protocols"]["templated"][-1]["ecn_dscp"]

    assert native("") is None
    assert native("ecn_dscp = true") == {"capsules": None}
    capsules = {"assign": 0x3B, "ack": 0x3C}
    assert native("ecn_dscp = true\necn_dscp_capsules = {assign = 0x3b, ack = 0x3c}") == {"capsules": capsules}


def test_the_effective_configuration_is_a_configuration(tmp_path: Path) -> None:
    write_pair(tmp_path, "one")
    (tmp_path / "tokens").write_text(f"ci:{'ab' * 32}\n")
    first = load(
        tmp_path,
        LISTENER
        + 'certificate = "one.pem"\nprivate_key = "one.key"\nclient_ca = "one.pem"\n[auth]\ntokens_file = "tokens"\n'
        + '[[policy.rules]]\naction = "deny"\nports = [25]\n'
        + '[[protocols.connect-tcp.profile]]\ntoken = "connect-tcp"\ndata = 0x21\nfinal_data = 0x22\n'
        + "[protocols.connect-udp]\necn_dscp = true\necn_dscp_capsules = {assign = 0x3b, ack = 0x3c}\n"
        + '[log]\naccess = ""',
    )
    path = tmp_path / "effective.toml"
    path.write_text(first.effective())
    second = Config.load(path, {})
    assert second.effective() == first.effective()
    assert second.to_native() == first.to_native()
    assert "ab" * 32 not in first.effective()


def test_in_code(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, "one")
    config = Config(
        listeners=[Listener(address="127.0.0.1:0", certificate=certificate, private_key=key)],
        auth=Auth(required=False),
        policy=Policy(rules=[Rule(action="allow", networks=["127.0.0.0/8"])]),
    )
    assert json.loads(config.to_native())["listeners"][0]["certificate"] == str(certificate)
    tree: dict[str, Any] = {"listeners": [{"address": "x"}], "limits": {"max_connections": -1}}
    for make in (lambda: Config.from_dict(tree), lambda: Config(**tree)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert [line.partition(": ")[0] for line in caught.value.errors] == [
            "listeners[0].address",
            "limits.max_connections",
        ]
    assert config.reread().to_native() == config.to_native()


def test_a_section_in_code_raises_every_fault_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        Listener(address="x", client_auth="required")
    assert [line.partition(": ")[0] for line in caught.value.errors] == ["address", "client_auth"]
    with pytest.raises(ConfigError, match=r"^rules\[0\]\.action: is required$"):
        Policy(rules=[{"hosts": ["a.example"]}])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"^memory: "):
        Limits(memory="lots")
    with pytest.raises(ConfigError, match=r"^final_data: "):
        Profile(token="own", data=1, final_data=1)


def test_tokens_in_code_are_unlike_each_other() -> None:
    profiles = [Profile(token="own", data=1, final_data=2), Profile(token="Own", data=3, final_data=4)]
    with pytest.raises(ConfigError, match=r"^protocols\.connect-tcp\.profile\[1\]\.token: expected another token"):
        Config(listeners=[Listener(address="127.0.0.1:0")], protocols={"connect-tcp": Protocol(profile=profiles)})


def test_what_is_no_configuration_at_all() -> None:
    for wrong in (None, [1], "workers = 1"):
        with pytest.raises(ConfigError, match=r"^expected the tables of a configuration, not "):
            Config.from_dict(wrong)  # type: ignore[arg-type]


def test_a_file_is_read_anew_as_it_was_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, "one")
    path = tmp_path / "relay.toml"
    path.write_text(LISTENER + 'certificate = "one.pem"\nprivate_key = "one.key"\n')
    monkeypatch.chdir(tmp_path)
    environ = {"RELAY_LIMITS__DRAIN_TIMEOUT": "7s"}
    config = Config.load("relay.toml", environ)
    environ.clear()
    monkeypatch.chdir("/")
    for _ in range(2):
        config = config.reread()
        assert config.limits.drain_timeout == "7s"
        assert config.listeners[0].certificate == str(tmp_path / "one.pem")
    path.write_text("worker = 1\n" + LISTENER)
    with pytest.raises(ConfigError, match=r"^relay\.toml:1: worker: unknown key"):
        config.reread()
    path.unlink()
    with pytest.raises(ConfigError, match=r"^relay\.toml: cannot be read: No such file"):
        config.reread()


def test_files_named_in_code_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    listener = Listener(address="127.0.0.1:0", certificate="one.pem", private_key="one.key")
    config = Config(listeners=[listener])
    monkeypatch.chdir("/")
    assert config.reread().to_native() == config.to_native()
