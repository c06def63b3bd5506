"""What the first step does: it looks at the input, and refuses what the last step could not keep."""

from xlnet import recipe as recipes
from xlnet.data.snapshot import take
from xlnet.registry.own_disk import refuse_own_disk


def snapshot(recipe: str) -> tuple[str, ...]:
    """The digests of input and pretrained weights, and the part of the recipe that each later step depends on.

    Raises:
        UserError: the input is not there; a model would be registered where it is lost with this step's pod.
    """
    refuse_own_disk(recipes.from_json(recipe).registry.uri)
    found = take(recipe)
    print(found.summary())
    return (found.digest, found.pretrained, *recipes.parts(recipe))
