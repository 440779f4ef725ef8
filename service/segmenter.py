"""What a worker runs a job with: the bundle's model, opened once and kept warm.

Only the child process of a worker imports this (by the name in the settings): torch and the engines must not be loaded
before the fork.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from service.catalog import Catalog, CatalogEntry
from service.imaging.limits import ReadLimits
from service.inference.model import Model, load_bundle
from service.jobs.job import Notice
from service.neighbours import neighbours
from service.pipeline import segment_study
from service.progress import Progress
from service.request import SegmentationRequest
from service.settings import Settings

log = structlog.get_logger(__name__)


class WarmSegmenter:
    """Runs jobs with the bundles of the settings; the latest used model stays in memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._neighbours = neighbours()
        self._limits = ReadLimits(
            max_expanded_bytes=settings.max_expanded_bytes,
            max_expansion_ratio=settings.max_expansion_ratio,
        )
        self._catalog = Catalog.from_settings(settings)
        self._loading = threading.Lock()
        self._loaded: tuple[CatalogEntry, Model] | None = None

    def warm_up(self) -> None:
        """Open the default bundle and pass its self-test.

        Raises:
            ModelNotFound: no bundle of that name.
            BundleError: it was refused.
        """
        self._model(self._catalog.find())

    def segment(
        self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress
    ) -> Sequence[Notice]:
        """Artifacts of the upload in `out_dir`; returns the warnings of its findings.

        Raises:
            VisceraError: the upload or the bundle was refused; JobCanceled comes through from `progress`.
        """
        opened = self._model(self._catalog.find(model))
        try:
            findings = segment_study(upload, out_dir, opened, request, progress, self._limits, self._neighbours)
        finally:
            self._neighbours.settle()
        return [warning.model_dump(mode="json") for warning in findings.warnings]

    def _model(self, entry: CatalogEntry) -> Model:
        with self._loading:
            if self._loaded is None or self._loaded[0] != entry:
                self._loaded = None  # two models need not fit in memory
                with self._neighbours.loading():
                    model = load_bundle(
                        entry.path,
                        engine=self._settings.engine,
                        precision=self._settings.precision,
                        threads=self._settings.threads,
                        engine_cache=self._settings.engine_cache_dir,
                    )
                self._loaded = (entry, model)
                log.info("model.ready", model=entry.id, sha256=entry.sha256)
            return self._loaded[1]


def open_segmenter(settings: Settings) -> WarmSegmenter:
    """The segmenter of these settings; nothing is loaded yet."""
    return WarmSegmenter(settings)
