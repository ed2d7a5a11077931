"""What to say when an optional library is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(library: str, purpose: str) -> Iterator[None]:
    """Turn a failed import into one that says how to mend it.

    Raises:
        ImportError: if the block could not import its library.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{purpose} needs {library}: pip install 'unfog[data]' ({error})") from error
