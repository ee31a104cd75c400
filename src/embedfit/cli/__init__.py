"""The command line. It joins stages, prints, and turns errors into one line; work is done elsewhere."""

from embedfit.cli import experiments, generating, serving, starting

from embedfit.cli import tools  # isort: skip  # each adds its commands, in this order
from embedfit.cli.app import app, main

__all__ = ["app", "experiments", "generating", "main", "serving", "starting", "tools"]
