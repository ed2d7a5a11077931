"""What the records of classifiers of noisy data say, as Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.campaign.jobs import CLASSIFIERS, SEEDS, Classifier
from benchmarks.campaign.show_recipes import commands_of, core_minutes, number, of_seeds, pooled, share
from unfog.evaluation.card import require_alike


def overview(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table for each classifier: what it knows at each noise level, over the seeds.

    Raises:
        IncomparableError: if two seeds of a recipe were not trained and measured alike.
    """
    lines = []
    for recipe in CLASSIFIERS:
        done = of_seeds(records, [Classifier(recipe, seed) for seed in SEEDS])
        if not done:
            continue
        measured = [record["measured"] for record in done]
        first, levels = measured[0], [one["evaluation"]["levels"] for one in measured]
        require_alike(
            {
                f"training {place}": {
                    "steps": one["steps"],
                    "batch size": one["batch_size"],
                    "data": one["data"]["fingerprint"],
                    "levels": [level["log_snr"] for level in found],
                    "examples": found[0]["accuracy"]["count"],
                }
                for place, (one, found) in enumerate(zip(measured, levels, strict=True), 1)
            }
        )
        machine = first["evaluation"]["machine"]
        lines += [
            f"`{recipe}`, {len(done)} of {len(SEEDS)} seeds: {first['steps']} steps of {first['batch_size']} noisy "
            f"examples of {first['data']['name']} in {core_minutes(done)}; right answers on "
            f"{levels[0][0]['accuracy']['count']} examples of {first['evaluation']['dataset']} at each noise level.",
            "",
            f"```sh\n{commands_of(done)}\n```",
            "",
            "| log-SNR | right answers | cross entropy, nats |",
            "|---|---|---|",
        ]
        for at in zip(*levels, strict=True):
            accuracy, entropy = ([level[name] for level in at] for name in ("accuracy", "cross_entropy"))
            lines.append(f"| {at[0]['log_snr']:.1f} | {pooled(accuracy, share)} | {pooled(entropy, number)} |")
        lines += [
            "",
            f"{machine['processor']}, {machine['threads']} threads, accelerator: {machine['accelerator']}, torch "
            f"{machine['torch']}, {', '.join(sorted({one['evaluation']['machine']['date'] for one in measured}))}.",
            "",
        ]
    return lines
