"""Who was champion before whom: what a rollback goes back to.

A version that becomes champion keeps the number of the one that it replaced in the tag ``champion_before``.
"""

from xlnet.errors import UserError
from xlnet.registry import CHAMPION, ModelVersion, Registry

BEFORE = "champion_before"
ROLLED_BACK = "rolled_back"  # tag of a version that a person took the title from: the gate does not give it back
PROMOTED = ("promoted", "promoted by hand")  # values of the tag "decision"


def crown(registry: Registry, version: ModelVersion) -> None:
    """Make a version the champion, and keep in it whom it replaced."""
    earlier = registry.champion(version.name)
    if earlier is not None and earlier.version != version.version:
        registry.describe(version.name, version.version, version.description, {BEFORE: str(earlier.version)})
    registry.set_alias(version.name, CHAMPION, version.version)


def predecessor(registry: Registry, name: str) -> ModelVersion | None:
    """The champion before the present one; None if there was none, or it was deleted and none came before it.

    Versions of earlier releases name nobody: then it is the newest older version that the gate or a person promoted.
    """
    versions = registry.versions(name)
    champion = next((one for one in versions if CHAMPION in one.aliases), None)
    if champion is None:
        return None
    named = [one for one in versions if str(one.version) == champion.tags.get(BEFORE)]
    older = [one for one in versions if one.version < champion.version and one.tags.get("decision") in PROMOTED]
    return next(iter([*named, *older]), None)


def rolled_back(registry: Registry, name: str) -> tuple[ModelVersion, ModelVersion]:
    """The champion and the version that a rollback makes champion instead.

    Raises:
        UserError: there is no champion, or none came before it.
    """
    champion = next((one for one in registry.versions(name) if CHAMPION in one.aliases), None)
    if champion is None:
        raise UserError(f"model '{name}' has no champion; make one: xlnet-pipeline models promote {name}:VERSION")
    earlier = predecessor(registry, name)
    if earlier is None:
        others = [f"{name}:{one.version}" for one in registry.versions(name) if one.version != champion.version]
        choice = f"choose one: xlnet-pipeline models promote {others[0]}" if others else "it is the only version"
        raise UserError(f"'{name}:{champion.version}' is the first champion of '{name}', none came before it; {choice}")
    return champion, earlier


def roll_back(registry: Registry, champion: ModelVersion, earlier: ModelVersion) -> None:
    """Give the title back to the version before, and keep the gate from undoing that."""
    name = champion.name
    reason = f"rolled back to version {earlier.version}; it had been champion: {champion.description}"
    registry.describe(name, champion.version, reason, {"decision": "rolled back", ROLLED_BACK: "true"})
    again = f"champion again, after a rollback from version {champion.version}"
    registry.describe(name, earlier.version, again, {"decision": "promoted by hand", ROLLED_BACK: "false"})
    registry.set_alias(name, CHAMPION, earlier.version)


def was_rolled_back(registry: Registry, name: str, model_digest: str) -> ModelVersion | None:
    """The version of this very model that a person took the title from, if there is one."""
    known = registry.versions(name) if name in registry.names() else []
    ours = (one for one in known if one.tags.get("model_digest") == model_digest)
    return next((one for one in ours if one.tags.get(ROLLED_BACK) == "true"), None)
