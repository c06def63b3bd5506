"""Compile, run, watch and trace the xlnet pipeline.

For notebooks and scripts: ``from xlnet_pipeline import Recipe, run, load, runs, compare``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlnet.recipe import Recipe
    from xlnet_pipeline.notebook.functions import compare, load, run, runs

__all__ = ["Recipe", "compare", "load", "run", "runs"]


def __getattr__(name: str) -> Any:
    """Import the Python API on first use, because the command line does not need it and starts faster without it."""
    if name not in __all__:
        raise AttributeError(f"module 'xlnet_pipeline' has no attribute '{name}'")
    if name == "Recipe":
        from xlnet.recipe import Recipe

        return Recipe
    from xlnet_pipeline.notebook import functions

    return getattr(functions, name)
