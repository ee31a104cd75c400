"""The cache of vectors, and the schema of the configuration."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson
from embedfit.cli.printing import print_rows


@app.command()
def cache(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Model, as named in the table. Default: all.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the vectors of the model, or of all models.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or clear the embedding cache."""
    from datetime import datetime

    from embedfit.encode.cache import cached_models, clear_cache
    from embedfit.errors import ConfigError, StorageError, did_you_mean
    from embedfit.files import cache_folder, cache_limit, in_bytes

    folder, limit, models = cache_folder(), cache_limit(), cached_models()
    if model is not None:
        known = {entry.model for entry in models}
        models = [entry for entry in models if model in (entry.model, entry.path.stem)]
        if not models:
            raise ConfigError(f"{folder}: nothing is kept of a model {model!r}{did_you_mean(model, known)}")
    kept = clear_cache(models) if clear else []
    if as_json:
        rows = [{**vars(entry), "path": str(entry.path), "cleared": clear and entry not in kept} for entry in models]
        console.echo(json.dumps({"folder": str(folder), "limit": limit, "models": rows}))
    elif clear:
        removed = [entry for entry in models if entry not in kept]
        vectors, size = sum(entry.vectors for entry in removed), in_bytes(sum(entry.bytes for entry in removed))
        console.echo(f"Removed: {vectors:,} vectors of {len(removed):,} models, {size}")
    else:
        when = [f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}" for entry in models]
        cells = [[entry.model, f"{entry.vectors:,}", in_bytes(entry.bytes), used] for entry, used in zip(models, when, strict=True)]
        if cells:
            print_rows(["model", "vectors", "size", "used"], cells)
        size, most = in_bytes(sum(entry.bytes for entry in models)), in_bytes(limit)
        console.echo(f"{size} of at most {most} (EMBEDFIT_CACHE_LIMIT) in {folder} (EMBEDFIT_CACHE)")
        for path in sorted(folder.glob("*.damaged*")):
            console.echo(f"Could not be read, and was moved aside: {path}")
    if kept:
        raise StorageError(f"{folder}: another process uses {', '.join(entry.model for entry in kept)}; fix: wait for it")


@app.command()
def schema() -> None:
    """Print the JSON Schema of embedfit.toml, for editors."""
    from embedfit.config import json_schema

    print(json_schema())  # on many lines, and none of it is data
