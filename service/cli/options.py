"""What commands have in common on the command line: arguments and options, and the choices of a request."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service.request import ON_DEMAND_OUTPUTS, Mode, Output, PostProcessing, SegmentationRequest, SegType

DEFAULT_URL = "http://127.0.0.1:8000"

StudyArgument = Annotated[
    Path, typer.Argument(metavar="PATH", help="NIfTI file, zip, or folder of DICOM files.", exists=True)
]
StudiesArgument = Annotated[
    list[Path], typer.Argument(metavar="PATH", help="NIfTI file, zip, or folder of DICOM files.", exists=True)
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id or name of a model.")]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        help="Labels, groups (organs, tumors, cysts, lesions, all) or SNOMED CT codes, comma separated; all otherwise.",
        metavar="A,B",
    ),
]
ModeOption = Annotated[Mode, typer.Option(help="Speed against accuracy: how far neighboring windows overlap.")]
OverlapOption = Annotated[
    float | None, typer.Option(help="Overlap of windows, 0 to 0.9, instead of the mode's.", min=0.0, max=0.9)
]
PostProcessingOption = Annotated[
    PostProcessing, typer.Option(help="Rules that clean the masks: ours, the published implementation's, or none.")
]
OutputsOption = Annotated[
    str | None,
    typer.Option(
        help=f"Files to write beside findings.json, comma separated: {', '.join(Output)}; all but "
        f"{', '.join(ON_DEMAND_OUTPUTS)} otherwise.",
        metavar="A,B",
    ),
]
SegTypeOption = Annotated[SegType, typer.Option(help="Type of the DICOM SEG of organs.")]
DeidentifyOption = Annotated[
    bool, typer.Option("--deidentify", help="Leave patient, study identifiers and dates out of the DICOM objects.")
]
SeriesOption = Annotated[
    str | None,
    typer.Option(help="SeriesInstanceUID of the CT series to segment (DICOM only); chosen by rule otherwise."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        help="API key of the service; for a service on this machine, the key that it has kept here otherwise.",
        envvar="VISCERA_API_KEY",
        metavar="KEY",
        show_envvar=True,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs on stdout, and nothing else there; progress on stderr.")
]
UrlOption = Annotated[str, typer.Option(help="Address of the service.", envvar="VISCERA_URL")]


def split_names(names: str | None) -> tuple[str, ...] | None:
    """The names of a list as it is typed, each once; None when there is none."""
    return tuple(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip())) or None


def request_of(**choices: object) -> SegmentationRequest:
    """The choices as a request; one that no request can have is a usage error."""
    try:
        return SegmentationRequest.model_validate(choices)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
