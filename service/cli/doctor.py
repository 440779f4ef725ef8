"""`viscera doctor`: what an installation needs, looked at one thing at a time, each with its remedy."""

import importlib
import importlib.metadata
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from service.catalog import Catalog
from service.cli.console import OUT
from service.errors import VisceraError
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.settings import Settings

if TYPE_CHECKING:
    from service.inference.model import Model

PYTHON = (3, 11)
DISTRIBUTION = "viscera"
LOW_DISK_BYTES = 5 * 1024**3
# What hospitals send; uncompressed syntaxes need no decoder.
TRANSFER_SYNTAXES = {
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
}


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"  #: as it should be
    NOTE = "note"  #: works, but worth knowing
    MISSING = "missing"  #: needed; the service will not work without


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine() -> int:
    """Print every check; 1 when something needed is missing, else 0."""
    settings = Settings()
    missing = 0
    for look in _looks(settings):
        for check in look():
            _print(check)
            missing += check.verdict is Verdict.MISSING
    OUT.print("Everything needed is here." if not missing else f"{missing} missing.", style="bold")
    return 1 if missing else 0


def _looks(settings: Settings) -> tuple[Callable[[], Iterator[Check]], ...]:
    return (
        check_python,
        check_packages,
        check_engines,
        lambda: check_gpu(settings),
        check_decoders,
        lambda: check_data_folder(settings),
        lambda: check_database(settings),
        lambda: check_broker(settings),
        lambda: check_default_model(settings),
    )


def check_python() -> Iterator[Check]:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        yield Check("python", Verdict.OK, version)
    else:
        yield Check("python", Verdict.MISSING, version, f"Use Python {'.'.join(map(str, PYTHON))} or later.")


def check_packages() -> Iterator[Check]:
    """The packages that this one declares, and those that a worker needs; without the other extras."""
    declared = importlib.metadata.requires(DISTRIBUTION) or []
    needed = [line for line in declared if "extra ==" not in line or re.search(r"""extra == ['"]worker['"]""", line)]
    names = [re.split(r"[^\w.\-]", line, maxsplit=1)[0] for line in needed]
    absent = [name for name in names if not _installed(name)]
    if absent:
        yield Check("packages", Verdict.MISSING, f"without {', '.join(absent)}", f"pip install {' '.join(absent)}")
    else:
        yield Check("packages", Verdict.OK, f"{len(names)} found")


def check_engines() -> Iterator[Check]:
    """The inference engines and the devices they see; one is enough."""
    found = [*_openvino(), *_onnxruntime()]
    if found:
        yield Check("engines", Verdict.OK, "; ".join(found))
    else:
        yield Check("engines", Verdict.MISSING, "none", "pip install 'viscera[cpu]', or 'viscera[gpu]' with CUDA.")


def check_gpu(settings: Settings) -> Iterator[Check]:
    """Whether the default model can run on a GPU, and why not; needed only where the settings ask for it."""
    try:
        from service.inference.bundle import open_bundle
        from service.inference.engines import GPU_ENGINES, EngineName, open_engine

        bundle = open_bundle(Catalog.from_settings(settings).find().path)
    except (VisceraError, ImportError):
        return  # the default model's own check says it
    asked = [EngineName(settings.engine)] if settings.engine in GPU_ENGINES else [EngineName.CUDA]
    for name in asked:
        try:
            opened = open_engine(
                bundle,
                name,
                precision=settings.precision,
                threads=settings.threads,
                cache=settings.engine_cache_dir,
            )
        except VisceraError as error:
            needed = settings.engine == name
            remedy = "Mend it, or set VISCERA_ENGINE to auto." if needed else ""
            yield Check("gpu", Verdict.MISSING if needed else Verdict.NOTE, error.detail, remedy)
        else:
            yield Check("gpu", Verdict.OK, f"{name} runs {bundle.manifest.name} in {opened.precision}")


def _openvino() -> Iterator[str]:
    try:
        openvino = importlib.import_module("openvino")
        devices = openvino.Core().available_devices
    except (ImportError, RuntimeError):
        return
    yield f"OpenVINO {openvino.__version__.split('-')[0]} ({', '.join(devices)})"


def _onnxruntime() -> Iterator[str]:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
        providers = onnxruntime.get_available_providers()
    except (ImportError, RuntimeError):
        return
    names = (provider.removesuffix("ExecutionProvider") for provider in providers)
    yield f"onnxruntime {onnxruntime.__version__} ({', '.join(names)})"


def check_decoders() -> Iterator[Check]:
    """A decoder for each compressed DICOM transfer syntax that is met in practice."""
    try:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID
    except ImportError:
        yield Check("decoders", Verdict.MISSING, "no pydicom", "pip install 'pydicom>=3'")
        return
    without = [name for name, uid in TRANSFER_SYNTAXES.items() if not get_decoder(UID(uid)).is_available]
    if without:
        remedy = "pip install pylibjpeg pylibjpeg-openjpeg pyjpegls python-gdcm"
        yield Check("decoders", Verdict.MISSING, f"none for {', '.join(without)}", remedy)
    else:
        yield Check("decoders", Verdict.OK, ", ".join(TRANSFER_SYNTAXES))


def check_data_folder(settings: Settings) -> Iterator[Check]:
    """Whether files can be written where jobs are kept, and how many more."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"viscera")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = "Make it writable, or set VISCERA_DATA_DIR to a folder that is."
        yield Check("data folder", Verdict.MISSING, f"{folder}: {error.strerror}", remedy)
        return
    yield Check("data folder", Verdict.OK, str(folder))
    if free < LOW_DISK_BYTES:
        yield Check("disk space", Verdict.NOTE, f"{free / 1e9:.1f} GB free", "Large studies may not fit.")
    else:
        yield Check("disk space", Verdict.OK, f"{free / 1e9:.0f} GB free")


def check_database(settings: Settings) -> Iterator[Check]:
    """Whether the job table can be opened."""
    try:
        with closing(JobStore(settings.database_url)) as store:
            jobs = sum(store.counts().values())
    except (VisceraError, SQLAlchemyError, ImportError) as error:
        yield Check("database", Verdict.MISSING, _first_line(error), "Start it, or correct VISCERA_DATABASE_URL.")
    else:
        yield Check("database", Verdict.OK, f"{jobs} jobs")


def check_broker(settings: Settings) -> Iterator[Check]:
    """Whether the queue answers."""
    name = "embedded queue" if settings.embedded_broker else "broker"
    try:
        with closing(JobStore(settings.database_url)) as store, closing(JobQueue(settings, store)) as queue:
            waiting = queue.waiting()
    except (VisceraError, SQLAlchemyError, ImportError):
        waiting = None
    if waiting is None:
        yield Check(name, Verdict.MISSING, "does not answer", "Start it, or correct VISCERA_BROKER_URL.")
    else:
        yield Check(name, Verdict.OK, f"{waiting} messages")


def check_default_model(settings: Settings) -> Iterator[Check]:
    """Whether the default bundle is intact and computes on this machine what it computed when it was written."""
    try:
        from service.inference.model import load_bundle

        entry = Catalog.from_settings(settings).find()
        model = load_bundle(
            entry.path,
            engine=settings.engine,
            precision=settings.precision,
            threads=settings.threads,
            engine_cache=settings.engine_cache_dir,
        )
    except VisceraError as error:
        remedy = "Install the bundle again, or set VISCERA_BUNDLES_DIR and VISCERA_DEFAULT_MODEL."
        yield Check("default model", Verdict.MISSING, f"{error.title}: {error.detail}", remedy)
    except ImportError as error:
        yield Check("default model", Verdict.MISSING, f"cannot be opened ({error})", "Install what is missing above.")
    else:
        used = model.predictor.engine
        detail = f"{entry.id}, self-test passed with {used.name} in {used.precision}"
        yield Check("default model", Verdict.OK, detail)
        yield from _faster_precision(entry.path, model, settings.threads)


def _faster_precision(path: Path, used: "Model", threads: int | None) -> Iterator[Check]:
    """A precision that the model at `path` offers and in which this processor is faster than in the one in use."""
    from service.inference.engines import AUTO_PRECISION, DEFAULT_PRECISION, EngineName, precisions_to_try
    from service.inference.model import load_bundle

    engine, manifest = used.predictor.engine, used.bundle.manifest
    if (engine.name, engine.precision) != (EngineName.OPENVINO, DEFAULT_PRECISION):
        return
    fastest = precisions_to_try(used.bundle, EngineName.OPENVINO, AUTO_PRECISION)[0].name
    if fastest == engine.precision:
        return
    with suppress(VisceraError):
        load_bundle(path, engine=EngineName.OPENVINO, precision=fastest, threads=threads)
        detail = f"{manifest.name} is faster on this processor in {fastest}"
        yield Check("precision", Verdict.NOTE, detail, f"Set VISCERA_PRECISION to {fastest} to use it.")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _print(check: Check) -> None:
    style = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.MISSING: "bold red"}[check.verdict]
    OUT.print(f"{check.verdict:<8}", style=style, end="")
    OUT.print(f"{check.name:<16}{check.detail}", soft_wrap=True, markup=False)
    if check.remedy:
        OUT.print(f"{'':<24}{check.remedy}", soft_wrap=True, markup=False)
