import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from unfog.diffusion.parameterization import EDM
from unfog.diffusion.schedule import VarianceExploding
from unfog.evaluation.adherence import Adherence
from unfog.evaluation.measure import measure
from unfog.evaluation.report import SECTIONS, ReportInputs, render, write_report
from unfog.evaluation.tables import rounded, spoken
from unfog.metrics.interval import proportion
from unfog.pipeline import Pipeline
from unfog.sampling.gaussian import Heun
from unfog.sampling.grid import Karras
from unfog.sampling.request import SampleSettings

VOID = {"meta", "img", "br", "link"}
SETTINGS = {"name": "toy", "train": {"lr": 0.00042, "optimizer": {"betas": [0.9, 0.98]}}}
LOG = [
    {"step": k, "examples": 16 * k, "loss": 1 / k, "grad_norm": 0.5, "lr": 1e-3, "seconds": 0.2, "waited": 0.05}
    for k in range(1, 31)
]


class Page(HTMLParser):
    """Collects what a page holds, and fails on tags that are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.images, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[name] for name in ("src", "href", "srcset", "data", "xlink:href") if name in given]
        if tag == "img":
            self.images.append(given)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def inputs(measured):
    pipeline, task, train, test, found = measured
    return ReportInputs(
        title="A <script>alert(1)</script> & more",
        command='unfog train toy --out "a & b"',
        settings=SETTINGS,
        log=LOG,
        pipeline=pipeline,
        task=task,
        train=train,
        test=test,
        measured=found,
        seconds={"training": 73.4},
        machine={"processor": "Z80 <4 MHz>"},
        memory={"peak": 3 * 1024**2},
    )


@pytest.fixture(scope="module")
def written(inputs):
    return render(inputs)


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


@pytest.fixture(scope="module")
def bare(toy_pipeline, toy_dataset):
    """No classes, two channels, nothing measured, no log, the fewest steps, a schedule with large numbers."""
    settings = SampleSettings(Heun(), Karras(), steps=1)
    pipeline, task = toy_pipeline(2, 0, schedule=VarianceExploding(), parameterization=EDM(), settings=settings)
    train, test = (toy_dataset(20, seed, 2, labelled=False) for seed in (0, 1))
    return ReportInputs("bare", "", {}, [], pipeline, task, train, test)


def test_the_sections_stand_in_their_order(page):
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)


def test_the_contents_lead_to_every_section(page):
    assert [link for link in page.links if link.startswith("#")][: len(SECTIONS)] == [f"#{name}" for name in SECTIONS]


def test_nothing_is_loaded_from_elsewhere(written, page):
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "http" not in written
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", written)


def test_identifiers_are_unique(page):
    assert len(set(page.ids)) == len(page.ids)


def test_every_image_says_what_it_shows(page):
    named = [image["alt"] for image in page.images if image["alt"]]
    assert "left & top, sample 0 of seed 0" in named
    # Those of the strip under the title are hidden from screen readers, for they come again below.
    assert len(named) > 0.9 * len(page.images)


def test_what_was_given_is_text_and_not_markup(inputs, written, page):
    assert inputs.title in page.text
    assert inputs.command in page.text
    assert inputs.title not in written
    assert html.escape(inputs.machine["processor"]) in written


def test_the_figures_at_the_top_are_those_that_were_measured(inputs, page):
    scores = inputs.measured.scores
    top = page.text[page.text.index("Results", 200) : page.text.index("unfog train toy")]
    for score, percent in (
        (scores.samples.frechet, False),
        (scores.samples.precision, True),
        (scores.samples.recall, True),
        (scores.accuracy.score, True),
        (inputs.measured.loss_test.network, False),
    ):
        value, interval = rounded(score, percent=percent)
        assert f"{value} {interval}" in top
    assert scores.features.name in top


def test_every_metric_is_listed_beside_the_real_images(inputs, page):
    table = page.text[page.text.index("what it says") :]
    for name in ("frechet", "precision", "recall", "density", "coverage"):
        percent = name in ("precision", "recall", "coverage")
        for side in (inputs.measured.scores.samples, inputs.measured.scores.floor):
            assert " ".join(rounded(getattr(side, name), percent=percent)) in table


def test_what_was_asked_for_is_shown_beside_chance_and_what_is_misread(inputs, page):
    shares = [proportion(k, 90) for k in range(60, 80)]
    found = Adherence(
        named=shares[0],
        attributes={"colour 1": shares[1], "count": shares[2]},
        by_count={"1": shares[3], "2": shares[4]},
        binding=shares[5],
        chance={"named": shares[6], "binding": shares[7], "colour 1": shares[8]},
        reading_error={"clean": shares[9], "blurred <a bit>": shares[10]},
        samples=1234,
    )
    told = Page(render(replace(inputs, adherence=found))).text
    values = [spoken(share, percent=True) for share in shares]
    for row in (
        f"all attributes {values[0]} {values[6]} 90",
        f"all, 1 object {values[3]} – 90",
        f"all, 2 objects {values[4]} – 90",
        f"binding of two objects {values[5]} {values[7]} 90",
        f"colour 1 {values[1]} {values[8]} 90",
        f"count {values[2]} – 90",
        f"clean {values[9]}",
        f"blurred <a bit> {values[10]}",
        "1,234 samples",
    ):
        assert row in told
    assert "what was asked for" not in page.text


def test_the_losses_are_those_that_were_measured(inputs, page):
    assert spoken(inputs.measured.loss_train.network) in page.text
    curve = inputs.measured.levels_test
    for values in (curve.prediction.values, curve.zero.values):
        assert f"{values[7]:.4g}" in page.text


def test_the_settings_are_shown(page):
    for text in ("lr 0.00042", "betas [0.9, 0.98]"):
        assert text in page.text


def test_time_and_memory_are_shown(page):
    # A quarter of 0.2 s a step was waiting.
    for text in ("training 1 min 13 s", "waiting for data 25.0 %", "a training step (median) 200 ms", "peak 3 MiB"):
        assert text in page.text


def test_no_number_is_called_by_the_name_of_another_network(page):
    assert page.text.count("FID") == page.text.count("not FID")


def test_the_same_inputs_give_the_same_page(inputs, written):
    assert render(inputs) == written


def test_a_page_made_without_the_images_is_the_same(inputs, written):
    forgotten = replace(inputs.measured, images=None)
    assert render(replace(inputs, measured=forgotten)) == written


def test_the_modes_of_the_network_come_back(inputs):
    inputs.pipeline.denoiser.train()
    render(replace(inputs, measured=None, log=[]))
    assert inputs.pipeline.denoiser.network.dropout.training
    inputs.pipeline.denoiser.eval()


def test_the_barest_run_has_all_sections(bare):
    page = Page(render(bare))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    for text in ("was not measured", "cannot be guided", "fewer than two steps", "Nothing was recorded", "2 channels"):
        assert text in page.text


@pytest.mark.parametrize(("channels", "classes"), [(3, 0), (3, 2), (1, 0)])
def test_colour_and_grey_with_and_without_classes_are_reported(toy_pipeline, toy_dataset, channels, classes):
    pipeline, task = toy_pipeline(channels, classes)
    train, test = (toy_dataset(20, seed, channels, labelled=bool(classes)) for seed in (0, 1))
    text = Page(render(ReportInputs("plain", "", SETTINGS, LOG, pipeline, task, train, test))).text
    assert "channels, of which" not in text
    assert ("Samples by class" in text) == bool(classes)


def test_what_is_no_image_is_refused(bare):
    pipeline = bare.pipeline
    wrong = Pipeline(pipeline.denoiser, pipeline.conditioner, pipeline.codec, (4, 2), pipeline.settings)
    with pytest.raises(ValueError, match="model of images"):
        render(replace(bare, pipeline=wrong))


def test_a_page_of_one_picture_says_what_is_left_out_and_why(toy_pipeline, toy_dataset, effort, tmp_path):
    pipeline, task = toy_pipeline(3, 0)
    one = toy_dataset(1, 0, 3, labelled=False)
    found = measure(
        pipeline, task, one, one, samples=2, guidance=1.0, seed=0, batch_size=2, cache=tmp_path, effort=effort
    )
    page = Page(render(ReportInputs("one", "", {}, [], pipeline, task, one, one, found)))
    for reason in found.scores.missing:
        assert page.text.count(reason) == 2  # beside the results and under the metrics
    assert "1 held-out example and on 1 training example" in page.text
    assert "of a single example over several noises" in page.text
    assert any(image["alt"] == "training example 0" for image in page.images)
    assert "Features are those of" not in page.text


def test_the_file_is_the_page(bare, tmp_path):
    write_report(tmp_path / "report.html", bare)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(bare)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_fails_leaves_the_one_before(bare, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    network = torch.nn.Conv2d(9, 9, 1)
    broken = Pipeline(network, bare.pipeline.conditioner, bare.pipeline.codec, (2, 8, 8), bare.pipeline.settings)
    with pytest.raises(AttributeError):
        write_report(path, replace(bare, pipeline=broken))
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
