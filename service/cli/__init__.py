"""The `viscera` command: what a user types, and nothing else; the work is in the modules beside this one.

Each command imports its work when it runs, so that `viscera --help` is quick and `submit` needs no numerical stack.
Exit status: 0 done; 1 `doctor` found something missing; 2 a problem, said in one line; 130 interrupted.
"""

import functools
import sys
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, ParamSpec
from uuid import UUID

import typer
from pydantic import ValidationError

from service.jobs.job import Priority
from service.request import ON_DEMAND_OUTPUTS, Mode, Output, PostProcessing, SegmentationRequest, SegType

Parameters = ParamSpec("Parameters")

DEFAULT_URL = "http://127.0.0.1:8000"
INTERRUPTED = 130

app = typer.Typer(
    name="viscera",
    help="Segments organs and lesions of a CT. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

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
        f"{' and '.join(ON_DEMAND_OUTPUTS)} otherwise.",
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


def main() -> None:
    """Entry point of the `viscera` script."""
    app()


def _exits(work: Callable[Parameters, int]) -> Callable[Parameters, None]:
    """The work as a command: its number becomes the exit status, and a typed error one line on stderr."""

    @functools.wraps(work)
    def command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            status = work(*args, **kwargs)
        except KeyboardInterrupt:
            status = INTERRUPTED
        except Exception as error:
            from service.cli.console import report

            if not report(error):
                raise
            status = 2
        raise typer.Exit(status)

    return command


@app.command("serve")
@_exits
def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on; VISCERA_HOST otherwise.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for a free one; VISCERA_PORT otherwise.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for jobs and files; VISCERA_DATA_DIR otherwise.")
    ] = None,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Without worker and sweeper, where these run as services of their own.")
    ] = False,
) -> int:
    """Start the service: API, a worker and the sweeper, with no other server needed."""
    from service.cli.serve import serve

    return serve(host=host, port=port, data_dir=data_dir, api_only=api_only)


@app.command("worker")
@_exits
def worker_command() -> int:
    """Start one more worker for the job table and queue of the settings."""
    from service.settings import Settings
    from service.worker import run_worker

    return run_worker(Settings())


@app.command("scp")
@_exits
def scp_command() -> int:
    """Take CT studies from the DICOM network (C-STORE) as jobs."""
    from service.cli.scp import listen

    return listen()


@app.command("push")
@_exits
def push_command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a succeeded job.")],
    to: Annotated[str, typer.Option(help="Names of peers in VISCERA_PEERS, comma separated.", metavar="A,B")],
) -> int:
    """Send the DICOM results of a job to a PACS once more."""
    from service.cli.push import push

    return push(job, _split(to) or ())


@app.command("segment")
@_exits
def segment_command(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="NIfTI file, zip, or folder of DICOM files.", exists=True),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; one folder per study when there are several.")],
    bundle: Annotated[str | None, typer.Option(help="Path, id or name of a bundle; the default otherwise.")] = None,
    targets: TargetsOption = None,
    mode: ModeOption = Mode.ACCURATE,
    overlap: OverlapOption = None,
    postprocessing: PostProcessingOption = PostProcessing.VISCERA,
    series: SeriesOption = None,
    outputs: OutputsOption = None,
    seg_type: SegTypeOption = SegType.BINARY,
    deidentify: DeidentifyOption = False,
    engine: Annotated[str | None, typer.Option(help="auto, cuda, tensorrt, openvino or onnxruntime.")] = None,
    precision: Annotated[str | None, typer.Option(help="A precision that the bundle offers: fp32, fp16, bf16.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Segment studies here and now, without a service."""
    from service.cli.segment import segment

    choices = request_of(
        targets=_split(targets),
        mode=mode,
        overlap=overlap,
        postprocessing=postprocessing,
        series=series,
        outputs=_split(outputs),
        seg_type=seg_type,
        deidentify=deidentify,
    )
    return segment(studies, out, choices, bundle=bundle, engine=engine, precision=precision, as_json=as_json)


@app.command("submit")
@_exits
def submit_command(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="NIfTI file, zip, or folder of DICOM files.", exists=True),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs and print their findings.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to download the results to, one folder per study when there are several; implies --wait."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Id or name of a model of the service.")] = None,
    targets: TargetsOption = None,
    mode: ModeOption = Mode.ACCURATE,
    overlap: OverlapOption = None,
    postprocessing: PostProcessingOption = PostProcessing.VISCERA,
    series: SeriesOption = None,
    outputs: OutputsOption = None,
    seg_type: SegTypeOption = SegType.BINARY,
    deidentify: DeidentifyOption = False,
    priority: Annotated[Priority, typer.Option(help="Which job a free worker takes first.")] = Priority.ROUTINE,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="Run the job even where its result is stored already.")
    ] = False,
    batch_id: Annotated[
        str | None, typer.Option(help="Name that the jobs share; several studies get one otherwise.", metavar="NAME")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Fail a job that runs longer; the service's limit otherwise.", metavar="SECONDS"),
    ] = None,
    callback_url: Annotated[
        str | None, typer.Option(help="https address that the service tells when a job has ended.", metavar="URL")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Peers of the service that get the DICOM results, comma separated.", metavar="A,B"),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="The same command with the same key makes no second job; for one study. Repeats after a broken "
            "connection are safe without it.",
            metavar="KEY",
        ),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> int:
    """Send studies to a running service, each as a job of its own."""
    from service.cli.local_key import key_for
    from service.cli.submit import Handling, submit

    if idempotency_key is not None and len(studies) > 1:
        raise typer.BadParameter("--idempotency-key is for one study; send each by itself.")

    choices = request_of(
        targets=_split(targets),
        mode=mode,
        overlap=overlap,
        postprocessing=postprocessing,
        series=series,
        outputs=_split(outputs),
        seg_type=seg_type,
        deidentify=deidentify,
    )
    key = key_for(url, api_key)
    handling = Handling(priority, not no_reuse, batch_id, time_limit, callback_url, _split(push) or (), idempotency_key)
    return submit(
        studies,
        choices,
        url=url,
        api_key=key,
        wait=wait or out is not None,
        out=out,
        model=model,
        handling=handling,
        as_json=as_json,
    )


@app.command("open")
@_exits
def open_command(
    job: Annotated[UUID, typer.Argument(metavar="JOB", help="Id of a job.")],
    url: UrlOption = DEFAULT_URL,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address and open nothing.")] = False,
) -> int:
    """Open the page of a service at the result of a job."""
    from service.cli.open import open_job

    return open_job(str(job), url=url, only_print=only_print)


@app.command("demo")
@_exits
def demo_command(
    study: Annotated[
        Path, typer.Argument(metavar="PATH", help="NIfTI file, zip, or folder of DICOM files.", exists=True)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    targets: TargetsOption = None,
) -> int:
    """Start a service, send one study through it, show and fetch the results, stop it."""
    from service.cli.demo import demo

    return demo(study, request_of(targets=_split(targets)), out=out)


models_app = typer.Typer(help="The models that jobs can ask for.", no_args_is_help=True)
app.add_typer(models_app, name="models")
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id or name of a model.")]


@models_app.command("list")
@_exits
def models_list_command(
    url: Annotated[str | None, typer.Option(help="Ask this service instead of looking here.")] = None,
    api_key: ApiKeyOption = None,
) -> int:
    """List the models."""
    from service.cli.models import list_models

    return list_models(url, api_key)


@models_app.command("show")
@_exits
def models_show_command(model: ModelArgument) -> int:
    """Show one model with its labels."""
    from service.cli.models import show_model

    return show_model(model)


@models_app.command("default")
@_exits
def models_default_command(model: ModelArgument) -> int:
    """Make a model the one for requests that name none."""
    from service.cli.models import set_default

    return set_default(model)


@models_app.command("remove")
@_exits
def models_remove_command(model: ModelArgument) -> int:
    """Delete an installed model."""
    from service.cli.models import remove_model

    return remove_model(model)


@models_app.command("pull")
@_exits
def models_pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="universal-swin-unetr, universal-unet, ...")],
    version: Annotated[str, typer.Option(help="Semantic version that the bundle gets.")] = "1.0.0",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights without being asked.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="The published file, fetched before; nothing is downloaded then.")
    ] = None,
) -> int:
    """Fetch published weights and install them as a model."""
    from service.cli.pull import pull

    return pull(name, version=version, accept_licence=accept_licence, weights=weights)


keys_app = typer.Typer(help="API keys of the service.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
@_exits
def keys_create_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, such as the name of a system.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs it submits and sees.")] = "default",
    scopes: Annotated[str, typer.Option(help="submit, read, admin, comma separated.")] = "submit,read",
    rate_limit: Annotated[int | None, typer.Option(help="Most requests per minute.", min=1)] = None,
    quota: Annotated[int | None, typer.Option(help="Most unfinished jobs at a time.", min=1)] = None,
) -> int:
    """Make a key and print it, this once."""
    from service.cli.keys import create_key

    return create_key(name, tenant=tenant, scopes=_split(scopes) or (), rate_limit=rate_limit, quota=quota)


@keys_app.command("list")
@_exits
def keys_list_command() -> int:
    """List the keys; their secrets are not known."""
    from service.cli.keys import list_keys

    return list_keys()


@keys_app.command("revoke")
@_exits
def keys_revoke_command(key: Annotated[str, typer.Argument(metavar="ID", help="Id of a key, from the list.")]) -> int:
    """Refuse a key from now on."""
    from service.cli.keys import revoke_key

    return revoke_key(key)


@keys_app.command("bootstrap")
@_exits
def keys_bootstrap_command() -> int:
    """Make and print the first key, where there has never been one; `viscera serve` does so itself."""
    from service.cli.keys import bootstrap

    return bootstrap()


@app.command("doctor")
@_exits
def doctor_command() -> int:
    """Check this installation and say what is missing."""
    from service.cli.doctor import examine

    return examine()


def _split(names: str | None) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip())) or None


def request_of(**choices: object) -> SegmentationRequest:
    """The choices as a request; one that no request can have is a usage error."""
    try:
        return SegmentationRequest.model_validate(choices)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"viscera {installed_version('viscera')}\n")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
