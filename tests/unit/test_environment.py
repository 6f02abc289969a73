"""Overrides from the environment."""

import json
from pathlib import Path

import pytest

from relay import Config, ConfigError

TEXT = '[[listeners]]\naddress = "127.0.0.1:0"\n[egress]\ndial_timeout = "5s"\n'


def load(folder: Path, environ: dict[str, str]) -> Config:
    path = folder / "relay.toml"
    path.write_text(TEXT)
    return Config.load(path, environ)


def test_overrides_stand_above_the_file(tmp_path: Path) -> None:
    native = json.loads(
        load(
            tmp_path,
            {
                "RELAY_EGRESS__DIAL_TIMEOUT": "7s",
                "RELAY_EGRESS__NAMESERVERS": '["192.0.2.53"]',
                "RELAY_AUTH__REQUIRED": "false",
                "RELAY_LIMITS__MAX_CONNECTIONS": "12",
                "RELAY_POLICY__DENY_PORTS": "[25, 465]",
                "RELAY_POLICY__RULES": '[{"action": "deny", "hosts": ["a.example"]}]',
                "RELAY_PROTOCOLS__CONNECT_TCP__TEMPLATE": "/t/{target_host}/{target_port}",
                "RELAY_PROTOCOLS__CONNECT__ENABLED": "false",
            },
        ).to_native()
    )
    assert native["egress"]["dial_timeout"] == 7.0
    assert native["egress"]["nameservers"] == ["192.0.2.53:53"]
    assert native["auth"]["required"] is False
    assert native["limits"]["max_connections"] == 12
    assert native["policy"]["deny_ports"] == [25, 465]
    assert native["policy"]["rules"][0]["hosts"] == ["a.example"]
    assert native["protocols"]["templated"][0]["template"] == "/t/{target_host}/{target_port}"
    assert native["protocols"]["connect"] is False


@pytest.mark.parametrize(
    "variable", ["RELAY_PORT", "RELAY_SERVICE_HOST", "RELAY_PORT_8443_TCP__ADDR", "RELAY_TOKEN", "RELAY_limits__memory"]
)
def test_variables_of_others_are_left_alone(tmp_path: Path, variable: str) -> None:
    load(tmp_path, {variable: "tcp://10.0.0.1:8443"})


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "RELAY_EGRESS__DIAL_TIMEOT",
            "1s",
            "egress.dial_timeot: unknown key; did you mean RELAY_EGRESS__DIAL_TIMEOUT?",
        ),
        ("RELAY_EGRESS__DIAL_TIMEOUT", "1", "egress.dial_timeout: expected a duration with a unit"),
        ("RELAY_EGRESS__NAMESERVERS", "192.0.2.53", "egress.nameservers: expected a list as JSON"),
        ("RELAY_EGRESS__NAMESERVERS", '["a"]', "egress.nameservers[0]: expected the IP address of a name server"),
        ("RELAY_POLICY__DENY_PORTS", "[" * 100_000, "policy.deny_ports: expected a list as JSON"),
        ("RELAY_LIMITS__MAX_CONNECTIONS", "9" * 5000, "limits.max_connections: expected an integer"),
        ("RELAY_LIMITS__MAX_CONNECTIONS", "x", "limits.max_connections: expected an integer"),
        ("RELAY_AUTH__REQUIRED", "yes", "auth.required: expected true or false"),
        ("RELAY_PROTOCOLS__FTP__ENABLED", "true", "expected RELAY_PROTOCOLS__<PROTOCOL>__<KEY>"),
    ],
)
def test_faults_name_the_variable(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {variable: value})
    (error,) = caught.value.errors
    assert error.startswith(f"{variable}: {expected}")


def test_a_fault_inside_a_value_is_the_variables(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(TEXT + '[policy]\ndeny_ports = [\n  25,\n  26,\n]\n[[policy.rules]]\naction = "allow"\n')
    with pytest.raises(ConfigError) as caught:
        Config.load(path, {"RELAY_POLICY__DENY_PORTS": "[25, 0]", "RELAY_POLICY__RULES": '[{"action": "drop"}]'})
    assert sorted(error.rpartition(": ")[0] for error in caught.value.errors) == [
        "RELAY_POLICY__DENY_PORTS: policy.deny_ports[1]",
        "RELAY_POLICY__RULES: policy.rules[0].action",
    ]
