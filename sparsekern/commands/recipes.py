"""`sparsekern recipes`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sparsekern.recipes import recipe_module, recipe_names
from sparsekern.training.config import TrainConfig


def recipes(arguments: Sequence[str]) -> int:
    """Lists the recipes with a line each, or shows one. Returns the exit code, 1 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="sparsekern recipes", description="Published configurations: sparsekern train --recipe NAME."
    )
    parser.add_argument("name", nargs="?", help="recipe to show: what was published, and the options it sets")
    name = parser.parse_args(arguments).name
    if name is None:
        names = recipe_names()
        width = max(map(len, names))
        for each in names:
            print(f"{each:{width}}  {description(each).splitlines()[0]}")
        return 0
    try:
        config: TrainConfig = recipe_module(name).RECIPE
    except ValueError as error:
        print(f"sparsekern recipes: {error}", file=sys.stderr)
        return 1
    print(description(name))
    changed = config.differences(TrainConfig())
    print("\n" + "\n".join(f"{option} = {value}" for option, (value, _) in changed.items()))
    return 0


def description(name: str) -> str:
    return (recipe_module(name).__doc__ or "").strip()
