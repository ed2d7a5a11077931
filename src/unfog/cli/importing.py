"""``unfog import``."""

import shlex
from pathlib import Path

from unfog.cli.console import output, progress, show, table
from unfog.cli.costs import count
from unfog.cli.errors import CommandError, refusing
from unfog.zoo.load import DIFFUSERS, Imported, import_checkpoint, parameters_of
from unfog.zoo.published import MODELS


def list_models() -> int:
    """List what can be imported."""
    listing = table("name", "description", "of", "parameters>")
    for name, make in MODELS.items():
        model = make()
        shape = "x".join(map(str, (*model.shape[1:], model.shape[0])))
        listing.add_row(name, model.description, shape, count(parameters_of(model.network)))
    listing.add_row(DIFFUSERS, "any UNet2DModel or DiTTransformer2DModel, from its folder with config.json", "", "")
    show("published models", listing)
    return 0


def run(path: Path | None, name: str | None, out: Path | None, *, entry: str | None, data: str | None) -> int:
    """Import a published checkpoint; see ``commands.running.import_``."""
    if path is None or name is None:
        raise CommandError("give a file or folder and --as NAME, one of those that 'unfog import --list' shows")
    folder = out or Path("runs") / (name if name != DIFFUSERS else path.resolve().name)
    command = shlex.join(["unfog", "import", str(path), "--as", name, "--out", str(folder)])
    with refusing():
        imported = import_checkpoint(path, name, folder, entry=entry, data=data, command=command)
    _tell(imported)
    output().print(str(folder), markup=False, soft_wrap=True)
    return 0


def _tell(imported: Imported) -> None:
    run, recipe = imported.run, imported.run.recipe
    told = [f"{theirs} was left out: it {why}" for theirs, why in imported.left_out.items()]
    if run.manifest.data.latent:
        told.append(
            "it diffuses codes of pictures, and the autoencoder that makes pictures of them is not part of Unfog yet: "
            "samples are NumPy files of codes"
        )
    settings = recipe.sample
    told.append(
        f"'unfog sample {run.folder}' samples as published, with {settings.cost} a sample; "
        "add --sampler dpmpp --steps 20 for a quick look"
    )
    for line in told:
        progress().print(line, markup=False, soft_wrap=True)
