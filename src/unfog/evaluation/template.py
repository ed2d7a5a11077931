"""Pages from their templates."""

from collections.abc import Mapping
from typing import Any


def filled(name: str, context: Mapping[str, Any]) -> str:
    """Return the page that a template of this folder makes of its context; a name that it lacks is an error.

    Args:
        name: of the template, such as ``report.html.j2``.
        context: what the template speaks of, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unfog", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(context)
