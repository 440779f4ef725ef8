"""`viscera models pull`: published weights onto this machine and into a bundle of its own, licence said first.

The download goes through huggingface_hub, the conversion through `viscera-export import` in a process of its own: the
service knows neither checkpoints nor training.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from service.catalog import Catalog
from service.cli.console import OUT
from service.errors import PullFailed
from service.settings import Settings

LICENCE = "CC-BY-NC-ND-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-nc-nd/4.0/"


@dataclass(frozen=True)
class PublishedWeights:
    """Where a published checkpoint lies on the Hugging Face hub."""

    repository: str
    file: str


#: Released by the authors of the method, and by the same group's later work SuPreM.
PUBLISHED = {
    "universal-swin-unetr": PublishedWeights(
        "ljwztc/CLIP-Driven-Universal-Model", "clip_driven_universal_swin_unetr.pth"
    ),
    "universal-unet": PublishedWeights("ljwztc/CLIP-Driven-Universal-Model", "clip_driven_universal_unet.pth"),
    "suprem-universal-swin-unetr": PublishedWeights(
        "MrGiovanni/SuPreM", "supervised_clip_driven_universal_swin_unetr_2100.pth"
    ),
    "suprem-universal-unet": PublishedWeights("MrGiovanni/SuPreM", "supervised_clip_driven_universal_unet_2100.pth"),
}

Download = Callable[[PublishedWeights], Path]


def pull(
    name: str,
    *,
    version: str,
    accept_licence: bool,
    weights: Path | None = None,
    download: Download | None = None,
) -> int:
    """Fetch published weights (or take `weights`, a file that was fetched before) and install their bundle; 0.

    Raises:
        PullFailed: an unknown name, a licence that was not accepted, no network, or weights that are not as published.
    """
    if name not in PUBLISHED:
        raise PullFailed(f"There are no published weights {name!r}; known: {', '.join(PUBLISHED)}.")
    _accept(name, accept_licence)
    source = PUBLISHED[name]
    path = weights if weights is not None else (download or download_from_hub)(source)
    if not path.is_file():
        raise PullFailed(f"There is no file {path}.")
    OUT.print(f"SHA-256 of {path.name}: {_sha256(path)}", soft_wrap=True)
    settings = Settings()
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    _import(path, settings.models_dir, name, version)
    entry = Catalog.from_settings(settings).find(f"{name}-{version}")
    OUT.print(f"Installed {entry.id}. `viscera models default {name}` makes it the default.", soft_wrap=True)
    return 0


def _accept(name: str, accepted: bool) -> None:
    OUT.print(
        f"The weights of {name} are published by their authors under {LICENCE} ({LICENCE_URL}): to be named, not for "
        "commercial use, and not to be passed on in changed form. The bundle made from them is for your own use.",
        soft_wrap=True,
    )
    if accepted:
        return
    if not sys.stdin.isatty():
        raise PullFailed("The licence has to be accepted: give --accept-licence.")
    if not typer.confirm("Do you accept this licence?"):
        raise PullFailed("The licence was not accepted; nothing was fetched.")


def download_from_hub(source: PublishedWeights) -> Path:
    """The checkpoint in huggingface_hub's own cache. Raises PullFailed when it cannot be fetched."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise PullFailed("Fetching needs huggingface_hub: pip install 'viscera[pull]'.") from error
    try:
        # The operator is shown the file's SHA-256, and the import takes nothing but tensors from it.
        return Path(huggingface_hub.hf_hub_download(source.repository, source.file))  # nosec B615
    except Exception as error:  # the hub client raises its own types, its HTTP client's and the system's
        raise PullFailed(
            f"{source.file} could not be fetched from {source.repository}: {type(error).__name__}. Check the network, "
            "or fetch the file elsewhere and give it with --weights."
        ) from error


def _import(checkpoint: Path, out: Path, name: str, version: str) -> None:
    command = [str(Path(sys.executable).with_name("viscera-export")), "import", str(checkpoint)]
    command += ["--out", str(out), "--name", name, "--version", version, "--force"]
    try:
        # The program beside this interpreter, with arguments that no shell reads.
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603  # see above
    except OSError as error:
        raise PullFailed(f"viscera-export cannot be started: {error.strerror}.") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise PullFailed(f"viscera-export import refused {checkpoint.name}: {said}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
