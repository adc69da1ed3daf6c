"""Configurations of published experiments: a module each, with what was published in its docstring.

A recipe is a module of this package whose `RECIPE` is a `TrainConfig`; its name is the module's, with hyphens.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sparsekern.training.config import TrainConfig


def recipe_names() -> list[str]:
    """All recipes, in alphabetical order."""
    return sorted(each.name.replace("_", "-") for each in pkgutil.iter_modules(__path__))


def recipe_module(name: str) -> ModuleType:
    """Raises ValueError, listing what there is, for a name that is none."""
    if name not in (known := recipe_names()):
        raise ValueError(f"recipe {name!r} is not known; expected one of {', '.join(known)}")
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def load_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe by its name, or of a run by the path of its folder or config.json.

    A run's own folder and stopping step are left out. Raises ValueError for what is neither.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path /= "config.json"
    if not path.is_file():
        try:
            return recipe_module(name).RECIPE
        except ValueError as error:
            raise ValueError(f"{error}, or the folder or config.json of a run") from error
    try:
        config = TrainConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"recipe {name!r} cannot be read as a run's config.json: {error}") from error
    return dataclasses.replace(config, run=dataclasses.replace(config.run, output=None, stop_after=None))
