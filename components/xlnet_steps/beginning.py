"""The first step: identifies the input, and refuses a registry that the last step could not use."""

from xlnet import recipe as recipes
from xlnet.data.snapshot import take
from xlnet.registry.own_disk import refuse_own_disk


def snapshot(recipe_json: str) -> tuple[str, ...]:
    """Return the digests of input and pretrained weights, and the part of the recipe that each later step uses.

    Raises:
        UserError: the input does not exist, or the registry would be lost with this step's pod.
    """
    refuse_own_disk(recipes.from_json(recipe_json).registry.uri)
    found = take(recipe_json)
    print(found.summary())
    return (found.digest, found.pretrained, *recipes.parts(recipe_json))
