"""The straight line: an upload becomes masks, findings and artifacts. The page to read first."""

import tempfile
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from service.admission import admit, leaner
from service.imaging.limits import ReadLimits
from service.imaging.study import read_study, read_volume, select_ct_series
from service.imaging.volume import Volume
from service.inference.engines import Engine
from service.inference.masks import Masks
from service.inference.model import Model
from service.inference.prediction import predict
from service.inference.preprocessing import preprocess
from service.inference.restoration import restore_masks
from service.neighbours import NO_NEIGHBOURS, Neighbours
from service.progress import Progress, Stage, no_progress
from service.reporting.artifacts import write_artifacts
from service.reporting.findings import measure
from service.reporting.outputs import plan_outputs
from service.reporting.schema import BundleReference, Findings, Provenance
from service.request import SegmentationRequest
from service.stopwatch import Stopwatch


def segment_study(
    upload: Path,
    out_dir: Path,
    model: Model,
    request: SegmentationRequest,
    progress: Progress = no_progress,
    limits: ReadLimits | None = None,
    neighbours: Neighbours = NO_NEIGHBOURS,
) -> Findings:
    """The findings of the CT in `upload`; every artifact lies in `out_dir` when this returns.

    `limits` bound what reading may cost; None: the reader's own bounds. While the network runs the `neighbours`, jobs
    of the same worker, read and write.

    Raises VisceraError when the upload, a requested label or the engine is refused, and whatever `progress` raises
    (JobCanceled); what `out_dir` holds then is unfinished and the caller's to remove.
    """
    watch = Stopwatch(progress)
    manifest = model.bundle.manifest
    labels = model.bundle.labels_for(request.targets)
    predictor = model.predictor.for_labels(labels, request.postprocessing)

    watch(Stage.READING, 0.0)
    with tempfile.TemporaryDirectory(prefix=".reading-", dir=out_dir) as scratch:
        study = read_study(upload, Path(scratch), limits)
        series = select_ct_series(study, request.series)
        outputs = plan_outputs(request, series)
        lean = admit(series.geometry, manifest, len(predictor.labels), outputs, neighbours, watch)
        volume = outputs.noted_on(read_volume(series, partial(watch, Stage.READING)))
        if lean:
            volume = leaner(volume, out_dir)

    watch(Stage.PREPROCESSING, 0.0)
    windows = manifest.sliding_window.with_overlap(request.window_overlap)
    network_input = preprocess(volume, manifest.preprocessing, predictor.device)
    with neighbours.network(watch):
        prediction = predict(network_input, model, predictor, windows, watch, out_dir)
    del network_input  # on a fine grid it is larger than the scan
    engine, notices = prediction.engine, prediction.notices
    masks = restore_masks(
        prediction.logits,
        labels,
        onto=volume.geometry,
        mask_interpolation=manifest.mask_interpolation_with(request.postprocessing),
        postprocessing=request.postprocessing,
        progress=watch,
    )
    findings = measure(volume, masks, _provenance(volume, masks, model, engine, request), watch, notices)
    findings = _with_timings(outputs.noted_in(findings), watch)
    write_artifacts(out_dir, volume, masks, findings, outputs, watch, one_by_one=lean)
    return findings


def _provenance(volume: Volume, masks: Masks, model: Model, engine: Engine, request: SegmentationRequest) -> Provenance:
    manifest = model.bundle.manifest
    return Provenance(
        bundle=BundleReference(name=manifest.name, version=manifest.version, sha256=model.bundle.sha256),
        software_version=version("viscera"),
        engine=engine.name,
        precision=engine.precision,
        settings=request.mask_settings,
        input_sha256=volume.input_sha256,
        mask_sha256=masks.sha256,
        created=None if request.deidentify else datetime.now(UTC).replace(microsecond=0),
    )


def _with_timings(findings: Findings, watch: Stopwatch) -> Findings:
    """The seconds up to here; writing cannot be among them, since the findings are a part of what is written."""
    provenance = findings.provenance.model_copy(update={"timings_seconds": watch.seconds()})
    return findings.model_copy(update={"provenance": provenance})
