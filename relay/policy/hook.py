"""Finding the hook that a configuration names."""

import importlib
import sys
from pathlib import Path
from typing import cast

from relay.policy.decision import Decide


def load_hook(name: str) -> Decide:
    """Imports ``package.module:function``, from the working directory too. ValueError tells what was expected."""
    module_name, _, attribute = name.partition(":")
    try:
        here = str(Path.cwd())
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)
    except OSError:
        pass  # Whoever removed the working directory has no module in it.
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"expected a module that can be imported: {error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module_name} fails to import: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"expected a function: {module_name} has no {attribute}") from None
    if not callable(found):
        raise ValueError(f"expected a function: {name} is a {type(found).__name__}")
    return cast(Decide, found)
