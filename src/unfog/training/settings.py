"""Which run a checkpoint belongs to: its settings lie in it, and are compared when it is read."""

from collections.abc import Iterator, Mapping

from unfog.checkpoint import JSON

SETTINGS = "settings"
"""The entry of a checkpoint's numbers that holds them."""


def require_same_settings(saved: JSON, given: Mapping[str, JSON]) -> None:
    """Raise unless a checkpoint was saved with the settings that are now in force.

    Settings that only one side knows are left out: another version may have more or fewer of them.

    Args:
        saved: what the checkpoint holds; None, if it tells of none.
        given: by name, each a scalar, a list or a mapping of more settings.

    Raises:
        ValueError: lists the settings that differ.
    """
    if saved is None:
        return
    before, now = dict(_flat(saved)), dict(_flat(dict(given)))
    common = [path for path in before if path in now]
    differing = [f"{p}: {before[p]!r} there, {now[p]!r} here" for p in common if before[p] != now[p]]
    if differing:
        lines = "\n  ".join(differing)
        raise ValueError(f"the checkpoint is of a run with other settings, and belongs to that one only:\n  {lines}")


def _flat(tree: JSON, path: str = "") -> Iterator[tuple[str, JSON]]:
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield from _flat(item, f"{path}.{name}" if path else name)
    else:
        yield path, tree
