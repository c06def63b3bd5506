"""The history of champions, and the rollback to an earlier one.

A new champion stores the version number of the champion that it replaced in the tag ``champion_before``.
"""

import shlex

from xlnet.errors import UserError
from xlnet.registry import CHAMPION, ModelVersion, Registry

BEFORE = "champion_before"
ROLLED_BACK = "rolled_back"  # tag of a version that a person has rolled back; the gate does not promote it again
PROMOTE = "xlnet-pipeline models promote"
PROMOTED = ("promoted", "promoted by hand")  # values of the tag "decision"


def make_champion(registry: Registry, version: ModelVersion) -> None:
    """Make a version the champion, and store which version it replaced."""
    earlier = registry.champion(version.name)
    if earlier is not None and earlier.version != version.version:
        registry.describe(version.name, version.version, version.description, {BEFORE: str(earlier.version)})
    registry.set_alias(version.name, CHAMPION, version.version)


def previous_champion(registry: Registry, name: str) -> ModelVersion | None:
    """Return the previous champion; None if there is none. Deleted champions are skipped.

    Versions of earlier releases have no such tag; then this is the newest older version that was promoted.
    """
    versions = registry.versions(name)
    champion = next((one for one in versions if CHAMPION in one.aliases), None)
    if champion is None:
        return None
    named = [one for one in versions if str(one.version) == champion.tags.get(BEFORE)]
    older = [one for one in versions if one.version < champion.version and one.tags.get("decision") in PROMOTED]
    return next(iter([*named, *older]), None)


def rollback_pair(registry: Registry, name: str) -> tuple[ModelVersion, ModelVersion]:
    """Return the champion, and the version that a rollback would make champion.

    Raises:
        UserError: there is no champion, or no previous champion.
    """
    champion = next((one for one in registry.versions(name) if CHAMPION in one.aliases), None)
    if champion is None:
        raise UserError(f"model '{name}' has no champion; make one: {PROMOTE} {shlex.quote(name)}:VERSION")
    earlier = previous_champion(registry, name)
    if earlier is None:
        others = [f"{name}:{one.version}" for one in registry.versions(name) if one.version != champion.version]
        choice = f"choose one: {PROMOTE} {shlex.quote(others[0])}" if others else "it is the only version"
        raise UserError(f"'{name}:{champion.version}' is the first champion of '{name}', none came before it; {choice}")
    return champion, earlier


def roll_back(registry: Registry, champion: ModelVersion, earlier: ModelVersion) -> None:
    """Make the earlier version champion again, and keep the gate from undoing this."""
    name = champion.name
    reason = f"rolled back to version {earlier.version}; it had been champion: {champion.description}"
    registry.describe(name, champion.version, reason, {"decision": "rolled back", ROLLED_BACK: "true"})
    again = f"champion again, after a rollback from version {champion.version}"
    registry.describe(name, earlier.version, again, {"decision": "promoted by hand", ROLLED_BACK: "false"})
    registry.set_alias(name, CHAMPION, earlier.version)


def was_rolled_back(registry: Registry, name: str, model_digest: str) -> ModelVersion | None:
    """Return the version of this model that a person has rolled back; None if there is none."""
    known = registry.versions(name) if name in registry.names() else []
    ours = (one for one in known if one.tags.get("model_digest") == model_digest)
    return next((one for one in ours if one.tags.get(ROLLED_BACK) == "true"), None)
