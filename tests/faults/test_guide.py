"""The guide of failures says what the source says: no message that is gone, none of these errors left out."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "unfog"
GUIDE = ROOT / "docs" / "guides" / "when-things-go-wrong.md"
OPEN = "…"

EXPLAINED = {
    "DamagedCheckpointError",
    "LeaderError",
    "NonFiniteError",
    "RunError",
    "RunInUseError",
    "SaveError",
}
"""Errors of which every message must stand in the guide."""


def template(node: ast.expr) -> str | None:
    """Return a text in the source, with what is filled in left open."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else OPEN for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template(side) for side in (node.left, node.right)]
        return "".join(part or OPEN for part in parts) if any(parts) else None
    return None


def templates(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.expr) and (found := template(child)) is not None:
            yield found


def pieces(message: str) -> list[str]:
    """Return the clauses between the open places; a message may be put together from several texts of the source."""
    clauses = (clause.strip(" .;()") for clause in re.split(rf"{OPEN}|\n|(?<=[.;]) ", message))
    # Whoever requires something says "expected" before what it is; brackets and commas alone say nothing.
    return [clause.removeprefix("expected ") for clause in clauses if re.search(r"\w{2}", clause)]


TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))]
TEXTS = {text for tree in TREES for text in templates(tree)}
WRITTEN = GUIDE.read_text(encoding="utf-8")
MESSAGES = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", WRITTEN, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line
] + re.findall(r"^\| `([^`]+)` \|", WRITTEN, re.MULTILINE)
RAISED = sorted(
    {
        text
        for tree in TREES
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in EXPLAINED and call.args
        if (text := template(call.args[0])) is not None and pieces(text)
    }
)


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_of_the_guide_is_one_of_the_source(message: str) -> None:
    assert pieces(message)
    for piece in pieces(message):
        assert any(piece in text for text in TEXTS), f"nowhere in the source: {piece!r}"


@pytest.mark.parametrize("text", RAISED)
def test_each_of_these_errors_is_explained_in_the_guide(text: str) -> None:
    longest = max(pieces(text), key=len)
    assert any(longest in message for message in MESSAGES), f"not in {GUIDE.name}: {text!r}"


def test_there_is_something_to_compare() -> None:
    assert len(MESSAGES) > 50
    assert len(RAISED) > 20
