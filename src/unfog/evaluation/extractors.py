"""Networks that make the features which images are compared in: the published ones, and any of one's own.

===============  ======================================  ==========================================================
``inception``    Inception-v3 of 2015, 2048 features     pytorch-fid's preparation; its Fréchet distance is FID
``inception-tf``  the same network                       TensorFlow's preparation, as torch-fidelity has it
``dinov2``       DINOv2 ViT-L/14, 1024 features          bicubic to 224 x 224 with antialiasing, ImageNet's moments
``dinov2-base``  DINOv2 ViT-B/14, 768 features           the same
``clip``         CLIP ViT-B/32, 512 features             bicubic to 224 x 224 with antialiasing, CLIP's moments
``clip-large``   CLIP ViT-L/14, 768 features             the same
===============  ======================================  ==========================================================

Pictures are stretched to the square, not cut. Grey pictures are repeated to three channels; others are refused.
The network that is trained on the data at hand (``features.FeatureExtractor``) is an ``Extractor`` too.

Source: M. Heusel et al., 2017, arXiv 1706.08500 (Inception). G. Stein et al., "Exposing flaws of generative model
evaluation metrics and their unfair treatment of diffusion models", 2023, arXiv 2306.04675 (DINOv2 features). T.
Kynkäänniemi et al., "The role of ImageNet classes in Fréchet Inception Distance", 2022, arXiv 2203.06026 (CLIP).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.data.dataset import Dataset
from unfog.data.missing import needs_extra
from unfog.diffusion.checks import require
from unfog.evaluation.card import ExtractorCard
from unfog.evaluation.classifier import pieces, to_pixels
from unfog.evaluation.weights import INCEPTION, PublishedModel, file_sha256, folder_sha256
from unfog.files import StoredTensors
from unfog.metrics.inception import Alignment, Inception, prepared

BATCH = 50
"""Pictures at a time, as the published program has it; it changes speed and memory only."""

GREY = "3; grey repeated"

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the channels in 0 .. 1, as the networks' publishers have them."""

SIDE = 224
"""Side of the pictures that DINOv2 is given."""

Prepare = Callable[[Tensor], Tensor]
"""Makes of pictures ``(B, 3, H, W)`` uint8 what a network takes."""


class Extractor(Protocol):
    """Makes features of images, and says how."""

    @property
    def identity(self) -> ExtractorCard:
        """What the network is, and what it does with pictures first."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return features ``(N, D)`` float32 on the CPU of images ``(N, C, H, W)``, uint8 or floats in [-1, 1]."""
        ...

    def of(self, dataset: Dataset, ids: Tensor | None = None) -> Tensor:
        """Return the features of some examples of a data set, or of all."""
        ...

    def logits(self, features: Tensor) -> Tensor | None:
        """Return the logits that the Inception Score is defined by, of features; None for other networks."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """A network and the preparation of its pictures.

    Attributes:
        identity: what they are.
        network: answers to what ``prepare`` made with features ``(B, D)``; in evaluation mode.
        prepare: takes pictures ``(B, 3, H, W)`` uint8.
        head: makes the logits of the Inception Score of features; None where the network has none.
        batch_size: pictures at a time.
    """

    identity: ExtractorCard
    network: nn.Module
    prepare: Prepare
    head: Callable[[Tensor], Tensor] | None = None
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        require(not self.network.training, "a network in evaluation mode; call network.eval()")
        require(self.batch_size >= 1, f"a batch size of at least 1, got {self.batch_size}")

    @property
    def device(self) -> torch.device:
        """Where the network runs: where its parameters are; the CPU if it has none."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images ``(N, C, H, W)``, uint8 or floats in [-1, 1]: ``(N, D)`` float32 on the CPU.

        Raises:
            ValueError: if the images have neither 1 nor 3 channels, or the network's answer is no row for each.
        """
        pixels = to_pixels(images)
        channels = pixels.shape[1]
        require(
            channels in (1, 3),
            f"grey or RGB images for {self.identity.name}, got {channels} channels",
        )
        found = []
        for batch in torch.split(pixels, self.batch_size):
            answer = self.network(self.prepare(batch.to(self.device).expand(-1, 3, -1, -1)))
            require(
                answer.ndim == 2 and len(answer) == len(batch),
                f"features (N, D) from {self.identity.name}, got {tuple(answer.shape)}",
            )
            found.append(answer.float().cpu())
        return torch.cat(found)

    def of(self, dataset: Dataset, ids: Tensor | None = None) -> Tensor:
        """Return the features of some examples of a data set, or of all: ``(N, D)`` float32."""
        chosen = torch.arange(len(dataset)) if ids is None else ids
        return torch.cat([self(dataset.gather(piece)["x0"]) for piece in pieces(chosen)])

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor | None:
        """Return the logits that the Inception Score is defined by, ``(N, classes)``; None for other networks."""
        if self.head is None:
            return None
        return self.head(features.to(self.device)).float().cpu()


class Features(Enum):
    """Which features to measure in, by the names of the command line."""

    OWN = "own"
    INCEPTION = "inception"
    INCEPTION_TF = "inception-tf"
    DINOV2 = "dinov2"
    DINOV2_BASE = "dinov2-base"
    CLIP = "clip"
    CLIP_LARGE = "clip-large"


MODELS = {
    Features.DINOV2: PublishedModel("dinov2-large", "facebook/dinov2-large"),
    Features.DINOV2_BASE: PublishedModel("dinov2-base", "facebook/dinov2-base"),
    Features.CLIP: PublishedModel("clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
    Features.CLIP_LARGE: PublishedModel("clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
}


def published(which: Features, weights: Path | None = None, *, device: torch.device | str = "cpu") -> NetworkExtractor:
    """Return a published feature network, downloading its weights if they are neither given nor in the cache.

    Args:
        which: any but ``OWN``, which is trained on data: see ``features.feature_extractor``.
        weights: a file (Inception) or folder (DINOv2, CLIP) to take instead of the one in the cache.
        device: where it runs.

    Raises:
        FileNotFoundError: if there are no weights; says where to put them and where they come from.
        ValueError: if the weights are those of another network.
        ImportError: if a library that is needed is missing.
    """
    require(which is not Features.OWN, "a published network; the own one is made by feature_extractor")
    if which in MODELS:
        return transformer(MODELS[which].find(weights), device=device)
    alignment = Alignment.TENSORFLOW if which is Features.INCEPTION_TF else Alignment.PYTORCH
    return inception(INCEPTION.find(weights), alignment, device=device)


def inception(
    weights: Path, alignment: Alignment = Alignment.PYTORCH, *, device: torch.device | str = "cpu"
) -> NetworkExtractor:
    """Return the Inception network of FID with weights from a file.

    Args:
        weights: a ``.pth`` file of the public port, or a ``.safetensors`` file with the same names.
        alignment: which published program's preparation to follow.
        device: where it runs.

    Raises:
        ValueError: if names or shapes are not those of the published file.
    """
    network = Inception()
    _load(network, weights)
    sha256 = file_sha256(weights)
    scaled = "2 (x / 255) - 1" if alignment is Alignment.PYTORCH else "(x - 128) / 128"
    identity = ExtractorCard(
        name=INCEPTION.name,
        sha256=sha256,
        resize=f"{alignment.value}, to 299 x 299",
        value_range=scaled,
        channels=GREY,
        title="FID" if sha256.startswith(INCEPTION.digest) else "not FID: other weights",
    )

    def prepare(pixels: Tensor) -> Tensor:
        return prepared(pixels, alignment)

    return NetworkExtractor(identity, network.eval().requires_grad_(False).to(device), prepare, network.logits)


def _load(network: nn.Module, weights: Path) -> None:
    """Load weights strictly; counters of batches, which evaluation does not use, may be left out."""
    if weights.suffix == ".safetensors":
        stored: dict[str, Any] = dict(StoredTensors(weights))
    else:
        try:
            stored = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever unpickling a file of another kind raises
            raise ValueError(f"{weights} holds no weights: {' '.join(str(error).split())}") from error
        require(isinstance(stored, dict), f"a dictionary of weights in {weights}, got {type(stored).__name__}")
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    got = {name: tuple(value.shape) for name, value in stored.items() if name not in optional}
    needed = {name: shape for name, shape in wanted.items() if name not in optional}
    wrong = sorted(name for name in needed.keys() | got.keys() if needed.get(name) != got.get(name))
    require(
        not wrong,
        f"weights of {type(network).__name__} in {weights}; {len(wrong)} tensors are missing, left over or of another "
        f"shape, such as {', '.join(wrong[:3])}",
    )
    network.load_state_dict({**network.state_dict(), **stored})


class _Transformer(nn.Module):
    """Answers with one vector a picture: DINOv2's normalised class token, or CLIP's embedding of the picture."""

    def __init__(self, model: nn.Module, answer: str) -> None:
        super().__init__()
        self.model = model
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self.model(pixel_values=x), self.answer)
        return found


def transformer(folder: Path, *, device: torch.device | str = "cpu") -> NetworkExtractor:
    """Return DINOv2 or CLIP from a folder in the layout of the library transformers.

    Args:
        folder: with ``config.json`` and ``*.safetensors``; what it holds is read from the configuration.
        device: where it runs.

    Raises:
        ImportError: without transformers.
        ValueError: if it is another kind of model, or the weights do not suit the configuration.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    require(kind in ("dinov2", "clip", "clip_vision_model"), f"a DINOv2 or CLIP model in {folder}, got {kind}")
    with needs_extra("transformers", "DINOv2 and CLIP", extra="features"):
        from transformers import CLIPVisionModelWithProjection, Dinov2Model
    cls, answer, side = (
        (Dinov2Model, "pooler_output", SIDE)
        if kind == "dinov2"
        else (CLIPVisionModelWithProjection, "image_embeds", None)
    )
    model, told = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    missing = sorted(map(str, told["missing_keys"]))
    require(not missing, f"all weights of {kind} in {folder}; missing are {', '.join(missing[:3])}")
    side = side or int(model.config.image_size)
    moments, which = (IMAGENET, "ImageNet's") if kind == "dinov2" else (CLIP, "CLIP's")

    def prepare(pixels: Tensor) -> Tensor:
        return normalized(pixels, side, moments)

    return NetworkExtractor(
        identity=ExtractorCard(
            name=folder.resolve().name,
            sha256=folder_sha256(folder),
            resize=f"bicubic, antialiased, rounded to 8 bits, to {side} x {side}",
            value_range=f"x / 255, minus {which} mean, over {which} standard deviation",
            channels=GREY,
        ),
        network=_Transformer(model, answer).eval().requires_grad_(False).to(device),
        prepare=prepare,
    )


def normalized(pixels: Tensor, side: int, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Stretch pictures ``(B, 3, H, W)`` uint8 to a square as Pillow's bicubic filter does, and normalise them."""
    x = pixels.float()
    # Columns first, then rows, each rounded to 8 bits, as Pillow does.
    for size in ((x.shape[2], side), (side, side)):
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).round().clamp(0, 255)
    mean, deviation = (torch.tensor(part, device=x.device)[:, None, None] for part in moments)
    return (x / 255 - mean) / deviation


def of_module(
    network: nn.Module, prepare: Prepare, identity: ExtractorCard, *, batch_size: int = BATCH
) -> NetworkExtractor:
    """Return an extractor of any network.

    Args:
        network: answers to what ``prepare`` made with features ``(B, D)``; in evaluation mode.
        prepare: takes pictures ``(B, 3, H, W)`` uint8.
        identity: what both are; its ``sha256`` is replaced by that of the network's parameters and buffers.
        batch_size: pictures at a time.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return NetworkExtractor(replace(identity, sha256=digest.hexdigest()), network, prepare, batch_size=batch_size)
