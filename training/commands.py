"""The project's other commands, called as anyone would: training imports neither the service nor the exporter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class CommandError(RuntimeError):
    """A command of the project could not be run or failed."""


def call(program: str, *arguments: str | Path) -> None:
    """Runs the command that lies beside this interpreter; its messages go to standard error. Raises CommandError."""
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    try:
        subprocess.run(command, check=True, env=os.environ | {"COLUMNS": "160"}, stdout=subprocess.DEVNULL)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise CommandError(f"`{program} {arguments[0]}` failed: {error}") from error


def segment(studies: Sequence[Path], out: Path, bundle: str | None) -> None:
    """Results in `out`/<study's name>, of one process for all studies, so that the model is loaded once.

    `bundle` by path or name; None: the default. Raises CommandError, also where only some of the studies failed.
    """
    # With one study `--out` is its own folder, with several the parent of theirs.
    target = out / study_name(studies[0]) if len(studies) == 1 else out
    call("viscera", "segment", *studies, "--out", target, *([] if bundle is None else ["--bundle", bundle]))


def study_name(study: Path) -> str:
    """The name of a study's results: its file's, without ending."""
    return study.name.removesuffix(".gz").removesuffix(".nii")


def export(checkpoint: Path, folder: Path) -> Path:
    """A bundle of a checkpoint in full precision, for an evaluation. Raises CommandError."""
    named = ["--name", "evaluated", "--version", "0.0.0", "--force", "--precisions", "fp32"]
    call("viscera-export", "bundle", checkpoint, "--out", folder, *named)
    return folder / "evaluated-0.0.0"
