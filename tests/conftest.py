from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order everywhere: tests compare bits, and run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """Find a test that leaves threads to those that come after it: they would be slower by far, and sum otherwise."""
    yield
    assert torch.get_num_threads() == 1
