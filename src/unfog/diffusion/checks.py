"""Checks of arguments at constructors and public entries."""


def require(condition: bool, expected: str) -> None:
    """Raise ``ValueError("expected ...")`` unless the condition holds."""
    if not condition:
        raise ValueError(f"expected {expected}")
