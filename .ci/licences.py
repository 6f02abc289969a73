"""Every crate that is linked and every Python package that is required must be under a licence on the list below."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CDLA-Permissive-2.0",
        "ISC",
        "MIT",
        "MIT-0",
        "PSF-2.0",
        "Unicode-3.0",
        "Unlicense",
        "Zlib",
    }
)

# What old classifiers mean, for packages that carry no SPDX expression.
CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}


def allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences only ("/" is the old spelling of OR)."""
    tokens = re.findall(r"[()]|[^\s()/]+", expression.replace("/", " OR "))

    def alternatives(at: int) -> tuple[bool, int]:
        value, at = conjunction(at)
        while at < len(tokens) and tokens[at] == "OR":
            right, at = conjunction(at + 1)
            value = value or right
        return value, at

    def conjunction(at: int) -> tuple[bool, int]:
        value, at = term(at)
        while at < len(tokens) and tokens[at] == "AND":
            right, at = term(at + 1)
            value = value and right
        return value, at

    def term(at: int) -> tuple[bool, int]:
        if tokens[at] == "(":
            value, at = alternatives(at + 1)
            return value, at + 1
        value, at = tokens[at] in ALLOWED, at + 1
        if at < len(tokens) and tokens[at] == "WITH":  # an exception only adds permissions
            at += 2
        return value, at

    return bool(tokens) and alternatives(0)[0]


def crates() -> dict[str, str]:
    """Name and version → licence expression, for all that the lock file can link on this kind of machine."""
    platform = ["--filter-platform", "x86_64-unknown-linux-gnu"]
    command = ["cargo", "metadata", "--locked", "--format-version", "1", *platform]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    linked = {node["id"] for node in metadata["resolve"]["nodes"]}
    return {f"{p['name']} {p['version']}": p.get("license") or "" for p in metadata["packages"] if p["id"] in linked}


def packages() -> dict[str, str]:
    """Name and version → licence expression, for the Python packages the relay needs when it runs."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    found: dict[str, str] = {}
    for name, version in pins:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # pinned for another platform
        classifiers = metadata.get_all("Classifier") or []
        stated = metadata.get_all("License-Expression") or metadata.get_all("License") or [""]
        known = " OR ".join(CLASSIFIERS[classifier] for classifier in classifiers if classifier in CLASSIFIERS)
        found[f"{name} {version}"] = known or stated[0]
    return found


def main() -> int:
    everything = {**crates(), **packages()}
    refused = {name: expression for name, expression in everything.items() if not allowed(expression)}
    for name, expression in sorted(refused.items()):
        print(f"licence not allowed: {name}: {expression or 'none stated'}", file=sys.stderr)
    print(f"licences: {len(everything)} dependencies, {len(refused)} refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
