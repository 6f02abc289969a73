"""Compiles `compiled.pyx` beside itself: `python build.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext


def main() -> None:
    here = Path(__file__).resolve().parent
    os.chdir(here)
    extension = Extension("compiled", ["compiled.pyx"], extra_compile_args=["-O3"])
    command = build_ext(Distribution({"ext_modules": cythonize([extension], quiet=True)}))
    command.inplace = True
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    sys.exit(main())
