"""The presets. Each is a function that returns a complete recipe, which a run starts from and changes."""

from collections.abc import Callable, Mapping
from typing import Any

from xlnet.errors import UserError, nearest
from xlnet.recipe.checks import check_whole
from xlnet.recipe.fields import AUTO, DataRecipe, ModelRecipe, Recipe, TrainingRecipe, merge, section_table

LENGTH = 1024  # tokens of a text: the ends of long reviews help, and small networks can afford them


def tiny() -> Recipe:
    """Return the demo's recipe, which trains on a few thousand sentences in a minute on two cores."""
    return _from_scratch(ModelRecipe(dropout=AUTO, summary_dropout=AUTO))


def small() -> Recipe:
    """Return a recipe to train from scratch on tens of thousands of texts on a CPU."""
    return _from_scratch(ModelRecipe("small", "", 4, 256, 4, 64, 1024, dropout=AUTO, summary_dropout=AUTO))


def _from_scratch(model: ModelRecipe) -> Recipe:
    """Return a recipe whose training fields :mod:`xlnet.recipe.budget` replaces by numbers that fit the data."""
    training = TrainingRecipe(
        epochs=AUTO,
        batch_tokens=AUTO,
        learning_rate=AUTO,
        warmup=AUTO,
        token_dropout=AUTO,
        label_smoothing=AUTO,
        patience=AUTO,
        initialisation=AUTO,
    )
    return Recipe(DataRecipe(max_length=LENGTH), model, training)


def base() -> Recipe:
    """Return the recipe of XLNet-Base: 12 layers, hidden 768, 12 heads (Yang et al. 2019, released configuration)."""
    return _published("base", n_layer=12, d_model=768, n_head=12, d_inner=3072, learning_rate=3e-5)


def large() -> Recipe:
    """Return the recipe of XLNet-Large: 24 layers, hidden 1024, 16 heads (Yang et al. 2019, table 7)."""
    recipe = _published("large", n_layer=24, d_model=1024, n_head=16, d_inner=4096, learning_rate=2e-5)
    return recipe.replace(training={"layer_decay": 0.75})


def _published(name: str, *, n_layer: int, d_model: int, n_head: int, d_inner: int, learning_rate: float) -> Recipe:
    return Recipe(
        model=ModelRecipe(name, n_layer=n_layer, d_model=d_model, n_head=n_head, d_head=64, d_inner=d_inner),
        training=TrainingRecipe(learning_rate=learning_rate, batch_tokens=16_384),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"tiny": tiny, "small": small, "base": base, "large": large}


def from_changes(changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Start from the preset that ``changes["model"]["preset"]`` names and apply the rest over it."""
    model = section_table("model", changes.get("model", {}))
    preset = model.get("preset", "tiny")
    if preset not in PRESETS:
        raise UserError(f"model.preset is {preset!r}; allowed: {', '.join(PRESETS)}{nearest(str(preset), PRESETS)}")
    shape = [name for name in ("n_layer", "d_model", "n_head", "d_head", "d_inner") if name in model]
    if model.get("pretrained") and shape:
        raise UserError(f"model.{shape[0]} is set beside model.pretrained, whose own shape wins; remove one of the two")
    recipe = merge(PRESETS[preset](), changes)
    check_whole(recipe)
    return recipe
