"""What to say when an optional library is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(library: str, purpose: str, *, extra: str = "data") -> Iterator[None]:
    """Turn a failed import into one that says how to mend it.

    Args:
        library: what is imported.
        purpose: what it is needed for.
        extra: of Unfog, that brings it.

    Raises:
        ImportError: if the block could not import its library.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{purpose} needs {library}: pip install 'unfog[{extra}]' ({error})") from error
