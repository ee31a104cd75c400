"""The command line. It joins stages, prints, and turns errors into one line; work is done elsewhere."""

# ruff: noqa: I001  (each adds its commands, in this order)
from embedfit.cli import starting, experiments, generating, serving, teaching, deploying, live, doctoring, choosing, tools
from embedfit.cli.app import app, main

__all__ = [
    "app",
    "choosing",
    "deploying",
    "doctoring",
    "experiments",
    "generating",
    "live",
    "main",
    "serving",
    "starting",
    "teaching",
    "tools",
]
