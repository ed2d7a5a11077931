import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The tiny task and data of the training tests."""
    spec = importlib.util.spec_from_file_location("faults_tiny", Path(__file__).parents[1] / "training" / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults_tiny"] = module
    spec.loader.exec_module(module)
    return module
