"""The first step: identifies the input, and refuses a registry that the last step could not use."""

from xlnet import recipe as recipes
from xlnet.data.snapshot import take
from xlnet.errors import UserError
from xlnet.registry.own_disk import refuse_own_disk


def snapshot(recipe_json: str, pretrains: bool = False) -> tuple[str, ...]:
    """Return the digests of input and pretrained weights, and the part of the recipe that each cached step uses.

    Args:
        recipe_json: JSON of the recipe.
        pretrains: whether the pipeline was compiled with a pretrain step.

    Raises:
        UserError: the input does not exist, or the registry would be lost with this step's pod, or the pipeline was
            compiled for another kind of recipe.
    """
    recipe = recipes.from_json(recipe_json)
    if recipe.pretrains != pretrains:
        has, lacks = ("has", "names no pretraining.corpus") if pretrains else ("lacks", "names a pretraining.corpus")
        raise UserError(
            f"this pipeline {has} the step 'pretrain', and the recipe {lacks}; "
            "compile it anew: xlnet-pipeline compile --recipe RECIPE.toml -o FILE.yaml"
        )
    refuse_own_disk(recipe.registry.uri)
    found = take(recipe_json)
    print(found.summary())
    return (found.digest, found.pretrained, *recipes.parts(recipe_json))
