"""``RELAY_<SECTION>__<KEY>``: overrides from the environment, lists as JSON."""

import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from relay.config import models

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "auth": models.Auth,
    "egress": models.Egress,
    "policy": models.Policy,
    "limits": models.Limits,
    "admin": models.Admin,
    "log": models.Log,
}


def overrides(environ: Mapping[str, str]) -> tuple[list[tuple[tuple[str, ...], Any, str]], list[str]]:
    """(path, value, variable) of every override, and the faults among them.

    A variable of another shape, or of a section that does not exist, is somebody else's: Kubernetes injects some that
    begin like ours.
    """
    found: list[tuple[tuple[str, ...], Any, str]] = []
    faults: list[str] = []
    protocols = {name.replace("-", "_"): name for name in models.known_protocols()}
    for variable, text in sorted(environ.items()):
        section, separator, key = variable.removeprefix("RELAY_").lower().partition("__")
        if not variable.startswith("RELAY_") or not separator or variable != variable.upper():
            continue
        path: tuple[str, ...]
        if section == "protocols":
            name, _, key = key.partition("__")
            if name not in protocols or not key:
                known = ", ".join(protocol.upper() for protocol in protocols)
                faults.append(f"{variable}: expected RELAY_PROTOCOLS__<PROTOCOL>__<KEY>; protocols are {known}")
                continue
            path, model = ("protocols", protocols[name], key), typing.cast("type[BaseModel]", models.Protocol)
        elif section in _SECTIONS:
            path, model = (section, key), _SECTIONS[section]
        else:
            continue
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, 1, 0)[0]
            wanted = variable.upper().removesuffix(key.upper()) + near.upper()
            faults.append(f"{variable}: {'.'.join(path)}: unknown key; did you mean {wanted}?")
            continue
        try:
            found.append((path, _value(model.model_fields[key].annotation, text), variable))
        except ValueError as error:
            faults.append(f"{variable}: {'.'.join(path)}: {error}")
    return found, faults


def _value(annotation: Any, text: str) -> Any:
    kinds = {annotation, typing.get_origin(annotation)}
    for member in typing.get_args(annotation):
        kinds |= {member, typing.get_origin(member)}
    if list in kinds:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise ValueError('expected a list as JSON, such as ["10.0.0.0/8"]')
        return value
    if bool in kinds:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    if int in kinds:
        try:
            return int(text)
        except ValueError:
            raise ValueError("expected an integer") from None
    return text
