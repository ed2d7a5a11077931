import pytest

from unfog.recipe.load import override
from unfog.recipe.run import Run
from unfog.recipe.schema import Recipe
from unfog.recipe.train import train
from unfog.recipes import named


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """Digits with the smallest network and few steps."""
    settings = ["train.steps=4", "train.batch_size=8", "network.widths=[32]", "network.blocks=[0]"]
    settings += ["network.attention=[]", "network.middle_attention=false", "network.dropout=0.1", "data.limit=40"]
    return override(named("digits"), [*settings, "save.checkpoint_every=2", "save.log_every=1"])


@pytest.fixture(scope="session")
def trained(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the tiny recipe, to be read only."""
    from unfog.recipe.data import open_data

    data = open_data(tiny.data)
    run = Run.create(tmp_path_factory.mktemp("runs") / "tiny", tiny, data.train.info)
    for _ in train(run, data.train):
        pass
    return run
