from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfog.diffusion import schedule, weighting
from unfog.diffusion.nn.dit import DiTConfig
from unfog.diffusion.nn.embed import Fourier
from unfog.diffusion.parameterization import Eps
from unfog.diffusion.schedule import CleanEnd, Cosine, RectifiedFlow, Tabulated
from unfog.diffusion.times import LogitNormal, Stratified
from unfog.recipe.errors import RecipeError
from unfog.recipe.load import differences, dump, load, override, parse
from unfog.recipe.schema import Recipe
from unfog.recipes import RECIPES, named
from unfog.sampling.gaussian import DDIM, Heun, Variable
from unfog.sampling.multistep import DPMSolverPP2M
from unfog.training.ema import Exponential

DIGITS = RECIPES["digits"]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_dumped_recipe_is_loaded_as_it_was(name: str) -> None:
    recipe = RECIPES[name]()
    assert load(dump(recipe)) == recipe


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1),
    numbers=st.tuples(*[st.floats(1e-12, 1e12)] * 2),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_text_and_number_survives_being_dumped(text: str, numbers: tuple[float, float], seed: int) -> None:
    optimizer = replace(DIGITS.train.optimizer, lr=numbers[0])
    sample = replace(DIGITS.sample, guidance=numbers[1])
    data = replace(DIGITS.data, path=text)
    train = replace(DIGITS.train, seed=seed, optimizer=optimizer)
    recipe = replace(DIGITS, description=text, data=data, train=train, sample=sample)
    assert load(dump(recipe)) == recipe


@pytest.mark.parametrize("text", ["2e-4", "no", "null", "true", "1:30", "0x1F", "2024-01-01", "~", "", " a ", "1_000"])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    recipe = replace(DIGITS, description=text)
    assert load(dump(recipe)) == recipe


@pytest.mark.parametrize("table", [schedule.linear, schedule.cosine, schedule.scaled_linear])
def test_a_published_table_is_written_by_its_name(table: type) -> None:
    recipe = replace(DIGITS, schedule=table(1000))
    assert len(dump(recipe)) < 2500
    assert load(dump(recipe)) == recipe


def test_another_table_is_written_in_numbers() -> None:
    tabulated = Tabulated((0.9, 0.5, 1 / 3), CleanEnd.FIRST_LEVEL)
    recipe = replace(DIGITS, schedule=tabulated)
    assert load(dump(recipe)).schedule == tabulated


def test_a_published_table_that_was_changed_is_written_in_numbers() -> None:
    levels = schedule.linear(100).alphas_cumprod
    tabulated = Tabulated((*levels[:-1], levels[-1] / 2))
    assert load(dump(replace(DIGITS, schedule=tabulated))).schedule == tabulated


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("1E3", 1000.0), (".5", 0.5), ("010", 10), ("-3", -3), ("no", "no"), ("1:30", "1:30")],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.optimizer.lr=2e-4", 2e-4),
        ("train.steps=7", 7),
        ("train.compile=true", True),
        ("train.micro_batch=null", None),
        ("network.widths=[32, 64]", (32, 64)),
        ("schedule=cosine", Cosine()),
        ("schedule=rectified-flow", RectifiedFlow()),
        ("schedule={kind: rectified_flow, shift: 3}", RectifiedFlow(3.0)),
        ("schedule=linear_betas", schedule.linear(1000)),
        ("sample.sampler=heun", Heun()),
        ("sample.sampler={kind: heun, variable: flow}", Heun(Variable.FLOW)),
        ("sample.sampler=euler", DDIM()),
        ("sample.sampler=sde-dpmpp", DPMSolverPP2M(eta=1.0)),
        ("weight.of=eps", Eps()),
        ("network.time=fourier", Fourier()),
        ("times={kind: stratified, density: logit_normal}", Stratified(LogitNormal())),
    ],
)
def test_an_override_sets_a_value(assignment: str, value: object) -> None:
    recipe = override(DIGITS, [assignment])
    found: object = recipe
    for name in assignment.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


def test_overrides_are_applied_in_order_and_checked_together() -> None:
    assignments = ["schedule=rectified_flow", "schedule.shift=2", "train.ema=[0.2]", "average=0.2"]
    recipe = override(DIGITS, [*assignments, "times=stratified", "times.density=logit_normal"])
    assert recipe.schedule == RectifiedFlow(2.0)
    assert recipe.average == 0.2
    assert recipe.times == Stratified(LogitNormal())


def test_averages_of_both_kinds_are_written_and_read_back() -> None:
    settings = [
        "train.ema=[0.05, {kind: exponential, decay: 0.999}, power]",
        "average={kind: exponential, decay: 0.999}",
    ]
    with pytest.raises(RecipeError, match=r"train.ema\[2\].sigma_rel: missing; expected a number"):
        override(DIGITS, settings)
    recipe = override(DIGITS, [settings[0].replace("power", "exponential"), settings[1]])
    assert recipe.train.ema == (0.05, Exponential(0.999), Exponential())
    assert recipe.average == Exponential(0.999)
    assert load(dump(recipe)) == recipe
    assert override(recipe, ["average.decay=0.9999"]).average == Exponential()
    assert override(recipe, ["average=0.05"]).average == 0.05
    assert differences(recipe, override(recipe, ["average.decay=0.9999"])) == ["average.decay"]


def test_lengths_are_written_as_the_numbers_they_are() -> None:
    assert "ema: [0.05, 0.1]\n" in dump(DIGITS)
    assert "\naverage: 0.05\n" in dump(DIGITS)


def test_naming_a_kind_forgets_the_settings_of_the_one_before() -> None:
    shifted = override(DIGITS, ["schedule={kind: rectified_flow, shift: 3}"])
    assert override(shifted, ["schedule=rectified_flow"]).schedule == RectifiedFlow(1.0)
    assert override(shifted, ["schedule.kind=cosine"]).schedule == Cosine()


def test_another_network_keeps_what_the_data_decide() -> None:
    recipe = override(DIGITS, ["network={kind: dit, patch: 2, dim: 32, depth: 2, heads: 2}"])
    assert recipe.network == DiTConfig(1, 1, 2, 32, 2, 2, num_classes=10)


def test_tokens_of_attributes_are_set_before_the_data_are_known() -> None:
    tokens = "network={kind: dit, patch: 2, dim: 32, depth: 2, heads: 2, attribute_tokens: [0, 1]}"
    recipe = override(DIGITS, [tokens, "condition.attributes=true"])
    assert recipe.network == DiTConfig(1, 1, 2, 32, 2, 2, num_classes=10, attribute_tokens=(0, 1))


def test_tokens_of_attributes_are_refused_without_attributes() -> None:
    with pytest.raises(RecipeError, match=r"expected network\.attribute_tokens=\[\] with condition\.attributes=false"):
        override(named("shapes-small"), ["condition.attributes=false"])


REFUSED = [
    ("train.lr=1", "train.lr", "did you mean train.optimizer.lr?"),
    ("lr=1", "lr", "did you mean train.optimizer.lr?"),
    ("train.batchsize=3", "train.batchsize", "did you mean train.batch_size?"),
    ("trian.steps=3", "trian.steps", "did you mean train.steps?"),
    ("sampler=heun", "sampler", "did you mean sample.sampler?"),
    ("network.depth=3", "network.depth", "unet has in_channels"),
    ("schedule.shift=3", "schedule.shift", "cosine has none"),
    ("schedule=cosin", "schedule", "got 'cosin'; did you mean cosine?"),
    ("schedule=3", "schedule", "expected one of variance_preserving"),
    ("schedule={shift: 3}", "schedule", "a mapping with such a kind"),
    ("sample.sampler=dpmp", "sample.sampler", "did you mean dpmpp?"),
    ("network.time=forier", "network.time", "did you mean fourier?"),
    ("train.precision=bfloat", "train.precision", "expected one of float32, bfloat16, got 'bfloat'"),
    ("train.compile='False'", "train.compile", "expected true or false, got 'False'"),
    ("train.compile=1", "train.compile", "expected true or false, got 1"),
    ("train.compile=no", "train.compile", "expected true or false, got 'no'"),
    ("train.steps=12.5", "train.steps", "expected a whole number, got 12.5"),
    ("train.steps='12'", "train.steps", "expected a whole number, got '12'"),
    ("train.steps=true", "train.steps", "expected a whole number, got True"),
    ("train.steps=", "train.steps", "expected a whole number, got None"),
    ("train.optimizer.lr='1'", "train.optimizer.lr", "expected a number, got '1'"),
    ("train.optimizer.lr=true", "train.optimizer.lr", "expected a number, got True"),
    ("train.optimizer.lr=.nan", "train.optimizer.lr", "expected a number, got nan"),
    ("sample.guidance=.inf", "sample.guidance", "expected a number, got inf"),
    ("data.path=1", "data.path", "expected text, got 1"),
    ("data.limit=x", "data.limit", "expected a whole number or null, got 'x'"),
    ("train.ema=[0.1, x]", "train.ema[1]", "expected a number, or one of power, exponential, got 'x'"),
    ("train.ema=[true]", "train.ema[0]", "expected a number, or one of power, exponential, or a mapping"),
    ("train.ema=0.1", "train.ema", "expected a list, each of it a number, or one of power, exponential, got 0.1"),
    ("train.ema=[{kind: exponential, decay: 1}]", "train.ema[0].decay", "an EMA decay in (0, 1), got 1.0"),
    ("train.ema=[{kind: exponential, beta: 0.9}]", "train.ema[0].beta", "exponential has decay, warmup"),
    ("average.decay=0.9", "average.decay", "average has no settings of its own; expected average=, a number, or one"),
    ("average=exponential", "average", "among those in train.ema, (0.05, 0.1), or None, got Exponential(decay=0.9999"),
    ("train.optimizer.betas=[0.9]", "train.optimizer.betas", "expected a list of 2 numbers, got [0.9]"),
    ("data=mnist", "data", "expected settings of its own (data.path"),
    ("train.steps.x=1", "train.steps.x", "train.steps has no settings of its own"),
    ("weight.of.x=1", "weight.of.x", "weight.of is not chosen yet"),
    ("times=stratified", "times.density", "missing; expected one of uniform"),
    ("network={kind: dit, patch: 2}", "network.dim", "missing; expected a whole number"),
    ("network.in_channels=3", "network.in_channels", "comes from the data: set data.channels"),
    ("network.out_channels=3", "network.out_channels", "comes from the data: set data.channels"),
    ("network.num_classes=3", "network.num_classes", "comes from the data: set condition.classes"),
    ("network={kind: dit, num_classes: 3}", "network.num_classes", "comes from the data"),
    ("data.path=a: b: c", "data.path", "expected YAML, got 'a: b: c'"),
    ("data.path={a: 1, a: 2}", "data.path", "'a' is given twice"),
    ("train.steps", "train.steps", "expected path=value"),
    ("train.optimizer.lr=-1", "train.optimizer.lr", "above 0, got -1.0"),
    ("train.steps=0", "train.steps", "at least 1, got 0"),
    ("train.ema=[0.5]", "train.ema", "in (0, 0.2887), got 0.5"),
    ("condition.dropout=1.5", "condition.dropout", "in [0, 1), got 1.5"),
    ("network.dropout=1.5", "network.dropout", "in [0, 1)"),
    ("data.holdout=1", "data.holdout", "in (0, 1), got 1.0"),
    ("sample.steps=0", "sample.steps", "at least 1, got 0"),
    ("sample.sampler={kind: ddim, eta: 2}", "sample.sampler.eta", "in [0, 1], not 2.0"),
    ("schedule={kind: linear_betas, steps: 3}", "schedule.steps", "more than 20 steps, not 3"),
    ("average=0.2", "average", "among those in train.ema"),
    ("train.ema=[0.1]", "average", "among those in train.ema, (0.1,), or None, got 0.05"),
    ("condition.quantity=x", "condition.quantity", "there is no such setting"),
]


@pytest.mark.parametrize(("assignment", "path", "text"), REFUSED)
def test_a_bad_override_is_refused_with_its_path_and_what_was_meant(assignment: str, path: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(DIGITS, [assignment])
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def test_a_setting_that_is_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.steps: given twice"):
        override(DIGITS, ["train.steps=3", "train.steps=4"])


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match="Cosine has alpha_1 = 0"):
        override(DIGITS, ["schedule=cosine", "parameterization=eps"])


@pytest.mark.parametrize("section", ["sample", "evaluation"])
def test_guidance_that_the_finished_model_would_refuse_is_refused_before_training(section: str) -> None:
    guided = f"{section}.guidance=3"
    override(DIGITS, [guided])
    with pytest.raises(RecipeError, match=rf"{section}\.guidance=1 without condition dropout, got 3\.0; set condition"):
        override(DIGITS, [guided, "condition.dropout=0"])
    with pytest.raises(RecipeError, match=rf"{section}\.guidance=1 without classes and attributes, got 3\.0"):
        override(DIGITS, [guided, "condition.classes=false"])


@pytest.mark.parametrize("text", ["", "3", "[1]", "name: x", "a: [", "{1: 2}"])
def test_a_text_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        load(text)


def test_an_unknown_name_in_a_file_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.stepss: there is no such setting; did you mean train\.steps\?"):
        load(dump(DIGITS).replace("  steps: 600", "  steps: 600\n  stepss: 3"))


def test_settings_left_out_of_a_file_take_their_defaults() -> None:
    lines = [line for line in dump(DIGITS).splitlines() if not line.strip().startswith(("keep:", "holdout:"))]
    assert load("\n".join(lines)) == DIGITS


def test_differences_name_what_was_changed() -> None:
    changed = override(DIGITS, ["schedule=rectified_flow", "train.steps=3", "save.keep=5"])
    assert differences(DIGITS, changed) == ["schedule", "train.steps", "save.keep"]
    assert differences(DIGITS, DIGITS) == []


def test_a_value_of_an_unlisted_class_is_not_written() -> None:
    class Mine(weighting.Constant):
        pass

    with pytest.raises(TypeError, match="a Mine cannot be written"):
        dump(replace(DIGITS, weight=Mine()))


def test_the_recipe_that_was_overridden_stays_as_it_was() -> None:
    before = dump(DIGITS)
    override(DIGITS, ["train.steps=3", "schedule=rectified_flow"])
    assert dump(DIGITS) == before
    assert isinstance(DIGITS, Recipe)
