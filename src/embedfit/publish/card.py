"""Model and data set cards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedfit.config import TuneConfig
from embedfit.encode.readers import OLDEST, older_form
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.hub import MINILM, public_name
from embedfit.loading import changing_vectors, loading_options
from embedfit.publish.target import EXAMPLES, Content, Target, in_one_line
from embedfit.studies.deployable import Deployable


def model_card(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
    forms: Sequence[Deployable] = (),
    rejected: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the model card: what the model does, the evidence, the data and training, and how to use it.

    Args:
        target: Target of the publication.
        folder: Folder of the model.
        manifest: Manifest of the run.
        comparison: Comparison of the run.
        examples: Training queries to quote, each with its answers.
        forms: Exported forms that are published beside the model.
        rejected: Forms that lose too much -> the reason.
    """
    config, base = manifest["config"], manifest["base"]["name"]
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    served = not any(module["type"].endswith(".Router") for module in modules)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    forgetting = manifest.get("forgetting")
    hub_base = _hub_name(base)
    differences = _shown_differences(comparison)
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
        differences=differences,
        strata=[(stratum.label, stratum[row.metric]) for stratum in comparison.strata for row in differences],
        forms=forms,
        rejected={form: in_one_line(reason) for form, reason in rejected.items()},
        notes=[forgetting["sentence"]] if forgetting else [],
        data=_data_facts(manifest, prompts),
        template=in_one_line(config["data"]["document_template"]),
        # JSON on one line in a code block, so that nothing in it is read as Markdown or HTML.
        examples=[json.dumps({"query": query, "expected": list(answers)}, ensure_ascii=False) for query, answers in examples[:EXAMPLES]],
        settings=_training_settings(manifest),
        forgetting=bool(forgetting),
        repo=target.where,
        options=_options(config["model"]),
        served=served,
        oldest=_oldest_reader(folder),
        alike=served and not prompts,
        texts={kind: json.dumps(prompts.get(kind, ""), ensure_ascii=False) for kind in ("query", "document")},
        prompt_name=', "prompt_name": "query"' if "query" in prompts else "",
    )


def reranker_card(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
) -> str:
    """Return the card of a tuned cross-encoder.

    Args:
        target: Target of the publication.
        folder: Folder of the model.
        manifest: Manifest of the run.
        comparison: What the base model finds, before and after the reranking.
        examples: Training queries to quote, each with its answers.
    """
    config, reranker, milliseconds = manifest["config"], manifest["reranker"], manifest["reranker"]["milliseconds"]
    start, base = (in_one_line(name) for name in (reranker["start"], public_name(manifest["base"]["name"])))
    settings = _training_settings(manifest)
    del settings["base model"]
    hub_start = _hub_name(reranker["start"])
    return rendered(
        "reranker_card.md",
        metadata=front_matter(_metadata(target, comparison, config, hub_start, reranks=True)),
        title=target.title,
        start=f"[{hub_start}](https://huggingface.co/{hub_start})" if hub_start else start,
        base=base,
        top=reranker["top"],
        milliseconds=f"{milliseconds['reranking']:.1f}",
        embedfit=manifest["embedfit"],
        sentence=comparison.sentence,
        held_out=comparison.held_out,
        interval=comparison.to_dict()["interval"],
        differences=_shown_differences(comparison),
        data=_data_facts(manifest, {}),
        template=in_one_line(config["data"]["document_template"]),
        examples=[json.dumps({"query": query, "expected": list(answers)}, ensure_ascii=False) for query, answers in examples[:EXAMPLES]],
        settings={**settings, "retriever": f"{base} (fingerprint {manifest['base']['fingerprint'][:12]})"},
        repo=target.where,
        oldest=_oldest_reader(folder),
    )


def _options(model: Mapping[str, Any]) -> str:
    """Return the argument of SentenceTransformer with which the model was measured; empty if it needs none."""
    options = changing_vectors(loading_options(model.get("model_kwargs")))
    return f", model_kwargs={options!r}" if options else ""


def _data_facts(manifest: Mapping[str, Any], prompts: Mapping[str, str]) -> list[str]:
    """Return the lines of the card's Data section."""
    parts = [{part: f"{count:,}" for part, count in split.items()} for split in manifest["split"]]
    first = f"{parts[0]['train']} for training, {parts[0]['dev']} for development, {parts[0]['test']} held out"
    counts = manifest.get("data")  # as the run saw the data, which may have changed since
    return [
        f"Data set: `{in_one_line(Path(manifest['config']['data']['queries']).name)}`",
        *([f"{counts['queries']:,} labelled queries, {counts['documents']:,} documents"] if counts else []),
        f"{len(parts)} folds, each {first}; this model was trained on all queries" if len(parts) > 1 else f"Queries: {first}",
        *(f"Prompt before each {name}: `{re.sub('`', '', json.dumps(text))}`" for name, text in prompts.items()),
    ]


def _training_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the card's Training table: setting -> value."""
    tuned, base = manifest["tuning"], manifest["base"]
    settings, kind = TuneConfig.model_validate(manifest["config"]["tune"]), tuned[0]["candidates"]
    frozen = tuned[0].get("frozen")
    weights = f"weights above the lowest {frozen} layers" if frozen else "all weights"
    if settings.documents == "frozen":
        weights += " of the encoder of queries; documents are encoded by the base model"
    method = {"full": weights, "lora": f"LoRA of rank {settings.lora_rank}", "adapter": "linear map of query vectors"}
    method["reranker"] = "all weights of a cross-encoder"
    known = "min_gradient" in settings.model_fields_set and settings.method in ("full", "lora")  # older runs had none
    least = settings.min_gradient_with(kind) if known else 0.0
    rows = {
        "method": method[settings.method],
        "loss": f"softmax over candidate documents; all known relevant documents are positives; scale {settings.scale:g}",
        "epochs": settings.epochs_with(kind),
        "batch size": settings.batch_size,
        "learning rate": f"{settings.learning_rate_with(kind):g}",
        **({"schedule": "constant; weights averaged over each epoch"} if settings.schedule == "averaged" else {}),
        **({"least gradient of a text": least} if least else {}),
        "warm-up": settings.warmup,
        "weight decay": settings.weight_decay,
        "seed": settings.seed,
        **({"weight of the trained weights": settings.merge_weight} if settings.merge_weight < 1 else {}),
        "kept epoch": ", ".join(str(training["epoch"]) for training in tuned),
        "training time": f"{sum(training['seconds'] for training in tuned):.0f} s",
        "base model": f"{in_one_line(public_name(base['name']))} (fingerprint {base['fingerprint'][:12]})",
    }
    if settings.method == "reranker":
        rows["loss"] = "cross-entropy of a right document among wrong ones that the retriever finds"
    if settings.method == "adapter":
        return {name: rows[name] for name in ("method", "loss", "seed", "training time", "base model")}
    return rows


def _hub_name(name: str) -> str | None:
    """Return the model's name on the Hub, or None if it is not from there."""
    if name == MINILM:
        return f"sentence-transformers/{MINILM}"
    return name if name == public_name(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _shown_differences(comparison: Comparison) -> list[Difference]:
    """Return the differences in the card: recall at each k, MRR and nDCG at the largest, and the metric of the verdict."""
    k = max(int(row.metric.partition("@")[2]) for row in comparison.differences)
    shown = (f"mrr@{k}", f"ndcg@{k}", comparison.metric)
    return [row for row in comparison.differences if row.metric.startswith("recall@") or row.metric in shown]


def _metadata(target: Target, comparison: Comparison, config: Mapping[str, Any], base: str | None, *, reranks: bool = False) -> str:
    """Return the card's metadata as YAML, with the model-index that the Hub shows."""
    from huggingface_hub import EvalResult, ModelCardData

    data = Path(config["data"]["queries"]).name
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.casefold()).strip("-") or "data",
            dataset_name=f"{data}, held-out queries" if comparison.held_out else data,
            metric_type=row.metric if reranks else f"cosine_{row.metric}",  # the naming of sentence-transformers
            metric_name=row.metric if reranks else f"Cosine {row.metric}",
            metric_value=round(row.tuned, 4),
        )
        for row in _shown_differences(comparison)
    ]
    task = "text-ranking" if reranks else "sentence-similarity"
    tags = ["sentence-transformers", *(("cross-encoder", "reranker") if reranks else (task, "feature-extraction")), "embedfit"]
    return ModelCardData(
        model_name=target.title,
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag=task,
        tags=tags,
        eval_results=results,
    ).to_yaml()


def front_matter(yaml: str) -> str:
    """Return YAML between the markers of a card's metadata."""
    return f"---\n{yaml.strip()}\n---\n"


def rendered(template: str, /, **values: Any) -> str:
    """Return a card's template filled with values."""
    import jinja2

    text = (resources.files("embedfit.publish") / "templates" / template).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    return environment.from_string(text).render(**values)


def _dimensions(folder: Path) -> int:
    """Return the number of dimensions of a saved model's vectors, from the last module that states it."""
    keys = ("out_features", "embedding_dimension", "word_embedding_dimension", "hidden_size")
    dimensions = 0
    paths: list[Path] = []
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        path = folder / module["path"]
        routes = json.loads((path / "router_config.json").read_text(encoding="utf-8")) if (path / "router_config.json").exists() else {}
        paths += [path / part for part in routes.get("structure", {}).get("document", ())] or [path]
    for path in paths:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8")) if (path / "config.json").exists() else {}
        dimensions = next((settings[key] for key in keys if key in settings), dimensions)
    return int(dimensions)


def _oldest_reader(folder: Path) -> str:
    """Return the oldest sentence-transformers known to read a saved model, by default the version that saved it."""
    if older_form(folder) is not None:
        return OLDEST
    versions = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["__version__"]
    return str(versions["sentence_transformers"])


def content_size(content: Content) -> int:
    """Return the size in bytes of a file, or of content that will become one."""
    return content.stat().st_size if isinstance(content, Path) else len(content)
