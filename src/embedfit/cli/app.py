"""The application, its global options, and the place where an error becomes one line.

Nothing heavy is imported here, so that help and completion are instant.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from embedfit import console

if TYPE_CHECKING:
    from types import TracebackType

    from embedfit.errors import EmbedfitError


app = typer.Typer(
    name="embedfit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a text-embedding model on your own labelled pairs, and prove on held-out queries whether retrieval got better.",
)

_INTERRUPTED = 130  # the exit code by which shells know Ctrl-C

_FIRST_SPEAKS_SECONDS = 10


def _print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"embedfit {version('embedfit')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notes.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Set what holds for every command."""
    from embedfit import processes
    from embedfit.errors import ConfigError

    console.quiet = quiet
    _State.debug = debug
    if processes.count() > 1 and context.invoked_subcommand not in ("run", "tune"):
        raise ConfigError(f"'{context.invoked_subcommand}' runs in one process; fix: without torchrun, which is for 'run' and 'tune'")
    if not processes.main():
        console.quiet, sys.stdout = True, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class _State:
    debug = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 for anything the user can mend, 130 when interrupted."""
    from embedfit import processes
    from embedfit.errors import EmbedfitError

    try:
        app(args=arguments, prog_name="embedfit", standalone_mode=True)
    except EmbedfitError as error:
        if _State.debug:
            raise
        if not processes.main():
            # Processes that train together meet the same errors. The first says so, and the launcher then ends the others: it
            # would end the first, before it has spoken, if another went sooner.
            time.sleep(_FIRST_SPEAKS_SECONDS)
        console.echo(f"embedfit: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        storage = _full_disk(error)
        if _State.debug or storage is None:
            raise
        console.echo(f"embedfit: {storage}", err=True)
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            print("embedfit: interrupted; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        sys.excepthook = _print_traceback  # Typer has set one of its own


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would, with the controls made visible that a label or a file name in it may hold."""
    import traceback

    for line in "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        console.echo(line, err=True)


def _full_disk(error: OSError) -> EmbedfitError | None:

    from embedfit.errors import StorageError

    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return StorageError(f"{error.filename or 'a file'}: {error.strerror}; nothing that was finished is lost")
