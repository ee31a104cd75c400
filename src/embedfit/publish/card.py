"""Model and data set cards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from embedfit.config import TuneConfig
from embedfit.encode.readers import OLDEST, older_form
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.hub import MINILM, public_name
from embedfit.publish.target import EXAMPLES, Content, Target, in_one_line


def model_card(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
) -> str:
    """Return the model's page: what it does, on what evidence, made how and of what, and how to use it.

    Args:
        target: Where it will stand.
        folder: Of the model.
        manifest: Of the run.
        comparison: Of the run.
        examples: Training queries and their answers to quote.
    """
    config, base = manifest["config"], manifest["base"]["name"]
    tuned = manifest["tuning"]
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    served = not any(module["type"].endswith(".Router") for module in modules)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    parts = [{part: f"{count:,}" for part, count in split.items()} for split in manifest["split"]]
    first = f"{parts[0]['train']} for training, {parts[0]['dev']} for choosing, {parts[0]['test']} held out"
    counts = manifest.get("data")  # of the run: the data may have changed since
    data = [
        f"Data set: `{in_one_line(Path(config['data']['queries']).name)}`",
        *([f"{counts['queries']:,} labelled queries, {counts['documents']:,} documents"] if counts else []),
        f"{len(parts)} folds, each {first}; this model was trained on all" if len(parts) > 1 else f"Queries: {first}",
        *(f"Put before each {name}: `{re.sub('`', '', json.dumps(text))}`" for name, text in prompts.items()),
    ]
    forgetting = manifest.get("forgetting")
    method = {"full": "all weights", "lora": f"LoRA of rank {config['tune']['lora_rank']}", "adapter": "a linear map of the query's vector"}
    settings, kind = TuneConfig.model_validate(config["tune"]), tuned[0]["candidates"]
    trained = {
        "method": method[settings.method],
        "loss": f"softmax over candidate documents, every known positive a positive; scale {settings.scale:g}",
        "epochs": settings.epochs_with(kind),
        "batch size": settings.batch_size,
        "learning rate": f"{settings.learning_rate_with(kind):g}",
        "warm-up": settings.warmup,
        "weight decay": settings.weight_decay,
        "seed": settings.seed,
        "kept epoch": ", ".join(str(one["epoch"]) for one in tuned),
        "training time": f"{sum(one['seconds'] for one in tuned):.0f} s",
        "base model": f"{in_one_line(public_name(base))} (fingerprint {manifest['base']['fingerprint'][:12]})",
    }
    if config["tune"]["method"] == "adapter":
        trained = {name: trained[name] for name in ("method", "loss", "seed", "training time", "base model")}
    hub_base = _hub_name(base)
    return rendered(
        "model_card.md",
        metadata=front_matter(_metadata(target, comparison, config, hub_base)),
        title=target.title,
        base=f"[{hub_base}](https://huggingface.co/{hub_base})" if hub_base else in_one_line(public_name(base)),
        embedfit=manifest["embedfit"],
        dimensions=_dimensions(folder),
        sentence=comparison.sentence,
        held_out=comparison.held_out,
        interval=comparison.to_dict()["interval"],
        differences=_shown(comparison),
        strata=[(stratum.label, stratum[row.metric]) for stratum in comparison.strata for row in _shown(comparison)],
        notes=[forgetting["sentence"]] if forgetting else [],
        data=data,
        template=in_one_line(config["data"]["document_template"]),
        # JSON on one line, in a block of code: nothing in it is read as Markdown or HTML.
        examples=[json.dumps({"query": query, "expected": list(answers)}, ensure_ascii=False) for query, answers in examples[:EXAMPLES]],
        settings=trained,
        general=", and on general questions, to see what was forgotten (above)." if forgetting else ".",
        repo=target.where,
        served=served,
        oldest=_oldest_reader(folder),
        alike=served and not prompts,
        texts={kind: json.dumps(prompts.get(kind, ""), ensure_ascii=False) for kind in ("query", "document")},
        prompt_name=', "prompt_name": "query"' if "query" in prompts else "",
    )


def _hub_name(name: str) -> str | None:
    """Return a model's name if it is one on the Hub."""
    if name == MINILM:
        return f"sentence-transformers/{MINILM}"
    return name if name == public_name(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _shown(comparison: Comparison) -> list[Difference]:
    """Return the differences that the card shows: recall at each k, the others at the largest, and the one that the verdict is about."""
    k = max(int(found.metric.partition("@")[2]) for found in comparison.differences)
    wanted = (f"mrr@{k}", f"ndcg@{k}", comparison.metric)
    return [found for found in comparison.differences if found.metric.startswith("recall@") or found.metric in wanted]


def _metadata(target: Target, comparison: Comparison, config: Mapping[str, Any], base: str | None) -> str:
    """Return the card's metadata as YAML, with the model-index that the Hub shows."""
    from huggingface_hub import EvalResult, ModelCardData

    data = Path(config["data"]["queries"]).name
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.casefold()).strip("-") or "data",
            dataset_name=f"{data}, held-out queries" if comparison.held_out else data,
            metric_type=f"cosine_{found.metric}",  # as sentence-transformers names them
            metric_name=f"Cosine {found.metric}",
            metric_value=round(found.tuned, 4),
        )
        for found in _shown(comparison)
    ]
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "embedfit"]
    return ModelCardData(
        model_name=target.title,
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=tags,
        eval_results=results,
    ).to_yaml()


def front_matter(yaml: str) -> str:
    """Return YAML between the lines that mark a card's metadata."""
    return f"---\n{yaml.strip()}\n---\n"


def rendered(card: str, /, **said: Any) -> str:
    """Return a card's template, filled."""
    import jinja2

    text = (resources.files("embedfit.publish") / "templates" / card).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    return environment.from_string(text).render(**said)


def _dimensions(folder: Path) -> int:
    """Return how many dimensions a saved model's vectors have: the last module that says so."""
    found = 0
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        path = folder / module["path"] / "config.json"
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found = next(
            (said[key] for key in ("out_features", "embedding_dimension", "word_embedding_dimension", "hidden_size") if key in said), found
        )
    return int(found)


def _oldest_reader(folder: Path) -> str:
    """Return the oldest sentence-transformers that is known to read a saved model: else the one that saved it."""
    if older_form(folder) is not None:
        return OLDEST
    saved = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["__version__"]
    return str(saved["sentence_transformers"])


def content_size(content: Content) -> int:
    """Return the bytes of a file, or of what will be one."""
    return content.stat().st_size if isinstance(content, Path) else len(content)
