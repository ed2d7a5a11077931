"""Published weights of feature networks: where they are looked for, and where they come from.

They are looked for in the folder ``features`` of the cache (``$UNFOG_CACHE`` or ``~/.cache/unfog``), and downloaded
into it once. Where that cannot be, the error says which file to put where, and from which address.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from unfog.data.cache import cache_folder
from unfog.data.missing import needs_extra


@dataclass(frozen=True)
class PublishedFile:
    """Weights in one file.

    Attributes:
        name: of the network, for people.
        files: names under which it is looked for in the cache; the first is what a download is called.
        url: where it comes from.
        digest: first digits of the SHA-256 of what lies there.
    """

    name: str
    files: tuple[str, ...]
    url: str
    digest: str

    def find(self, given: Path | None = None) -> Path:
        """Return the file.

        Args:
            given: a file to take instead of looking for one.

        Raises:
            FileNotFoundError: if it is nowhere and cannot be downloaded; says where to put it.
        """
        if given is not None:
            if not given.is_file():
                raise FileNotFoundError(
                    f"there is no file {given}; expected the weights of {self.name}, from {self.url}"
                )
            return given
        places = [feature_folder() / file for file in self.files]
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            return found
        try:
            self._download(places[0])
        except (OSError, RuntimeError) as error:  # a wrong digest is a RuntimeError
            raise FileNotFoundError(_nowhere(self.name, places, self.url, error)) from error
        return places[0]

    def _download(self, place: Path) -> None:
        from torch.hub import download_url_to_file

        place.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(self.url, str(place), hash_prefix=self.digest, progress=False)


@dataclass(frozen=True)
class PublishedModel:
    """Weights in a folder with a ``config.json``, as the library transformers reads them.

    Attributes:
        name: of the network, for people; also that of its folder in the cache.
        repository: of the Hugging Face hub.
    """

    name: str
    repository: str

    def find(self, given: Path | None = None) -> Path:
        """Return the folder.

        Args:
            given: a folder to take instead of looking for one.

        Raises:
            FileNotFoundError: if it is nowhere and cannot be downloaded; says where to put it.
            ImportError: if it has to be downloaded and the library for that is missing.
        """
        place = given or feature_folder() / self.name
        if _is_model(place):
            return place
        address = f"https://huggingface.co/{self.repository}"
        if given is not None:
            raise FileNotFoundError(
                f"expected config.json and *.safetensors of {self.name} in {given}; download them from {address}"
            )
        with needs_extra("huggingface_hub", f"downloading {self.name}", extra="features"):
            from huggingface_hub import snapshot_download
        try:
            snapshot_download(self.repository, local_dir=place, allow_patterns=["config.json", "*.safetensors"])
        # The library lets through whatever its network and cache raise.
        except Exception as error:
            raise FileNotFoundError(_nowhere(self.name, [place], address, error)) from error
        if not _is_model(place):
            raise FileNotFoundError(
                f"{address} has no config.json and *.safetensors; put those of {self.name} in {place}"
            )
        return place


INCEPTION = PublishedFile(
    name="inception-2015-12-05",
    files=("pt_inception-2015-12-05-6726825d.pth", "inception-2015-12-05.safetensors"),
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    digest="6726825d",
)


def feature_folder() -> Path:
    """Return the folder of the cache that feature networks lie in."""
    return cache_folder() / "features"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, reading it piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 (hex) of the configuration and weights in a folder."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _nowhere(name: str, places: list[Path], address: str, error: Exception) -> str:
    """Say where weights were looked for and how to get them."""
    why = " ".join(str(error).split()) or type(error).__name__
    return (
        f"the weights of {name} are not at {' or '.join(map(str, places))}, and could not be downloaded from {address} "
        f"({why}); put them there, or give them with --weights"
    )
