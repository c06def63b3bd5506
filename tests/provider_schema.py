"""The arguments of Terraform's Google provider, read from the type declarations of npm's @cdktf/provider-google.

``terraform validate`` needs the provider itself; this package carries its schema and comes from a package registry:

    npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-16.12.1.tgz
    python tests/provider_schema.py package

writes tests/golden/google_provider.json, which tests/test_terraform.py checks every module against.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = "@cdktf/provider-google@16.12.1"
CHECKOUT = Path(__file__).resolve().parent.parent
GOLDEN = CHECKOUT / "tests" / "golden" / "google_provider.json"
TERRAFORM = CHECKOUT / "infra" / "terraform"

_INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ARGUMENT = re.compile(
    r"docs/(?:resources|data-sources)/\w+#(\w+) [^*]*(?:\*(?!/)[^*]*)*\*/\s*readonly \w+(\??): ([^;{]+|\{[^}]*\}[^;]*);"
)

Schema = dict[str, Any]  # argument, with a * where it is required → 0, or the Schema of a block


def version(package: Path) -> str:
    """The provider's version that the package was made from."""
    facts = json.loads((package / "package.json").read_text(encoding="utf-8"))
    return str(facts["cdktf"]["provider"]["version"])


def schema_of(package: Path, kind: str) -> Schema:
    """The arguments of ``resource.google_x`` or ``data.google_x``; KeyError if the provider has no such type."""
    family, _, name = kind.partition(".")
    folder = package / "lib" / (("data-google-" if family == "data" else "") + _folder(name))
    if not folder.is_dir():
        raise KeyError(f"the provider has no {kind}")
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.d.ts"))]
    interfaces = {match.group(1): match.group(2) for text in texts for match in _INTERFACE.finditer(text)}
    (config,) = [body for title, body in interfaces.items() if title.endswith("Config") and _is_config(title, folder)]
    return _arguments(config, interfaces)


def _folder(name: str) -> str:
    return name.removeprefix("google_").replace("_", "-")


def _is_config(title: str, folder: Path) -> bool:
    return title.removesuffix("Config").lower() == folder.name.replace("-", "")


def _arguments(body: str, interfaces: dict[str, str]) -> Schema:
    found: Schema = {}
    for name, optional, kind in _ARGUMENT.findall(body):
        if name == "timeouts":
            continue
        inner = next((word for word in re.findall(r"\w+", kind) if word in interfaces), None)
        key = name if optional else f"{name}*"
        found[key] = _arguments(interfaces[inner], interfaces) if inner else 0
    return found


def used() -> list[str]:
    """Every ``resource.TYPE`` and ``data.TYPE`` of the provider that our files use."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(TERRAFORM.rglob("*.tf")))
    pairs = re.findall(r'^(resource|data) "(google_\w+)"', text, re.MULTILINE)
    return sorted({f"{family}.{name}" for family, name in pairs})


def golden(package: Path, kinds: Iterable[str]) -> str:
    """The text of the golden file."""
    lines = [f'"provider": "{version(package)}"']
    lines += [f'"{kind}": {json.dumps(schema_of(package, kind), separators=(",", ":"))}' for kind in kinds]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    GOLDEN.write_text(golden(Path(sys.argv[1]), used()), encoding="utf-8")
    print(f"wrote {GOLDEN.relative_to(CHECKOUT)}")
