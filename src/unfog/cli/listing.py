"""``unfog recipes``."""

from unfog.cli.console import show, table
from unfog.cli.costs import cost_of, count
from unfog.recipes import RECIPES


def run() -> int:
    """List the named recipes."""
    listing = table("name", "description", "data", "size>", "steps>", "parameters>", "FLOP an image>")
    for name, recipe in RECIPES.items():
        made = recipe()
        side = made.data.size
        assert side is not None  # the recipes that come with Unfog say it; a test holds this
        cost = cost_of(made, side, side)
        size = f"{side}x{side}x{made.network.in_channels}"
        costs = count(cost.parameters), count(cost.flops)
        listing.add_row(name, made.description, made.data.path, size, f"{made.train.steps:,}", *costs)
    show("recipes", listing)
    return 0
