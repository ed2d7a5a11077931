"""Nothing that is read from a disk can run code: no pickle, and no library call that would unpickle or evaluate."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "unfog"

MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "jsonpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "read_pickle",
    "unsafe_load",
    "full_load",
    # torch.distributed.checkpoint's own reader unpickles the file .metadata.
    "FileSystemReader",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
}
# (last part of the call, the module that it is called on): what has to be written out at each call.
WRITTEN = {("load", "torch"): ("weights_only", True), ("load", "np"): ("allow_pickle", False)}
NEVER = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def value_of(call: ast.Call, keyword: str) -> object:
    """Return the constant that is given for a keyword; None where none is."""
    found = [k.value for k in call.keywords if k.arg == keyword]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def problems(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(name_of(base) == "yaml.SafeLoader" for base in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parts = [node.module or "", *(alias.name for alias in node.names)]
            yield from (
                f"{node.lineno}: from ... import {p}" for p in parts if p.split(".")[0] in MODULES or p in CALLS
            )
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            holder, _, last = called.rpartition(".")
            if called in CALLS or last in CALLS - {"eval", "exec"}:  # module.eval() is torch's way to another mode
                yield f"{node.lineno}: {called}()"
            if (last, holder) in WRITTEN and value_of(node, WRITTEN[last, holder][0]) is not WRITTEN[last, holder][1]:
                yield f"{node.lineno}: {called}() without {WRITTEN[last, holder]}"
            if called == "yaml.load" and not any(
                k.arg == "Loader" and name_of(k.value) in safe | {"yaml.SafeLoader"} for k in node.keywords
            ):
                yield f"{node.lineno}: yaml.load() without a safe loader"
            wrong = [key for key, value in NEVER.items() if value_of(node, key) is value]
            yield from (f"{node.lineno}: {called}({key}={NEVER[key]})" for key in wrong)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert list(problems(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import torch, dill",
        "from joblib import load",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "open_archive(path, allow_pickle=True)",
        "datasets.load_dataset(name, trust_remote_code=True)",
        "pandas.read_pickle(path)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Mine(yaml.Loader): ...\nyaml.load(text, Loader=Mine)",
        "yaml.unsafe_load(text)",
        "from yaml import full_load",
        "eval(text)",
        "from torch.distributed.checkpoint import FileSystemReader",
        "torch.distributed.checkpoint.FileSystemReader(path)",
    ],
)
def test_each_way_to_unpickle_would_be_found(text: str) -> None:
    assert list(problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "network.eval()",
        "class Mine(yaml.SafeLoader): ...\nyaml.load(text, Loader=Mine)",
        "safetensors.torch.load(content)",
    ],
)
def test_what_reads_numbers_only_is_let_through(text: str) -> None:
    assert list(problems(text)) == []
