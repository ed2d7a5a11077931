"""Layer n imports only lower layers, and the core depends on torch alone (docs: the tree of the design)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "unfog"

LAYER = {
    "diffusion": 0,
    "sampling": 1,
    "data": 2,
    "tasks": 2,
    "metrics": 2,
    "files": 2,
    "asking": 3,
    "checkpoint": 3,
    "images": 3,
    "machine": 3,
    "memory": 3,
    "pipeline": 3,
    "training": 3,
    "evaluation": 4,
    "recipe": 4,
    "recipes": 5,
    "zoo": 5,
    "api": 6,
    "cli": 6,
    "serve": 6,
    "studio": 6,
    "__main__": 7,
}

# (importer, imported): the modules that may be imported within one layer.
WITHIN_A_LAYER = {
    # What a batch is, without a data set.
    ("tasks", "data"): {"unfog.data.batch"},
    # Training writes what the file beside it reads; neither is a folder below the other.
    ("training", "checkpoint"): {"unfog.checkpoint"},
}

EDGE_LIBRARIES = {"pydantic": {"recipe", "serve", "cli"}, "yaml": {"recipe", "serve", "cli"}}

MOST_LINES = 450


class Import(NamedTuple):
    path: Path
    line: int
    module: str
    at_module_level: bool

    @property
    def unit(self) -> str:
        """The folder or file of the package that imports."""
        return self.path.relative_to(SOURCE).parts[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.path.relative_to(SOURCE.parent)}:{self.line} imports {self.module}"


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import: write the whole name"
            # `from unfog import metrics` names a module by its alias.
            whole = node.module or ""
            modules = [f"unfog.{alias.name}" for alias in node.names] if whole == "unfog" else [whole]
        for module in modules:
            yield Import(path, node.lineno, module, id(node) not in inside)  # type: ignore[attr-defined]


FILES = sorted(SOURCE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports(path)]
OF_UNFOG = [found for found in IMPORTS if found.module.startswith("unfog.") and found.path != SOURCE / "__init__.py"]


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= set(LAYER), f"give {sorted(parts - set(LAYER))} a layer in this file"


def test_imports_point_to_lower_layers() -> None:
    wrong = []
    for found in OF_UNFOG:
        target = found.module.split(".")[1]
        if target == found.unit or LAYER[target] < LAYER[found.unit]:
            continue
        if found.module in WITHIN_A_LAYER.get((found.unit, target), set()):
            continue
        wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_the_declared_exceptions_are_in_use() -> None:
    used = {(found.unit, found.module) for found in OF_UNFOG}
    for (importer, _), modules in WITHIN_A_LAYER.items():
        for module in modules:
            assert (importer, module) in used, f"{importer} no longer imports {module}: take the exception out"


def test_networks_know_nothing_of_diffusion() -> None:
    known = {"unfog.diffusion.nn", "unfog.diffusion.checks", "unfog.diffusion.shapes"}
    wrong = [
        str(found)
        for found in OF_UNFOG
        if found.path.is_relative_to(SOURCE / "diffusion" / "nn")
        and not any(found.module == name or found.module.startswith(name + ".") for name in known)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("unit", ["diffusion", "sampling"])
def test_the_core_depends_on_torch_alone(unit: str) -> None:
    allowed = {"torch", "einops", "unfog", *sys.stdlib_module_names}
    # A published text encoder may be imported inside the function that needs it, nothing else.
    inside = {"transformers"}
    wrong = [
        str(found)
        for found in IMPORTS
        if found.unit == unit
        and found.module.split(".")[0] not in (allowed if found.at_module_level else allowed | inside)
    ]
    assert not wrong, "\n".join(wrong)


def test_libraries_of_the_edge_stay_there() -> None:
    wrong = []
    for found in IMPORTS:
        allowed = EDGE_LIBRARIES.get(found.module.split(".")[0])
        if allowed is not None and found.unit not in allowed:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    # What stands under `if TYPE_CHECKING` is for the type checker alone: look at the plain statements.
    plain = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [alias.name for node in plain if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in plain if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in modules} <= set(sys.stdlib_module_names)


def test_no_file_is_longer_than_it_can_be_read() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long
