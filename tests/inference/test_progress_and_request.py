"""One percentage for a whole job, and what a caller may ask for."""

import pytest
from pydantic import ValidationError

from service.inference.manifest import MAX_LABELS
from service.progress import Stage, no_progress, overall_percent, stage_fraction
from service.request import MAX_TARGETS, Mode, PostProcessing, SegmentationRequest


def test_percent_rises_from_nothing_to_all_through_every_stage() -> None:
    told = [overall_percent(stage, fraction) for stage in Stage for fraction in (0.0, 0.5, 1.0)]
    assert told[0] == 0.0
    assert told[-1] == pytest.approx(100.0)
    assert told == sorted(told)
    ends = [overall_percent(stage, 1.0) for stage in Stage][:-1]
    starts = [overall_percent(stage, 0.0) for stage in Stage][1:]
    assert ends == pytest.approx(starts)


def test_the_percentage_tells_how_far_a_stage_is() -> None:
    assert stage_fraction(Stage.INFERENCE, overall_percent(Stage.INFERENCE, 0.25)) == pytest.approx(0.25)
    assert stage_fraction(Stage.WRITING, 0.0) == 0.0
    assert stage_fraction(Stage.WAITING, overall_percent(Stage.READING, 1.0)) == 0.0  # it can come anywhere


def test_a_fraction_beyond_its_stage_is_clamped() -> None:
    assert overall_percent(Stage.INFERENCE, -1.0) == overall_percent(Stage.INFERENCE, 0.0)
    assert overall_percent(Stage.INFERENCE, 7.0) == overall_percent(Stage.INFERENCE, 1.0)
    no_progress(Stage.READING, 0.3)


def test_a_request_leaves_everything_to_the_bundle_by_default() -> None:
    assert SegmentationRequest() == SegmentationRequest(
        targets=None, mode=Mode.ACCURATE, overlap=None, postprocessing=PostProcessing.VISCERA
    )
    assert SegmentationRequest().window_overlap is None


@pytest.mark.parametrize(
    ("choices", "overlap"),
    [
        ({"mode": "accurate"}, None),
        ({"mode": "balanced"}, 0.25),
        ({"mode": "fast"}, 0.1),
        ({"mode": "fast", "overlap": 0.0}, 0.0),
        ({"overlap": 0.6}, 0.6),
    ],
)
def test_the_mode_says_how_far_windows_overlap_unless_the_overlap_is_given(
    choices: dict[str, object], overlap: float | None
) -> None:
    assert SegmentationRequest.model_validate(choices).window_overlap == overlap


def test_each_label_of_the_largest_model_can_be_named() -> None:
    assert MAX_TARGETS == MAX_LABELS
    assert len(SegmentationRequest(targets=tuple(f"label_{n}" for n in range(MAX_LABELS))).targets or ()) == 64


@pytest.mark.parametrize(
    "choice",
    [
        {"targets": []},
        {"targets": ["liver", "liver"]},
        {"targets": ["liver tumor"]},
        {"targets": "liver"},
        {"postprocessing": "magic"},
        {"mode": "sloppy"},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"overlap": float("nan")},
        {"speed": "fast"},
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SegmentationRequest.model_validate(choice)
