"""Which CT series of a study is segmented, and why.

    axial before other planes            diameters and most training data are axial
    original before derived              reformats were interpolated once already
    enough coverage                      at least three quarters of the longest among these
    slices of at most 3 mm, then 5 mm    thicker ones hide what is smaller
    not a sharp kernel                   lung and bone kernels are noise to organs and lesions
    thinnest slices, then most of them
    lowest series number, UID, acquisition number: equal so far, which is said with a warning

The caller's word goes before this rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import InputError, SeriesNotFound
from service.imaging.dicom_stack import DicomSeries
from service.imaging.dicom_values import is_uid
from service.imaging.kernels import KernelKind
from service.imaging.volume import Candidate, Notice

#: A series that covers this share of the longest one covers enough.
ENOUGH_COVERAGE = 0.75

#: Slice spacings (mm) up to which series are as good as each other in the first place.
FINE_MM, MEDIUM_MM = 3.0, 5.0

#: Spacings that differ by less are the same choice.
SAME_SPACING_MM = 0.05

# A study may hold dozens of small series; the warnings name the first few, the result all up to this many.
_MAX_REFUSED_NOTICES = 5
_MAX_CANDIDATES = 50

_LINKS = (
    "it is axial",
    "it is original, not derived",
    "it covers enough of the body",
    "its slices are thin enough",
    "its kernel is not sharp",
    "its slices are the thinnest",
    "it has the most slices",
)


@dataclass(frozen=True)
class RefusedSeries:
    """CT images that cannot be segmented, with the reason."""

    uid: str
    number: int | None
    images: int
    error: InputError


def choose_series(
    usable: Sequence[DicomSeries], refused: Sequence[RefusedSeries], requested_uid: str | None
) -> tuple[DicomSeries, tuple[Candidate, ...], tuple[Notice, ...]]:
    """The series by rule or by the caller's UID, every candidate with its reason, and what to warn of.

    Raises:
        SeriesNotFound: the UID asked for is none of the upload's CT series.
        InputError: no series is usable, or not the one asked for; the reason is that of the largest one.
    """
    if requested_uid is not None:
        mine = [series for series in usable if series.uid == requested_uid]
        theirs = [series for series in refused if series.uid == requested_uid]
        if not mine and not theirs:
            known = len({one.uid for one in usable} | {one.uid for one in refused})
            raise SeriesNotFound(
                f"The upload has {known} CT series, and none with the SeriesInstanceUID {requested_uid}."
                " Name one of them, or leave the choice to the rule."
            )
    else:
        mine, theirs = list(usable), list(refused)
    if not mine:
        raise max(theirs, key=lambda one: one.images).error
    ranked = sorted(zip(_ranks(mine), mine, strict=True), key=lambda pair: (pair[0], _tie_break(pair[1])))
    best, chosen = ranked[0]
    second = ranked[1][0] if len(ranked) > 1 else None
    why = _why_chosen(best, second, requested=requested_uid is not None)
    candidates = [_candidate(chosen, why, chosen=True)]
    candidates += [_candidate(one, _why_not(one, rank, chosen, best), chosen=False) for rank, one in ranked[1:]]
    candidates += [_candidate(one, "Another series was asked for.", chosen=False) for one in _others(usable, mine)]
    candidates += [
        Candidate(_shown(one.uid), one.number, one.images, chosen=False, reason=one.error.detail) for one in refused
    ]
    notices = _about_choice(candidates, usable, is_tie=second == best) + _about_refused(refused)
    return chosen, tuple(candidates[:_MAX_CANDIDATES]), notices


Rank = tuple[bool, bool, bool, int, bool, int, int]


def _ranks(series: Sequence[DicomSeries]) -> list[Rank]:
    """The rule in order, lowest first; see the head of the file."""
    like = [(not one.is_axial, not one.is_original) for one in series]
    # Coverage is compared among the best by plane and origin: a long reformat does not make an axial scan short.
    longest = max(one.coverage_mm for one, kind in zip(series, like, strict=True) if kind == min(like))
    return [
        (
            *kind,
            one.coverage_mm < ENOUGH_COVERAGE * longest,
            sum(_thickness_mm(one) > limit + SAME_SPACING_MM for limit in (FINE_MM, MEDIUM_MM)),
            one.kernel_kind is KernelKind.SHARP,
            round(_thickness_mm(one) / SAME_SPACING_MM),
            -one.slices,
        )
        for one, kind in zip(series, like, strict=True)
    ]


def _thickness_mm(series: DicomSeries) -> float:
    """What a slice stands for: its thickness, or the spacing where that is larger or the thickness not stated."""
    return max(series.images[0].slice_thickness_mm or 0.0, series.spacing.normal_spacing_mm)


def _tie_break(series: DicomSeries) -> tuple[float, str, float, str]:
    first = series.images[0]
    number = float("inf") if first.series_number is None else first.series_number
    acquisition = float("inf") if first.acquisition_number is None else first.acquisition_number
    return number, series.uid, acquisition, first.sop_instance_uid


def _why_chosen(best: Rank, second: Rank | None, *, requested: bool) -> str:
    if second is None:
        return "Asked for by its UID." if requested else "The only usable CT series."
    start = "Asked for by its UID, and of its stacks the one taken: " if requested else "Taken by rule: "
    differing = next((n for n, (a, b) in enumerate(zip(best, second, strict=True)) if a != b), None)
    if differing is None:
        return f"{start}equal to the next one in all that the rule asks, and the first by series number."
    return f"{start}{_LINKS[differing]}, unlike the next one."


def _why_not(series: DicomSeries, rank: Rank, chosen: DicomSeries, best: Rank) -> str:
    differing = next((n for n, (a, b) in enumerate(zip(rank, best, strict=True)) if a != b), None)
    if differing is None:
        return "Equal to the series taken in all that the rule asks; it comes later by series number."
    return (
        "Not axial.",
        "Derived, not original.",
        f"Covers {series.coverage_mm:.0f} mm, too little beside {chosen.coverage_mm:.0f} mm.",
        f"Its slices of {_thickness_mm(series):.3g} mm are too thick beside {_thickness_mm(chosen):.3g} mm.",
        "Its kernel is sharp.",
        f"Its slices of {_thickness_mm(series):.3g} mm are thicker than {_thickness_mm(chosen):.3g} mm.",
        f"Has {series.slices} slices, fewer than {chosen.slices}.",
    )[differing]


def _others(usable: Sequence[DicomSeries], mine: Sequence[DicomSeries]) -> list[DicomSeries]:
    ids = {id(one) for one in mine}
    return [one for one in usable if id(one) not in ids]


def _candidate(series: DicomSeries, reason: str, *, chosen: bool) -> Candidate:
    return Candidate(
        series_uid=_shown(series.uid),
        series_number=series.images[0].series_number,
        images=series.images_given,
        chosen=chosen,
        reason=reason,
        plane=series.plane,
        original=series.is_original,
        kernel=series.kernel_kind.value,
        slices=series.slices,
        slice_spacing_mm=series.spacing.normal_spacing_mm,
        slice_thickness_mm=series.images[0].slice_thickness_mm,
        coverage_mm=series.coverage_mm,
        tilt_degrees=series.spacing.tilt_degrees,
    )


def _shown(uid: str) -> str:
    return uid if is_uid(uid) else ""


def _named(uid: str) -> str:
    return uid or "without UID"


def _about_choice(
    candidates: Sequence[Candidate], usable: Sequence[DicomSeries], *, is_tie: bool
) -> tuple[Notice, ...]:
    if len(usable) < 2:
        return ()
    chosen = candidates[0]
    origin = "original" if chosen.original else "derived"
    notices = [
        Notice(
            "series-selected",
            f"{len(usable)} CT series are usable; series {_named(chosen.series_uid)} was taken ({chosen.plane},"
            f" {origin}, {chosen.slices} slices). {chosen.reason}",
        )
    ]
    if is_tie:
        notices.append(
            Notice(
                "series-ambiguous",
                f"Series {_named(chosen.series_uid)} and {_named(candidates[1].series_uid)} are equal by the rule, as"
                " two contrast phases are; the first was taken. Ask for the other one with 'series'.",
            )
        )
    return tuple(notices)


def _about_refused(refused: Sequence[RefusedSeries]) -> tuple[Notice, ...]:
    notices = [
        Notice(
            "series-not-usable",
            f"{one.images} CT images of series {_named(_shown(one.uid))} were left out: {one.error.detail}",
        )
        for one in refused[:_MAX_REFUSED_NOTICES]
    ]
    if (more := len(refused) - _MAX_REFUSED_NOTICES) > 0:
        notices.append(Notice("series-not-usable", f"{more} further groups of CT images were left out."))
    return tuple(notices)
