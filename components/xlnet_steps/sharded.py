"""The steps that preprocess an input in shards, as tasks of their own.

Step preprocess has the same name as in :mod:`xlnet_steps.steps` and writes the same dataset.
"""

from typing import NamedTuple

from kfp import dsl

from xlnet_steps.steps import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def survey(recipe: str, snapshot: str, code: str, shards: str, survey: dsl.Output[dsl.Artifact]) -> NamedTuple(  # type: ignore[valid-type]
    "Survey", [("keys", list)]
):
    """Read all rows once, and divide them into shards: ``xlnet.data.dividing``."""
    from xlnet.data.dividing import survey as step
    from xlnet_steps.display import stated

    facts, keys = step(recipe, snapshot, int(shards), survey.path)
    survey.metadata.update(stated(facts))
    return (keys,)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tokenise(
    recipe: str, shard: str, code: str, survey: dsl.Input[dsl.Artifact], tokens: dsl.Output[dsl.Artifact]
) -> None:
    """Tokenise the shard with this key: ``xlnet.data.shard_tokens``."""
    from xlnet.data.shard_tokens import tokenise as step
    from xlnet_steps.display import stated

    tokens.metadata.update(stated(step(recipe, shard, survey.path, tokens.path)))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    recipe: str,
    snapshot: str,
    code: str,
    survey: dsl.Input[dsl.Artifact],
    tokens: dsl.Input[list[dsl.Artifact]],
    dataset: dsl.Output[dsl.Dataset],
) -> None:
    """Join the shards into one dataset: ``xlnet.data.preprocess``."""
    from xlnet.data.preprocess import join as step
    from xlnet_steps.display import stated

    dataset.metadata.update(stated(step(recipe, survey.path, [one.path for one in tokens], dataset.path)))
