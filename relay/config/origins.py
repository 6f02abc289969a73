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
    """The file's name, the line of each of its keys, and the variables that stand above it.

    ``line`` is named for what has no line of its own.
    """

    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    line: int = 1

    def place(self, path: tuple[str | int, ...]) -> str:
        """``relay.toml:LINE: key`` of a path: its own line, or that of the nearest table around it.

        A variable replaces the whole of a value: what the file has inside it is not in force.
        """
        key = dotted(path)
        names = [dotted(path[:length]) for length in range(len(path), 0, -1)]
        for name in names:
            if name in self.variables:
                return f"{self.variables[name]}: {key}"
        if not self.file:
            return key
        line = next((self.lines[name] for name in names if name in self.lines), self.line)
        return f"{self.file}:{line}: {key}"
