"""Each folder of examples/ has a `run.sh` or a `run.py` that ends by itself, with exit code 0, in a copy of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUNS = sorted(EXAMPLES.glob("*/run.*"))
SECONDS = 60


def test_every_folder_has_something_to_run() -> None:
    folders = {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders == {run.parent.name for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.parent.name)
def test_example_runs(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / run.parent.name
    shutil.copytree(run.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    scripts = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    if run.suffix == ".sh":
        if "curl " in run.read_text() and not shutil.which("curl"):
            pytest.skip("curl is not installed")
        command = ["bash", "-euo", "pipefail", run.name]
    else:
        command = [sys.executable, run.name]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
