"""Where each value came from, so that a fault names its line."""

from collections.abc import Mapping
from dataclasses import dataclass, field


def dotted(path: tuple[str | int, ...]) -> str:
    """``("listeners", 0, "address")`` as ``listeners[0].address``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True)
class Origins:
    """The file's name, the line of each of its keys, and the variables that stand above it."""

    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def place(self, path: tuple[str | int, ...]) -> str:
        """``relay.toml:LINE: key`` of a path: its own line, or that of the nearest table around it."""
        key = dotted(path)
        for length in range(len(path), 0, -1):
            name = dotted(path[:length])
            if name in self.variables:
                return f"{self.variables[name]}: {key}"
            if self.file and name in self.lines:
                return f"{self.file}:{self.lines[name]}: {key}"
        return f"{self.file}:1: {key}" if self.file else key
