"""The recipe: everything that defines a run, as one immutable value with strict JSON and TOML readers.

A recipe starts from a preset (``tiny``, ``small``, ``base``, ``large``: functions that return a
complete recipe), is changed by a TOML file and by ``section.field=value`` settings, and crosses
every border as one JSON string. Times, places of execution and run ids stay out of it, so that
equal recipes over equal data are the same work.
"""

from xlnet.recipe.fields import (
    AUTO,
    AUTO_VOCABULARY,
    INPUTS,
    MOST_SHARDS,
    OWN_ROWS,
    ClassWeights,
    Column,
    DataRecipe,
    EvaluationRecipe,
    ModelRecipe,
    Paths,
    PretrainingRecipe,
    Recipe,
    RegistryRecipe,
    TrainingRecipe,
    field_names,
    from_json,
    of_artifact,
    parts,
)
from xlnet.recipe.files import load
from xlnet.recipe.presets import PRESETS, base, from_changes, large, small, tiny
