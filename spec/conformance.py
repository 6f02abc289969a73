"""Checks that every requirement in `spec/requirements` is obeyed somewhere and shown by a test.

A requirement is cited by a comment line, `//= rfc9297 §3.3 truncated-capsule` in Rust and
`#= rfc9297 §3.3 truncated-capsule` in Python: at the code that obeys it, and at the test that shows it.
Exit status 1: a MUST or SHOULD lacks either and gives no reason, or a citation names nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY")
KEYS = {"id", "section", "level", "rule", "left_out"}

MARK = re.compile(r"^\s*(?://|# ?)=(?P<rest>.*)$")
CITATION = re.compile(r"^ (?P<document>\S+) §(?P<section>\S+) (?P<id>\S+)$")
TEST_MODULE = re.compile(r"^(?P<indent>\s*)(?:pub(?:\([a-z]+\))? )?mod (?P<name>\w+)\s*(?P<end>[;{])")
PATH_ATTRIBUTE = re.compile(r'^\s*#\[path = "(?P<path>[^"]+)"\]$')


@dataclass
class Requirement:
    """One rule of one document, and the places that cite it."""

    document: str
    section: str
    id: str
    level: str
    rule: str
    left_out: str | None
    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.document} §{self.section} {self.id}"

    @property
    def missing(self) -> list[str]:
        """What is missing: `code`, `test`, both or nothing."""
        if self.left_out is not None or self.level == "MAY":
            return []
        return [what for what, places in (("code", self.code), ("test", self.tests)) if not places]


def load(directory: Path, faults: list[str]) -> dict[str, Requirement]:
    """Reads the requirements by name (`document §section id`)."""
    requirements: dict[str, Requirement] = {}
    for path in sorted(directory.glob("*.toml")):
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        name = document.get("document")
        if name != path.stem:
            faults.append(f"{path}: document is {name!r}, expected {path.stem!r}")
        for entry in document.get("requirement", []):
            where = f"{path}: {entry.get('id', '?')}"
            if unknown := set(entry) - KEYS:
                faults.append(f"{where}: unknown keys {sorted(unknown)}")
            if lacking := KEYS - {"left_out"} - set(entry):
                faults.append(f"{where}: lacks {sorted(lacking)}")
                continue
            if entry["level"] not in LEVELS:
                faults.append(f"{where}: level is none of {', '.join(LEVELS)}")
            requirement = Requirement(
                document=path.stem,
                section=entry["section"],
                id=entry["id"],
                level=entry["level"],
                rule=entry["rule"],
                left_out=entry.get("left_out"),
            )
            if requirement.name in requirements:
                faults.append(f"{where}: stands there twice")
            requirements[requirement.name] = requirement
    return requirements


def rust_files(root: Path) -> Iterator[tuple[Path, bool]]:
    """Every Rust file below `native`, and whether all of it is test code."""
    files = [path for path in sorted((root / "native").rglob("*.rs")) if "target" not in path.parts]
    tests = {path for path in files if "tests" in path.relative_to(root).parts[:-1]}
    for path in files:
        directory = path.parent if path.name in ("lib.rs", "main.rs", "mod.rs") else path.with_suffix("")
        lines = path.read_text(encoding="utf-8").splitlines()
        for name, index, end in test_modules(lines):
            if end != ";":
                continue
            if match := PATH_ATTRIBUTE.match(lines[index - 1]):
                tests.add(path.parent / match["path"])
            else:
                tests |= {directory / f"{name}.rs", directory / name / "mod.rs"}
    for path in files:
        yield path, path in tests


def test_modules(lines: list[str]) -> Iterator[tuple[str, int, str]]:
    """Modules under `#[cfg(test)]`: name, line index, and `;` or `{`."""
    pending = False
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped == "#[cfg(test)]":
            pending = True
        elif pending and not stripped.startswith("#["):
            pending = False
            if match := TEST_MODULE.match(line):
                yield match["name"], index, match["end"]


def test_lines(lines: list[str]) -> set[int]:
    """Line indices inside `#[cfg(test)] mod … { }`; a block ends at a brace of its own indent, as rustfmt writes it."""
    inside: set[int] = set()
    for _, start, end in test_modules(lines):
        if end == "{":
            indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
            stop = next((i for i in range(start + 1, len(lines)) if lines[i] == indent + "}"), len(lines))
            inside |= set(range(start, stop))
    return inside


def citations(root: Path, faults: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Every citation: requirement name, place, whether it stands in a test."""
    sources = [(path, test, True) for path, test in rust_files(root)]
    for directory, test in (("relay", False), ("tests", True)):
        sources += [(path, test, False) for path in sorted((root / directory).rglob("*.py"))]
    for path, all_test, rust in sources:
        lines = path.read_text(encoding="utf-8").splitlines()
        in_test = test_lines(lines) if rust and not all_test else set()
        for index, line in enumerate(lines):
            if not (mark := MARK.match(line)):
                continue
            place = f"{path.relative_to(root)}:{index + 1}"
            if match := CITATION.match(mark["rest"].rstrip()):
                name = f"{match['document']} §{match['section']} {match['id']}"
                yield name, place, all_test or index in in_test
            else:
                faults.append(f"{place}: a citation is written `= <document> §<section> <id>`")


def main() -> int:
    parser = argparse.ArgumentParser(description="Lists each requirement with the code that obeys it and its test.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to look at")
    parser.add_argument("--missing", action="store_true", help="print only what is missing")
    options = parser.parse_args()
    root: Path = options.root.resolve()

    faults: list[str] = []
    requirements = load(root / "spec" / "requirements", faults)
    if not requirements:
        faults.append(f"{root / 'spec' / 'requirements'}: there are no requirements")
    for name, place, test in citations(root, faults):
        if requirement := requirements.get(name):
            (requirement.tests if test else requirement.code).append(place)
        else:
            faults.append(f"{place}: there is no requirement `{name}`")

    document = None
    for requirement in requirements.values():
        missing = requirement.missing
        if missing:
            faults.append(f"{requirement.name} ({requirement.level}): no {' and no '.join(missing)}")
        if options.missing:
            continue
        if requirement.document != document:
            document = requirement.document
            print(f"\n{document}")
        print(f"  §{requirement.section} {requirement.id} ({requirement.level}): {requirement.rule}")
        if requirement.left_out is not None:
            print(f"      left out: {requirement.left_out}")
        for what, places in (("code", requirement.code), ("test", requirement.tests)):
            if places:
                print(f"      {what}: {', '.join(places)}")
            elif what in missing:
                print(f"      {what}: MISSING")

    strict = [r for r in requirements.values() if r.level != "MAY"]
    left_out = sum(r.left_out is not None for r in strict)
    shown = sum(r.left_out is None and not r.missing for r in strict)
    print(
        f"\n{len(strict)} requirements: {shown} obeyed and shown, {left_out} left out with a reason, "
        f"{len(strict) - shown - left_out} open"
    )
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
