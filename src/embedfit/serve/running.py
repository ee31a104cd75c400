"""Starts the server: checks what can be checked, then hands over to uvicorn."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from embedfit import console
from embedfit.errors import ConfigError, check_package
from embedfit.serve.feedback import Feedback
from embedfit.serve.live import load
from embedfit.serve.settings import Settings, log_to_stderr

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 2048
_GRACE_SECONDS = 30
_ALIVE_SECONDS = 20


def serve(settings: Settings, workers: int = 1, app: Callable[[], ASGIApp] | None = None) -> None:
    """Serve until a signal ends it. What was accepted is finished first.

    Args:
        settings: Settings of the server.
        workers: Number of processes; each holds the model.
        app: Function that makes the application, for one process; by default the searcher of the folder is served.

    Raises:
        EmbedfitError: A package is missing, the address is taken, or the folder holds no searcher.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        check_package(package, extra="serve")
    import uvicorn

    log_to_stderr()
    _raise_file_limit()
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(settings.host, settings.port))
        port = listener.getsockname()[1]
        shared = {
            "log_level": "warning",
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": 30,
            "timeout_graceful_shutdown": _GRACE_SECONDS,
            "backlog": _BACKLOG,
        }
        address = f"http://{'[' + settings.host + ']' if ':' in settings.host else settings.host}:{port}"
        if workers == 1:
            from embedfit.serve.app import make_app_of

            made = app() if app else make_app_of(settings)
            config = uvicorn.Config(made, **shared)  # type: ignore[arg-type]
            server = uvicorn.Server(config)
            start = server.startup

            async def startup(sockets: list[socket.socket] | None = None) -> None:
                await start(sockets)
                if server.started:
                    console.echo(f"Serving {settings.folder} at {address}", err=True)

            server.startup = startup  # type: ignore[method-assign]
            server.run([listener])
            return
        # What cannot be opened is said here, once, and not by each worker.
        load(settings.folder, settings.form)
        if settings.feedback:
            Feedback(settings.feedback).close()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="embedfit-"))
        settings.pass_on()
        console.echo(f"Serving {settings.folder} at {address} with {workers} workers", err=True)
        from embedfit.serve.workers import Workers

        config = uvicorn.Config(
            "embedfit.serve.app:from_environment",
            factory=True,
            workers=workers,
            timeout_worker_healthcheck=_ALIVE_SECONDS,
            **shared,  # type: ignore[arg-type]
        )
        Workers(config, [listener]).run()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}; fix: another --port, or 0 for a free one"
        ) from None
    listener.listen(_BACKLOG)  # clients that come before a worker is ready wait
    listener.set_inheritable(True)
    return listener


def _raise_file_limit() -> None:
    """Allow as many open connections as the system does."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
