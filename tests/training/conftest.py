import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tiny.py of this folder, which the subprocess tests import as a script's neighbour."""
    spec = importlib.util.spec_from_file_location("training_tiny", Path(__file__).with_name("tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_tiny"] = module
    spec.loader.exec_module(module)
    return module
