"""DICOM SR after TID 1500 "Measurement Report" (PS3.16): the numbers of the findings beside the segments they are of.

One measurement group (TID 1411) for each organ and each lesion that has a segment: volume, mean HU and, for lesions,
long and short axis, with finding and finding site. A Comprehensive 3D SR (PS3.3 A.35.13).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)

from service.inference.manifest import Label
from service.reporting.dicom.codes import FAMILY, coded, concept, site_of
from service.reporting.dicom.objects import MANUFACTURER, RESEARCH_USE, Authorship, new_uid
from service.reporting.dicom.segmentation import segment_numbers
from service.reporting.schema import RESEARCH_USE_ONLY, Findings, LesionFinding, OrganFinding

_SERIES_NUMBER = 9103
_UL_PER_ML = 1000.0

_MILLIMETER = concept("mm", "UCUM", "mm")
_CUBIC_MILLIMETER = concept("mm3", "UCUM", "cubic millimeter")  # CID 7462
_HOUNSFIELD = concept("[hnsf'U]", "UCUM", "Hounsfield unit")
_VOLUME = concept("118565006", "SCT", "Volume")
_LONG_AXIS = concept("103339001", "SCT", "Long axis")  # CID 7470
_SHORT_AXIS = concept("103340004", "SCT", "Short axis")
_ATTENUATION = concept("112031", "DCM", "Attenuation Coefficient")
_MEAN = concept("373098007", "SCT", "Mean")
_CT = concept("25045-6", "LN", "CT unspecified body region")  # CID 100
_DEVICE = concept("121007", "DCM", "Device")
_COMMENT = concept("121106", "DCM", "Comment")
_CONTAINS = "CONTAINS"


def measurement_report(
    authorship: Authorship,
    segmentations: Sequence[hd.seg.Segmentation],
    findings: Findings,
    labels: Mapping[str, Label],
    hosts: Mapping[str, Label],
) -> Comprehensive3DSR:
    """The report of all findings that have a segment in one of the segmentations.

    `labels` are by name, `hosts` by lesion id.
    """
    groups = [
        _group(authorship, segment, finding, labels[finding.label], hosts)
        for segmentation in segmentations
        for segment, finding in _segments(segmentation, findings)
    ]
    report = MeasurementReport(
        observation_context=_observer(authorship),
        procedure_reported=_CT,
        imaging_measurements=groups,
    )
    # TID 1500 is extensible (PS3.16 section 6.1.5): the limit of the use stands in the document itself.
    report[0].ContentSequence.append(TextContentItem(_COMMENT, RESEARCH_USE_ONLY, _CONTAINS))
    return Comprehensive3DSR(
        evidence=[*authorship.source_datasets(1, 1), *segmentations],
        content=report[0],
        series_instance_uid=new_uid(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=new_uid(),
        instance_number=1,
        series_description=f"Viscera measurements. {RESEARCH_USE}",
        is_complete=True,
        is_final=False,
        is_verified=False,
        **authorship.equipment,
    )


@dataclass(frozen=True)
class _Segment:
    """The segment that a group is about."""

    segmentation: hd.seg.Segmentation
    number: int
    id: str  #: its tracking id, which is that of the finding


def _segments(
    segmentation: hd.seg.Segmentation, findings: Findings
) -> Iterator[tuple[_Segment, OrganFinding | LesionFinding]]:
    by_id: dict[str, OrganFinding | LesionFinding] = {organ.label: organ for organ in findings.organs}
    by_id |= {lesion.id: lesion for lesion in findings.lesions}
    for tracking_id, number in segment_numbers(segmentation).items():
        yield _Segment(segmentation, number, tracking_id), by_id[tracking_id]


def _group(
    authorship: Authorship,
    segment: _Segment,
    finding: OrganFinding | LesionFinding,
    label: Label,
    hosts: Mapping[str, Label],
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """One measurement group; the tracking UID is the segment's."""
    segmentation, bundle = segment.segmentation, authorship.provenance.bundle
    description = segmentation.get_segment_description(segment.number)
    site = site_of(label, hosts.get(segment.id))
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=description.tracking_uid, identifier=segment.id),
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=segment.number,
            source_series=SourceSeriesForSegmentation(authorship.source.series_uid),
        ),
        finding_category=coded(label.category),
        finding_type=coded(label.type),
        finding_sites=[
            FindingSite(coded(site.anatomy), None if site.laterality is None else coded(site.laterality)),
        ],
        algorithm_id=AlgorithmIdentification(
            name=bundle.name, version=bundle.version, family=FAMILY, manufacturer=MANUFACTURER
        ),
        measurements=list(_measurements(finding)),
    )


def _measurements(finding: OrganFinding | LesionFinding) -> Iterator[Measurement]:
    yield _measured(_VOLUME, round(finding.volume_ml * _UL_PER_ML, 1), _CUBIC_MILLIMETER)
    if finding.mean_hu is not None:
        yield _measured(_ATTENUATION, finding.mean_hu, _HOUNSFIELD, derivation=_MEAN)
    if isinstance(finding, LesionFinding):
        yield _measured(_LONG_AXIS, finding.longest_axial_diameter_mm, _MILLIMETER)
        yield _measured(_SHORT_AXIS, finding.perpendicular_diameter_mm, _MILLIMETER)


def _measured(
    name: CodedConcept, value: float, unit: CodedConcept, derivation: CodedConcept | None = None
) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, derivation=derivation)


def _observer(authorship: Authorship) -> ObservationContext:
    provenance = authorship.provenance
    device = DeviceObserverIdentifyingAttributes(
        uid=new_uid(),
        name=f"{provenance.software} {provenance.software_version}",
        manufacturer_name=MANUFACTURER,
        model_name=provenance.bundle.name,
        serial_number=provenance.bundle.sha256,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=_DEVICE, observer_identifying_attributes=device)
    )
