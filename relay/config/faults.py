"""From pydantic's errors to lines that say where, and what was expected."""

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from relay.auth.files import CredentialsError
from relay.config.origins import Origins

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "float_type": "a number",
}

#: Larger integers are not shown: a line should stay one, and Python refuses to write out the largest.
_SHOWN = 10**18


class Beside(ValueError):
    """A fault whose place is another key of the same table."""

    def __init__(self, key: str, text: str) -> None:
        self.key = key
        super().__init__(text)


def lines(root: type[BaseModel], error: ValidationError, origins: Origins) -> list[tuple[tuple[str | int, ...], str]]:
    """(path, line) of every fault in a validation error."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Beside):
            path = (*path[:-1], cause.key)
        place = origins.place(path)
        found += [(path, f"{place}: {text}") for text in _texts(root, detail)]
    return found


def _texts(root: type[BaseModel], detail: Any) -> list[str]:
    kind, path, context = detail["type"], detail["loc"], detail.get("ctx", {})
    if kind == "value_error":
        cause = context["error"]
        return cause.errors if isinstance(cause, CredentialsError) else [str(cause)]
    if kind == "extra_forbidden":
        return [unknown(str(path[-1]), keys_at(root, path[:-1]))]
    if kind == "missing":
        return ["is required"]
    if kind == "literal_error":
        return [f"expected {context['expected']}"]
    if kind in _EXPECTED:
        return [f"expected {_EXPECTED[kind]}" + _hint(detail)]
    if kind == "too_short":
        return ["expected at least one entry"]
    if kind == "greater_than_equal":
        return [f"expected {context['ge']} or more"]
    if kind == "less_than_equal":
        return [f"expected {context['le']} or less"]
    if kind == "string_pattern_mismatch":
        return ["expected an HTTP token (RFC 9110 §5.6.2)"]
    message = detail["msg"]
    return [f"{message[:1].lower()}{message[1:]}"]


def _hint(detail: Any) -> str:
    value = detail.get("input")
    if isinstance(value, int) and abs(value) > _SHOWN:
        return ""
    if detail["type"] == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return (
            f', such as "{value}s" for a duration' if "time" in str(detail["loc"][-1]) else f": put {value} in quotes"
        )
    return ""


def unknown(key: str, known: Iterable[str]) -> str:
    """What is said about an unknown key."""
    names = list(known)
    near = difflib.get_close_matches(key, names, 1, 0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known keys: {', '.join(names)}"


def keys_at(root: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that the table at a path may have."""
    annotation: Any = root
    for part in path:
        model = _model(annotation)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        elif typing.get_origin(annotation) in (list, dict):
            annotation = typing.get_args(annotation)[-1]
    model = _model(annotation)
    return list(model.model_fields) if model is not None else []


def _model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
