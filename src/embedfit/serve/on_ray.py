"""The same application as a Ray Serve deployment: replicas on the machines of a Ray cluster, behind Ray's proxy."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from embedfit import console
from embedfit.errors import ConfigError, check_package, require
from embedfit.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

NAME = "embedfit"
"""Name of the deployment in Ray's dashboard."""


def serve(settings: Settings, replicas: int = 1, *, wait: bool = True) -> None:
    """Serve from a Ray cluster: the one that ``RAY_ADDRESS`` names, or a new one on this machine.

    Each replica loads the model. The run directory must have the same path on all machines, and the feedback must be in PostgreSQL if
    there are several.

    Args:
        settings: Settings of the server.
        replicas: Number of replicas.
        wait: Whether to return only when a signal ends it.

    Raises:
        EmbedfitError: Ray Serve is not installed, or the port is 0.
    """
    for package in ("fastapi", "prometheus_client"):
        check_package(package, extra="serve")
    ray_serve = require("ray.serve", extra="ray-serve")
    if not settings.port:
        raise ConfigError("--port 0: Ray Serve needs the number of a port; fix: such as --port 8000")
    import ray

    ray.init(ignore_reinit_error=True, logging_level=logging.ERROR, log_to_driver=False)
    ray_serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config={"enable_access_log": False})
    content = asdict(settings)

    def build() -> ASGIApp:
        from embedfit.serve.app import make_app_of
        from embedfit.serve.settings import log_to_stderr

        log_to_stderr()
        return make_app_of(Settings(**content))

    deployment: Any = ray_serve.deployment(
        ray_serve.ingress(build)(),
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=settings.queue,
        ray_actor_options={"num_cpus": 1},
    )
    console.note(f"Starting {settings.folder} at http://{settings.host}:{settings.port} with {replicas} Ray replicas")
    ray_serve.run(deployment.bind(), name=NAME, route_prefix="/", blocking=wait)
