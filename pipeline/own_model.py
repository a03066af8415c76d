"""A network of the user's own: where its module is, what it says, and how it is imported.

`train.model = "networks:build"` names a module and a function in it. The module is looked for in
the current directory, then where Python looks; it is not imported to be found, for it imports
Keras. Its source goes into the cache key, so that a change of it trains anew.

Plain Python: the command line finds the module before anything runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError, did_you_mean

_PATH: Final = "PYTHONPATH"


def source(name: str) -> Path:
    """Returns the file that holds the module of `module:function`.

    Raises:
      ConfigError: there is no such module, or it isn't one file of Python.
    """
    module = _module(name)
    origin = _specs(module)[-1].origin
    if origin is None or not origin.endswith(".py"):
        raise ConfigError(
            f"train.model {name!r}: the module {module} is {origin or 'a folder'}; expected one "
            "file of Python. Name the module that holds the function."
        )
    return Path(origin)


def digest(name: str) -> str:
    """Returns 16 hexadecimal digits for the module's source.

    Raises:
      ConfigError: as `source`.
    """
    return hashlib.sha256(source(name).read_bytes()).hexdigest()[:16]


def load(name: str) -> Callable[..., Any]:
    """Imports the module of `module:function` and returns the function.

    Raises:
      ConfigError: there is no such module or function, or importing it failed.
    """
    module, function = _module(name), name.partition(":")[2]
    path = source(name)
    for spec in _specs(module):
        _import(spec, name)
    loaded = sys.modules[module]
    found = getattr(loaded, function, None)
    if not callable(found):
        known = [key for key, value in vars(loaded).items() if callable(value) and key[0] != "_"]
        raise ConfigError(
            f"train.model {name!r}: {path} has no function {function!r}."
            f"{did_you_mean(function, known)}"
        )
    return found


def python_path(name: str) -> dict[str, str]:
    """Returns what the environment of a child that will `load` this needs; {} without a name.

    The child is started in another directory: the folder that the module was found in has to come
    first where Python looks, so that its neighbours are found too.
    """
    if not name:
        return {}
    outermost = _specs(_module(name))[0]
    locations = list(outermost.submodule_search_locations or ())
    root = Path(locations[0] if locations else str(outermost.origin)).parent
    return {_PATH: os.pathsep.join(filter(None, [str(root), os.environ.get(_PATH)]))}


def _module(name: str) -> str:
    return name.partition(":")[0]


def _specs(module: str) -> list[ModuleSpec]:
    """Returns the specs of the packages around a module, and of the module, outermost first."""
    if module in sys.builtin_module_names:  # which ones are depends on how Python was built
        return [ModuleSpec(module, None, origin="built into Python")]
    places: list[str] | None = [str(Path.cwd()), *sys.path]
    found: list[ModuleSpec] = []
    parts = module.split(".")
    for index in range(len(parts)):
        dotted = ".".join(parts[: index + 1])
        spec = PathFinder.find_spec(dotted, places)
        if spec is None:
            raise ConfigError(
                f"train.model: there is no module {dotted!r} in {Path.cwd()} or where Python "
                "looks. Start the command in the folder that the module is in, or install it; on "
                "Kubeflow, it has to be in the image."
            )
        found.append(spec)
        places = list(spec.submodule_search_locations or ())
    return found


def _import(spec: ModuleSpec, name: str) -> None:
    """Imports by the spec that was found: no directory is put where everything is looked for."""
    if spec.name in sys.modules:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if spec.loader is None:  # a folder without __init__.py
        return
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(
            f"train.model {name!r}: importing {spec.origin} failed with "
            f"{type(error).__name__}: {error}. The traceback is in the run's log."
        ) from error
