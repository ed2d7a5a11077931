"""How many planted near-copies are found among new pictures, and how many new pictures are flagged with them.

Makes the tables of docs/guides/audit.md:

    python -m benchmarks.near_copies digits mnist cifar10

Half of the held-out examples calibrate the threshold. Among the others, which stand for samples of a generator that
copies nothing, near-copies of training examples are planted, one for 99 of them. The recall of each kind of copy by
itself is measured on a few hundred.
"""

import argparse
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.dataset import Dataset, to_uint8
from unfog.data.order import permutation
from unfog.data.sources import DataSpec, open_parts
from unfog.diffusion.random import Purpose, Rng, seed_of
from unfog.metrics.interval import Score, proportion
from unfog.metrics.memorisation import Likeness, calibrated, picture_likeness, thumbnails

LEVEL = 0.01
HELD_OUT = 10_000
COPIES = 400


def near_copies(pixels: Tensor, seed: int) -> dict[str, Tensor]:
    """Return what becomes of pictures ``(N, C, H, W)`` uint8 that are copied badly, by what was done to them."""
    grey = pixels.float()
    rng = Rng.of(seed_of("near-copies", seed), len(pixels))
    noise = 0.05 * 127.5 * rng.normal(tuple(pixels.shape[1:]), Purpose.NOISE)
    # A shift is drawn of the eight by one pixel, a brightness of the two directions.
    ways = (rng.uniform((), Purpose.SCRATCH) * 8).long()
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]
    shifted = torch.stack([_moved(image, *steps[way]) for image, way in zip(grey, ways.tolist(), strict=True)])
    brighter = 0.15 * 127.5 * torch.where(ways % 2 == 0, 1.0, -1.0)[:, None, None, None]
    return {
        "as it is": pixels,
        "shift": _bytes(shifted),
        "brightness": _bytes(grey + brighter),
        "contrast": _bytes(127.5 + 0.8 * (grey - 127.5)),
        "noise": _bytes(grey + noise),
        "JPEG": torch.stack([_compressed(image, 75) for image in pixels]),
        "mirrored": pixels.flip(-1),
        "all but JPEG": _bytes((shifted + brighter + noise).flip(-1)),
    }


def planted(pixels: Tensor, seed: int) -> Tensor:
    """Return near-copies of pictures, the kinds in turn."""
    made = list(near_copies(pixels, seed).values())
    return torch.stack([made[k % len(made)][k] for k in range(len(pixels))])


@dataclass(frozen=True)
class Found:
    """What was found in one data set.

    Attributes:
        training: number of training examples.
        calibration: number of held-out examples that set the threshold.
        threshold: of the ratio.
        false_positives: share of new pictures that are flagged.
        planted: share of the planted copies that are flagged and traced to their source.
        kinds: the same of each kind of copy by itself.
        compared: pictures that ``seconds`` are for.
        seconds: of the processor.
    """

    training: int
    calibration: int
    threshold: float
    false_positives: Score
    planted: Score
    kinds: Mapping[str, Score]
    compared: int
    seconds: float


def measured(train: Dataset, test: Dataset, seed: int) -> Found:
    """Plant near-copies and look for them; see the module."""
    training = _pixels(train, torch.arange(len(train)))
    order = torch.from_numpy(permutation(len(test), seed_of("near-copies", "held out", seed), 0)[:HELD_OUT])
    held_out = _pixels(test, order)
    half = len(held_out) // 2
    began = time.process_time()
    ratios = picture_likeness(held_out, training).ratios
    seconds = time.process_time() - began
    threshold = calibrated(ratios[:half], LEVEL)
    fresh = ratios[half:]
    sources = torch.from_numpy(permutation(len(train), seed_of("near-copies", "sources", seed), 0)[:COPIES])
    count = max(1, round(len(fresh) / 99))
    among = picture_likeness(planted(training[sources[:count]], seed), training)
    kinds = {}
    for kind, copies in near_copies(training[sources], seed).items():
        kinds[kind] = _found(picture_likeness(copies, training), sources, threshold.ratio, kind)
    return Found(
        training=len(training),
        calibration=half,
        threshold=threshold.ratio,
        false_positives=proportion(int((fresh < threshold.ratio).sum()), len(fresh)),
        planted=_found(among, sources[:count], threshold.ratio, "planted"),
        kinds=kinds,
        compared=len(held_out),
        seconds=seconds,
    )


def _found(likeness: Likeness, sources: Tensor, ratio: float, note: str) -> Score:
    """Return the share of copies that are flagged, and traced to their source."""
    return proportion(int(((likeness.ratios < ratio) & (likeness.indices == sources)).sum()), len(sources), note=note)


def _pixels(dataset: Dataset, ids: Tensor) -> Tensor:
    return torch.cat([thumbnails(to_uint8(dataset.gather(some)["x0"])) for some in torch.split(ids, 2000)])


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    rows = (torch.arange(image.shape[1]) - down).clamp(0, image.shape[1] - 1)
    columns = (torch.arange(image.shape[2]) - right).clamp(0, image.shape[2] - 1)
    return image[:, rows][:, :, columns]


def _bytes(grey: Tensor) -> Tensor:
    return grey.round().clamp(0, 255).to(torch.uint8)


def _compressed(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as opened:
        found = torch.from_numpy(np.array(opened))
    return found.reshape(*image.shape[1:], len(image)).permute(2, 0, 1)


def _told(score: Score) -> str:
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"


def main() -> None:
    """Measure the sets that are named and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="names or paths of data sets")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = {}
    for path in given.data:
        found[path] = measured(*open_parts(DataSpec(path), 0.2), given.seed)
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")

    def row(name: str, cells: list[str]) -> None:
        print(f"| {name} | {' | '.join(cells)} |")

    reports = list(found.values())
    row("training examples", [f"{report.training:,}" for report in reports])
    row("held out, for the threshold", [f"{report.calibration:,}" for report in reports])
    row("threshold of the ratio", [f"{report.threshold:.3f}" for report in reports])
    row("new pictures flagged", [_told(report.false_positives) for report in reports])
    row("1 % planted, all kinds in turn, found", [_told(report.planted) for report in reports])
    for kind in reports[0].kinds:
        row(f"found: {kind}", [_told(report.kinds[kind]) for report in reports])
    row("processor time, pictures compared", [f"{r.seconds:.0f} s, {r.compared:,}" for r in reports])


if __name__ == "__main__":
    main()
