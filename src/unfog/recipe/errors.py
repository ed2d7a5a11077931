"""The one error of recipes, and the search for what was meant."""

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """A recipe or an override that is refused: says where, what came, what was expected and what was perhaps meant.

    Args:
        path: the setting, such as ``train.optimizer.lr``; empty for the recipe as a whole.
        problem: what came and what was expected.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def shown(value: object) -> str:
    """Return a value as it stands in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean x?"`` for the names like the one given, or nothing."""
    return _question(difflib.get_close_matches(given, list(known), n=1, cutoff=0.6))


def did_you_mean_path(given: str, known: Iterable[str]) -> str:
    """Do the same for paths: settings like it at the same place, else those with the same last part, else like ones."""
    paths = [path for path in known if not given.startswith(f"{path}.")]
    parent, _, leaf = given.rpartition(".")
    siblings = {_leaf(path): path for path in paths if parent and path.rpartition(".")[0] == parent}
    like = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if like:
        return _question([siblings[like[0]]])
    same = [path for path in paths if _leaf(path) == leaf]
    likely = difflib.get_close_matches(given, same or paths, n=1, cutoff=0.8)
    if not likely and not same:
        leaves = difflib.get_close_matches(leaf, {_leaf(path) for path in paths}, n=1, cutoff=0.7)
        same = [path for path in paths if _leaf(path) in leaves]
    return _question(likely or same[:3])


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _question(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""
