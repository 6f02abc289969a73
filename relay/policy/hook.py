"""Finding the hook that a configuration names."""

import importlib
import sys
from pathlib import Path
from typing import cast

from relay.policy.decision import Decide


def load_hook(name: str) -> Decide:
    """Imports ``package.module:function``, from the working directory too. ValueError tells what was expected."""
    module_name, _, attribute = name.partition(":")
    _search_here()
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"expected a module that can be imported: {error}") from None
    except (Exception, SystemExit) as error:
        # A program that is taken for a module may end itself: that must not end the relay.
        raise ValueError(f"{module_name} fails to import: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"expected a function: {module_name} has no {attribute}") from None
        except Exception as error:
            raise ValueError(f"{module_name} has no {attribute}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"expected a function: {name} is a {type(found).__name__}")
    return cast(Decide, found)


def _search_here() -> None:
    try:
        here = str(Path.cwd())
    except OSError:
        # The working directory was removed: the module may be elsewhere.
        return
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
