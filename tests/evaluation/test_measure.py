import json

import pytest
import torch

from unfog.data.dataset import to_uint8
from unfog.diffusion.analytic import point_mass
from unfog.diffusion.process import Gaussian
from unfog.diffusion.schedule import Cosine, linear
from unfog.evaluation.loss import expected_loss
from unfog.evaluation.measure import Measured, describe, draw, measure, worded
from unfog.evaluation.scores import Missing
from unfog.pipeline import Pipeline
from unfog.sampling.codec.codec import Identity
from unfog.sampling.conditioning.conditioner import Unconditional
from unfog.sampling.gaussian import DDIM, Heun
from unfog.sampling.grid import Trailing
from unfog.sampling.request import SampleRequest, SampleSettings


def test_samples_are_spread_evenly_over_the_classes(measured):
    found = measured[-1]
    labels = [found.label_of(k) for k in range(found.samples)]
    assert abs(labels.count(0) - labels.count(1)) <= 1


def test_the_samples_are_those_of_the_seed_at_the_guidance_asked_for(measured):
    pipeline, *_, found = measured
    settings = SampleSettings(pipeline.settings.sampler, pipeline.settings.grid, 3, guidance=2.0)
    request = SampleRequest(25, [k % 2 for k in range(25)], seed=3, settings=settings)
    assert torch.equal(found.images, to_uint8(pipeline.sample(request).x))


def test_the_settings_and_the_evaluations_are_those_that_were_used(measured):
    pipeline, *_, found = measured
    assert (found.guidance, found.evaluations, found.samples) == (2.0, 6, 25)
    assert found.settings == "DDIM(eta=0) on Trailing, 3 steps, guidance 2"
    assert pipeline.settings.guidance == 1.0


def test_everything_but_the_images_survives_json(measured):
    found = measured[-1]
    back = Measured.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back == found
    assert back.images is None


def test_images_that_were_not_kept_are_drawn_again(measured):
    pipeline, *_, found = measured
    back = Measured.from_dict(found.to_dict())
    assert torch.equal(back.drawn(pipeline, [13, 4]), found.drawn(pipeline, [13, 4]))


def test_the_loss_is_that_of_the_network_that_samples(toy_pipeline, toy_dataset, effort, tmp_path):
    pipeline, own = toy_pipeline()
    _, trained = toy_pipeline()
    with torch.no_grad():
        trained.denoiser.network.slope.fill_(5.0)
    train, test = toy_dataset(60, 0), toy_dataset(30, 1)
    found = measure(
        pipeline, trained, train, test, samples=12, guidance=1.0, seed=3, batch_size=12, cache=tmp_path, effort=effort
    )
    assert found.loss_test == expected_loss(own, test, count=16, seed=3)
    assert found.loss_test != expected_loss(trained, test, count=16, seed=3)


def test_sampling_is_timed_per_image(measured):
    found = measured[-1]
    assert 0 < found.seconds_per_image == found.sampling_seconds / 25


def test_the_batch_size_does_not_change_the_samples(toy_pipeline):
    pipeline, _ = toy_pipeline()
    labels = [k % 2 for k in range(9)]
    few, many = (draw(pipeline, SampleRequest(9, labels, batch_size=size)) for size in (4, 9))
    assert torch.equal(few, many)


def test_a_model_without_classes_is_measured_without_accuracy(toy_pipeline, toy_dataset, effort, tmp_path):
    pipeline, task = toy_pipeline(classes=0)
    train, test = toy_dataset(60, 0, labelled=False), toy_dataset(30, 1, labelled=False)
    found = measure(
        pipeline, task, train, test, samples=12, guidance=1.0, seed=0, batch_size=12, cache=tmp_path, effort=effort
    )
    assert (found.classes, found.label_of(5)) == (0, None)
    assert isinstance(found.scores.accuracy, Missing)
    assert Measured.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize("classes", [0, 2])
def test_one_picture_is_measured_as_far_as_one_can_be(toy_pipeline, toy_dataset, effort, tmp_path, classes):
    pipeline, task = toy_pipeline(classes=classes)
    one = toy_dataset(1, 0, labelled=bool(classes))
    found = measure(
        pipeline, task, one, one, samples=3, guidance=1.0, seed=0, batch_size=12, cache=tmp_path, effort=effort
    )
    assert isinstance(found.scores.features, Missing)
    assert isinstance(found.scores.accuracy, Missing) == (classes == 0)
    assert found.loss_test.network.count == 1
    assert Measured.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_guidance_without_classes_is_refused(toy_pipeline, toy_dataset, effort, tmp_path):
    pipeline, task = toy_pipeline(classes=0)
    data = toy_dataset(60, 0, labelled=False)
    with pytest.raises(ValueError, match="guidance"):
        measure(pipeline, task, data, data, samples=4, guidance=2.0, seed=0, batch_size=4, cache=tmp_path)


def test_a_denoiser_without_a_network_is_refused(toy_pipeline, toy_dataset, tmp_path):
    pipeline, task = toy_pipeline(classes=0)
    exact = point_mass(Gaussian(Cosine()), torch.zeros(1, 8, 8))
    wrong = Pipeline(exact, Unconditional(), Identity(), (1, 8, 8), pipeline.settings)
    data = toy_dataset(30, 0)
    with pytest.raises(ValueError, match="NetworkDenoiser"):
        measure(wrong, task, data, data, samples=4, guidance=1.0, seed=0, batch_size=4, cache=tmp_path)


def test_no_samples_are_refused(toy_pipeline, toy_dataset, tmp_path):
    pipeline, task = toy_pipeline()
    data = toy_dataset(30, 0)
    with pytest.raises(ValueError, match="at least 1 sample"):
        measure(pipeline, task, data, data, samples=0, guidance=1.0, seed=0, batch_size=4, cache=tmp_path)


def test_settings_are_told_by_the_names_of_their_choices():
    assert describe(SampleSettings(Heun(), Trailing(), steps=1)) == (
        "Heun(variable=sigma) on Trailing, 1 step, guidance 1"
    )


def test_guidance_is_told_with_all_that_shapes_it():
    settings = SampleSettings(DDIM(), Trailing(), 4, guidance=3.0, interval=(0.2, 3.0), rescale=0.7, weak=2.0)
    assert describe(settings) == (
        "DDIM(eta=0) on Trailing, 4 steps, guidance 3, noise levels 0.2 to 3, rescale 0.7, weak 2"
    )


def test_long_tables_are_told_by_their_ends():
    assert worded(linear()).startswith("Tabulated(alphas_cumprod=(1000 values, 0.9999 to ")
