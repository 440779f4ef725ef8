"""How a command ends: its exit status, and what is said of an error."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

Parameters = ParamSpec("Parameters")

INTERRUPTED = 130


def exits(work: Callable[Parameters, int]) -> Callable[Parameters, None]:
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
