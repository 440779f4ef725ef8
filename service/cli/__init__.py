"""The `viscera` command: what a user types, and nothing else; the work is in the modules beside this one.

Each command imports its work when it runs, so that `viscera --help` is quick and `submit` needs no numerical stack.
Exit status: 0 done; 1 `doctor` found something missing; 2 a problem, said in one line; 130 interrupted.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from service.cli.exits import exits
from service.cli.groups import keys_app, models_app
from service.cli.options import (
    DEFAULT_URL,
    ApiKeyOption,
    DeidentifyOption,
    JsonOption,
    ModeOption,
    OutputsOption,
    OverlapOption,
    PostProcessingOption,
    SegTypeOption,
    SeriesOption,
    StudiesArgument,
    StudyArgument,
    TargetsOption,
    UrlOption,
    request_of,
    split_names,
)
from service.jobs.job import Priority
from service.request import Mode, PostProcessing, SegType

app = typer.Typer(
    name="viscera",
    help="Segments organs and lesions of a CT. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the `viscera` script."""
    app()


@app.command("serve")
@exits
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
@exits
def worker_command() -> int:
    """Start one more worker for the job table and queue of the settings."""
    from service.settings import Settings
    from service.worker import run_worker

    return run_worker(Settings())


@app.command("scp")
@exits
def scp_command() -> int:
    """Take CT studies from the DICOM network (C-STORE) as jobs."""
    from service.cli.scp import listen

    return listen()


@app.command("push")
@exits
def push_command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a succeeded job.")],
    to: Annotated[str, typer.Option(help="Names of peers in VISCERA_PEERS, comma separated.", metavar="A,B")],
) -> int:
    """Send the DICOM results of a job to a PACS once more."""
    from service.cli.push import push

    return push(job, split_names(to) or ())


@app.command("segment")
@exits
def segment_command(
    studies: StudiesArgument,
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
    precision: Annotated[
        str | None,
        typer.Option(help="A precision that the bundle offers (fp32, fp16, bf16), or auto: the fastest here."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Segment studies here and now, without a service."""
    from service.cli.segment import segment

    choices = request_of(
        targets=split_names(targets),
        mode=mode,
        overlap=overlap,
        postprocessing=postprocessing,
        series=series,
        outputs=split_names(outputs),
        seg_type=seg_type,
        deidentify=deidentify,
    )
    return segment(studies, out, choices, bundle=bundle, engine=engine, precision=precision, as_json=as_json)


@app.command("submit")
@exits
def submit_command(
    studies: StudiesArgument,
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
        targets=split_names(targets),
        mode=mode,
        overlap=overlap,
        postprocessing=postprocessing,
        series=series,
        outputs=split_names(outputs),
        seg_type=seg_type,
        deidentify=deidentify,
    )
    key = key_for(url, api_key)
    handling = Handling(
        priority, not no_reuse, batch_id, time_limit, callback_url, split_names(push) or (), idempotency_key
    )
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
@exits
def open_command(
    job: Annotated[UUID, typer.Argument(metavar="JOB", help="Id of a job.")],
    url: UrlOption = DEFAULT_URL,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address and open nothing.")] = False,
) -> int:
    """Open the page of a service at the result of a job."""
    from service.cli.open import open_job

    return open_job(str(job), url=url, only_print=only_print)


@app.command("demo")
@exits
def demo_command(
    study: StudyArgument,
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    targets: TargetsOption = None,
) -> int:
    """Start a service, send one study through it, show and fetch the results, stop it."""
    from service.cli.demo import demo

    return demo(study, request_of(targets=split_names(targets)), out=out)


app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")


@app.command("doctor")
@exits
def doctor_command() -> int:
    """Check this installation and say what is missing."""
    from service.cli.doctor import examine

    return examine()


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
