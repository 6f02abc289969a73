"""Writing TOML: just what a configuration needs."""

import json
import re
from collections.abc import Mapping
from typing import Any


def dumps(tree: Mapping[str, Any]) -> str:
    """Tables of strings, integers, booleans, lists of these, tables and lists of tables, as TOML."""
    return "\n".join(_table(tree, "")).strip("\n") + "\n"


def _table(table: Mapping[str, Any], prefix: str) -> list[str]:
    lines: list[str] = []
    deeper: list[str] = []
    for key, value in table.items():
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
        if isinstance(value, Mapping):
            deeper += ["", f"[{prefix}{name}]", *_table(value, f"{prefix}{name}.")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                deeper += ["", f"[[{prefix}{name}]]", *_table(entry, f"{prefix}{name}.")]
        else:
            lines.append(f"{name} = {_value(value)}")
    return lines + deeper


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
