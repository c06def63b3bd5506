"""The rules of the house as tests: layers, late imports, thin steps, file length, docstrings, pins, make's targets."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from xlnet import recipe

CHECKOUT = Path(__file__).resolve().parent.parent
ROOTS = {
    "xlnet": "components",
    "xlnet_cluster": "components",
    "xlnet_steps": "components",
    "xlnet_pipeline": "pipeline",
}

# What may import what: a module may import modules of its own layer and of layers above it in this list.
LAYERS = [
    ["xlnet", "xlnet.errors", "xlnet.redaction", "xlnet.processor"],
    ["xlnet.steps", "xlnet.recipe", "xlnet.provenance", "xlnet.http", "xlnet.state", "xlnet.options"],
    ["xlnet.model", "xlnet.data", "xlnet.demo"],
    ["xlnet.training", "xlnet.evaluation", "xlnet.registry", "xlnet.lineage", "xlnet.generation"],
    ["xlnet.serving", "xlnet_cluster"],
    ["xlnet.__main__", "xlnet_steps", "xlnet_pipeline.placement", "xlnet_pipeline.reference"],
    ["xlnet_pipeline.dag"],
    ["xlnet_pipeline.targets", "xlnet_pipeline.lineage", "xlnet_pipeline.images", "xlnet_pipeline.planning"],
    ["xlnet_pipeline.commands", "xlnet_pipeline.ui"],
    ["xlnet_pipeline.cli", "xlnet_pipeline.__main__", "xlnet_pipeline.notebook", "xlnet_pipeline.reference.pages"],
    ["xlnet_pipeline"],  # the package itself, which hands out the Python API
    ["xlnet_pipeline.reference.__main__"],
]

# Packages that ``xlnet`` may have at hand when a module of it is imported. Everything else is loaded inside the
# function that needs it, by the modules named here.
ALWAYS_THERE = {"numpy", "pyarrow", "safetensors", "tokenizers", "torch"}
LATE = {
    "apache_beam": {"xlnet.data.beam"},
    "google": {"xlnet.data.gcs", "xlnet.data.transfer", "xlnet.registry.vertex_api"},
    "google_crc32c": {"xlnet.data.transfer", "xlnet.model.tensorflow_files"},
    "charset_normalizer": {"xlnet.data.encoding"},
    "openpyxl": {"xlnet.data.workbook"},
    "urllib3": {"xlnet.data.transfer"},
    "boto3": {"xlnet.data.s3"},
    "botocore": {"xlnet.data.s3"},
    "requests": {"xlnet.data.gcs", "xlnet.data.transfer", "xlnet.registry.vertex_api"},
    "mlflow": {"xlnet.registry.mlflow_registry"},
    "scipy": {"xlnet.evaluation.linear"},
    "sklearn": {"xlnet.evaluation.linear"},
    "tensorboard": {"xlnet.training.history"},
}
# Modules that a package's absence takes with it: only loaded, late, by the one that LATE names.
WRITTEN_IN = {
    "xlnet.model.kernels.triton_attention": {"triton"},
    "xlnet.model.kernels.triton_turning": {"triton"},
    "xlnet.model.kernels.triton_fused": {"triton"},
    "xlnet.model.kernels.triton_passes": {"triton"},
    "xlnet.model.kernels.triton_streams": {"triton"},
    "xlnet.model.kernels.triton_streams_passes": {"triton"},
    "xlnet.training.xla": {"torch_xla"},
    "xlnet.training.tpu": {"torch_tpu"},
    "xlnet.registry.mlflow_client": {"mlflow"},
}
LATE_ANYWHERE = {"transformers", "sentencepiece"}
WITHOUT_TORCH = ("xlnet.data", "xlnet.registry", "xlnet.lineage", "xlnet.recipe", "xlnet.provenance", "xlnet.errors")

MACHINE_PATH = re.compile(
    r"(?<![\w.$}])/(?:work|root|home/\w+|Users/\w+)/|pypi\.org|pythonhosted\.|npmjs\.|deb\.debian"
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".js", ".css", ".tf", ".sh", ""}


@cache
def modules() -> dict[str, Path]:
    """Import name → file, of every module the project ships."""
    found = {}
    for package, root in ROOTS.items():
        for path in sorted((CHECKOUT / root / package).rglob("*.py")):
            parts = path.relative_to(CHECKOUT / root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_bytes())


def imports(module: str, *, late: bool = True) -> Iterator[str]:
    """Full names a module imports; ``from a import b`` gives ``a.b`` where that is a module, else ``a``."""
    nodes = ast.walk(tree(module)) if late else _at_import(tree(module))
    for item in nodes:
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert not item.level, f"{module}, line {item.lineno}: write the import absolutely"
            for alias in item.names:
                full = f"{item.module}.{alias.name}"
                yield full if full in modules() or item.module == "google.cloud" else str(item.module)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not those in functions, nor below ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def layer(module: str) -> int:
    """Index of the layer with the longest name that ``module`` is or lies below."""
    places = [(len(name), index) for index, names in enumerate(LAYERS) for name in names if _within(module, name)]
    return max(places)[1]


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def test_every_module_has_its_own_place_in_the_layers() -> None:
    bare = [name for name in modules() if name not in ROOTS]
    rooms = {name for names in LAYERS for name in names} - set(ROOTS) | {"xlnet_cluster", "xlnet_steps"}
    assert not [name for name in bare if not any(_within(name, room) for room in rooms)]


def test_a_class_name_means_one_thing() -> None:
    """Two classes may share a name only if they are the same thing for two kinds of hardware."""
    places: dict[str, list[str]] = {}
    for module in modules():
        for item in ast.walk(tree(module)):
            if isinstance(item, ast.ClassDef):
                places.setdefault(item.name, []).append(module)
    doubled = {name: found for name, found in places.items() if len(found) > 1}
    kernels = ["xlnet.model.kernels.native_fused", "xlnet.model.kernels.triton_fused"]
    assert {name: found for name, found in doubled.items() if found != kernels} == {}


@pytest.mark.parametrize("module", modules())
def test_imports_flow_one_way(module: str) -> None:
    ours = [name for name in imports(module) if name.split(".")[0] in ROOTS]
    assert not [name for name in ours if layer(name) > layer(module)]


def test_no_import_cycles() -> None:
    graph = {name: {other for other in imports(name) if other in modules()} - {name} for name in modules()}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


@pytest.mark.parametrize("module", [name for name in modules() if _within(name, "xlnet")])
def test_xlnet_loads_other_packages_late_and_in_one_place(module: str) -> None:
    theirs = [name for name in imports(module) if name.split(".")[0] not in ROOTS]
    assert not [name for name in theirs if name.startswith(("kfp", "google.cloud.aiplatform"))]
    outside = _foreign(theirs)
    at_import = _foreign(imports(module, late=False))
    allowed = ALWAYS_THERE - ({"torch"} if module.startswith(WITHOUT_TORCH) else set())
    written_in = WRITTEN_IN.get(module, set())
    assert at_import <= allowed | written_in, "import it inside the function that needs it"
    early = {name for name in imports(module, late=False) if name in WRITTEN_IN}
    assert not early or written_in, "import it inside the function that needs it"
    elsewhere = outside - ALWAYS_THERE - LATE_ANYWHERE - written_in
    assert not {name for name in elsewhere if module not in LATE.get(name, set())}, f"allowed: {LATE}"


def _foreign(names: Iterator[str] | list[str]) -> set[str]:
    """Top-level packages among ``names`` that are neither ours nor the standard library."""
    roots = {name.split(".")[0] for name in names}
    tensorboard = {"tensorboard"} if "torch.utils.tensorboard" in names else set()
    return roots - set(ROOTS) - sys.stdlib_module_names | tensorboard


def test_kfp_is_imported_only_by_steps_and_pipeline() -> None:
    users = [name for name in modules() if any(_within(one, "kfp") for one in imports(name))]
    assert users
    assert not [name for name in users if _within(name, "xlnet")]


def components() -> list[tuple[str, ast.FunctionDef]]:
    """Every function decorated with ``dsl.component``."""
    return [
        (f"{module}.{item.name}", item)
        for module in modules()
        for item in ast.walk(tree(module))
        if isinstance(item, ast.FunctionDef) and any("component" in ast.unparse(one) for one in item.decorator_list)
    ]


def test_steps_are_thin() -> None:
    assert len(components()) >= 5, "the five steps of the pipeline"
    sizes = {name: _statements(item) for name, item in components()}
    assert not {name: size for name, size in sizes.items() if size > 5}


def _statements(function: ast.FunctionDef) -> int:
    """Statements in a body at any depth, the docstring left out."""
    inner = sum(isinstance(item, ast.stmt) for item in ast.walk(function)) - 1
    return inner - (ast.get_docstring(function) is not None)


def test_steps_live_in_xlnet_steps() -> None:
    assert not [name for name, _ in components() if not name.startswith("xlnet_steps.")]


@pytest.mark.parametrize("module", modules())
def test_a_file_is_a_room(module: str) -> None:
    path = modules()[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, "name the concern"
    assert ast.get_docstring(tree(module)), "say in the first line what the file is"


@pytest.mark.parametrize("module", modules())
def test_functions_are_short(module: str) -> None:
    functions = [one for one in ast.walk(tree(module)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {one.name: (one.end_lineno or 0) - one.lineno + 1 for one in functions}
    assert not {name: size for name, size in sizes.items() if size > 60}


@pytest.mark.parametrize("module", [name for name in modules() if _within(name, "xlnet")])
def test_public_functions_and_classes_of_xlnet_have_docstrings(module: str) -> None:
    kinds = ast.FunctionDef | ast.ClassDef
    public = [item for item in tree(module).body if isinstance(item, kinds) and not item.name.startswith("_")]
    assert not [item.name for item in public if not ast.get_docstring(item)]


@pytest.mark.parametrize("module", modules())
def test_no_error_is_swallowed(module: str) -> None:
    for handler in ast.walk(tree(module)):
        if not isinstance(handler, ast.ExceptHandler):
            continue
        where = f"{modules()[module].name}, line {handler.lineno}"
        assert handler.type is not None, f"{where}: bare except"
        broad = ast.unparse(handler.type) in {"Exception", "BaseException"}
        if broad or _within(module, "xlnet.model"):
            assert not all(_is_nothing(item) for item in handler.body), f"{where}: the error disappears"
    if _within(module, "xlnet.model"):
        assert "contextlib" not in list(imports(module)), "suppress hides errors"


def _is_nothing(item: ast.stmt) -> bool:
    if isinstance(item, ast.Return):
        return item.value is None or isinstance(item.value, ast.Constant)
    return isinstance(item, ast.Pass | ast.Continue) or ast.unparse(item) == "..."


def tracked() -> list[Path]:
    """Files that git knows."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return [CHECKOUT / name for name in listed.stdout.split("\0") if name]


def test_no_path_of_one_machine_and_no_package_host_in_tracked_files() -> None:
    texts = [path for path in tracked() if path.suffix in TEXT_SUFFIXES and path.name != "LICENSE" and path.is_file()]
    assert len(texts) > 20
    found = {
        str(path.relative_to(CHECKOUT)): match.group()
        for path in texts
        if (match := MACHINE_PATH.search(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_recipe_options_are_a_decision() -> None:
    """A new option is a decision: it belongs in this list, in the README and in the changelog."""
    frozen = (CHECKOUT / "tests/golden/recipe_fields.txt").read_text().split()
    assert recipe.field_names() == frozen


def test_pins_hold_every_declared_dependency() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    declared = [Requirement(one) for one in project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        declared += [Requirement(one) for one in extra]
    for one in declared:
        if one.name != project["name"]:
            assert pins[one.name.lower()] in one.specifier, f"{one} is not what constraints.txt pins"


def test_core_dependencies_hold_no_pipeline_and_no_cloud() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(one).name for one in project["dependencies"]}
    assert needed <= ALWAYS_THERE | LATE_ANYWHERE | {"charset-normalizer", "scikit-learn", "scipy"}


def test_make_help_lists_every_target() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert targets
    assert targets.group(1).split() == re.findall(r"^  make ([\w-]+) +\S", shown, re.MULTILINE)


def test_readme_names_only_targets_that_exist() -> None:
    shown = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"`make ([\w-]+)|^make ([\w-]+)", (CHECKOUT / "README.md").read_text(), re.MULTILINE)
    assert {one or other for one, other in named} <= set(re.findall(r"make ([\w-]+)", shown))


@pytest.mark.parametrize("path", sorted((CHECKOUT / "tests/benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_say_how_to_run_them(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    is_program = "__main__" in path.read_text()
    assert docstring
    assert not is_program or f"python tests/benchmarks/{path.name}" in docstring
