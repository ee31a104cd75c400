"""What embedfit.toml may say. Every setting is here, with its default and what it means."""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from embedfit.errors import ConfigError, did_you_mean, shown
from embedfit.hosts import checked_address, is_header_name
from embedfit.metrics import KS, check_metric
from embedfit.secrets import (
    FROM_ENVIRONMENT,
    NO_SECRETS_IN,
    SECRET_KEYS,
    is_variable,
    no_variable,
    refuse_secrets,
    refuse_urls_with_secrets,
)
from embedfit.template import DOCUMENT_TEMPLATE


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DataConfig(_Section):
    """Where the queries, documents and judgements come from."""

    queries: str = Field(description="A file of labelled queries (JSONL, JSON, CSV, TSV, Parquet), a BEIR folder, or hub:owner/name.")
    documents: str | None = Field(None, description="A file of documents. By default each distinct label is one.")
    query: str = Field("query", description="Column of the query text.")
    label: str | None = Field(None, description="Column of the ids of the documents that are right. By default 'expected'.")
    grade: str | None = Field(
        None,
        description="Column of the label's grade, 0 for not relevant; \"\" for none. By default 'grade', 'relevance', 'score' or alike.",
    )
    separator: str | None = Field(
        None, min_length=1, description="What stands between several labels in one cell, such as ';'. By default a cell is one label."
    )
    record: str | None = Field(None, description="'transaction', 'module:Class' of a Pydantic model, or a JSON Schema file.")
    query_template: str | None = Field(None, description="Query text of a record, with field names in braces.")
    document_template: str = Field(DOCUMENT_TEMPLATE, description="What a document says, with field names in braces.")


class SplitConfig(_Section):
    """Which queries are for training, for choosing, and for the comparison."""

    test: float = Field(
        0.2, gt=0, lt=1, description="Share of the queries for the comparison, in one split. By default under 1,000 queries, see folds."
    )
    dev: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the others for choosing the epoch, at most 500 queries; 0 for none. By default 0.1 of 1,000 or more.",
    )
    folds: int | None = Field(
        None,
        ge=0,
        description="Train this many models, so that every query is held out once; 0 for one split. "
        "By default 5 under 1,000 queries, unless test is set.",
    )
    leaks: Literal["fail", "drop", "allow"] = Field(
        "fail", description="When a held-out query says what a training query says: stop, drop the training query, or go on and say so."
    )
    seed: int = Field(0, ge=0, description="Another seed, another split.")
    group_by: str | None = Field(
        None,
        description="A field of the queries; those with the same value stay in one part. "
        "Where the data brings parts, train and dev queries that share a value with a more held-out part are left out.",
    )
    by: Literal["queries", "documents"] = Field(
        "queries",
        description="documents: answers are held out, so that no right answer of a held-out query was one in training or choosing.",
    )


class ModelConfig(_Section):
    """The embedding model to start from."""

    name: str = Field(
        "BAAI/bge-base-en-v1.5",
        description="A Hub name, a local folder, all-MiniLM-L6-v2 (offline), or a remote encoder like openai:text-embedding-3-large.",
    )
    query_prompt: str | None = Field(None, description="Put before each query. By default the model's own.")
    document_prompt: str | None = Field(None, description="Put before each document. By default the model's own.")
    pooling: Literal["auto", "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"] = Field(
        "auto",
        description="How token vectors become one, for a folder that does not say so (one without modules.json). "
        "auto: the last token's for a causal language model, else the mean.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where that is faster.")
    price: float | None = Field(None, ge=0, description="US dollars for a million tokens of a remote encoder. By default OpenAI's list.")


class EvaluateConfig(_Section):
    """What is measured."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(KS, min_length=1, description="Where the rankings are cut.")
    metric: str = Field("mrr@10", description="The one that the verdict is about.")
    bm25: bool = Field(True, description="Measure BM25 too, as the other baseline.")
    retrieval: tuple[Literal["dense", "bm25", "hybrid"], ...] = Field(
        ("dense",), min_length=1, description="For `embedfit evaluate`: vectors, words, or both (hybrid, by reciprocal rank fusion)."
    )
    rerankers: tuple[str, ...] = Field(
        (), description="For `embedfit evaluate`: cross-encoders, Hub names or folders, that read the top of each ranking again."
    )
    rerank_top: int = Field(50, ge=1, description="Documents of each query that a cross-encoder reads.")
    seeds: int = Field(
        1, ge=1, description="Train this many times with another seed, and show how much of the difference is chance of training."
    )


_LEARNING_RATES = {"full": 2e-4, "lora": 2e-3, "adapter": 2e-4}
"""By default, where every document is a candidate in every step."""
_EPOCHS = 4
"""The same."""


class TuneConfig(_Section):
    """How the model is trained. The defaults are the same for every data set."""

    method: Literal["full", "lora", "adapter"] = Field(
        "full", description="Train the weights, small matrices beside them (lora), or a linear map of the query's vector (adapter)."
    )
    lora_rank: int = Field(16, ge=1, description="Width of LoRA's matrices.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="At most this many passes over the training queries. By default 4 where all documents are candidates, else 2.",
    )
    batch_size: int = Field(32, ge=1, description="Queries per step.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW. By default 2e-4, with LoRA 2e-3, where all documents are candidates, else half of it.",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    dropout: float = Field(0.0, ge=0, lt=1, description="In training.")
    train_embeddings: bool = Field(False, description="Train the token embeddings too, half of a small model's weights.")
    scale: float = Field(14.0, gt=0, description="What cosine similarities are multiplied by in the loss (1 / temperature).")
    candidates: Literal["auto", "all", "mined", "batch"] = Field(
        "auto",
        description="Documents a query is scored against: all; the batch's, mined and random ones; or without mined. "
        "auto: all if they are few, else mined.",
    )
    negatives: int | None = Field(
        None, ge=0, description="Random documents per step, unless candidates = 'all'. By default 32, with mined ones none."
    )
    hard_negatives: int = Field(1, ge=0, description="Mined documents per query and step, for candidates = 'mined'.")
    mined_margin: float = Field(
        1.0, gt=0, description="A mined document is at most so similar to the query, as a share of its least similar right answer."
    )
    judge: str | None = Field(
        None, description="A cross-encoder (a folder or a Hub name): a mined document must score lower with it than each right answer."
    )
    mine_every: int | None = Field(
        None,
        ge=1,
        description="Steps from one mining to the next. By default an epoch's, and more where the corpus is large beside the queries.",
    )
    memory_gb: float | None = Field(
        None, gt=0, description="Memory for a step's activations, in GiB; larger steps are computed in parts. By default a third of it all."
    )
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Dimensions, below the model's own, that vectors may be cut to afterwards: they are trained for it."
    )
    patience: int = Field(2, ge=1, description="Stop after this many epochs without a better dev score.")
    seed: int = Field(0, ge=0, description="Of dropout, order, random negatives and LoRA's first weights.")

    @field_validator("train_embeddings")
    @classmethod
    def _only_with_full(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("method") == "lora":
            raise PydanticCustomError("method", "needs method = 'full'")
        return value

    def epochs_with(self, candidates: str) -> int:
        """Return how many passes to make: as it says, or what suits ``all``, ``mined`` or ``batch``.

        Few queries see each document of a large corpus, so that training learns these queries by heart sooner than a list of
        labels, which all of them see: half the passes at half the learning rate.
        """
        return self.epochs or (_EPOCHS if candidates == "all" else _EPOCHS // 2)

    def learning_rate_with(self, candidates: str) -> float:
        """Return the peak learning rate: as it says, or what suits the method and the candidates (see `epochs_with`)."""
        return self.learning_rate or _LEARNING_RATES[self.method] / (1 if candidates == "all" else 2)


class MixConfig(_Section):
    """Further data sets to train on; nothing is measured on them."""

    data: tuple[DataConfig, ...] = Field((), description="Each as in [data], under [[mix.data]].")
    temperature: float = Field(
        1.0, ge=1, description="A set of n queries has a share of n ** (1 / temperature): 1 for all queries once, more for small sets."
    )


class GeneralConfig(_Section):
    """What the model could do before, and should not lose: a general set, and how much of its score to keep."""

    queries: str | None = Field(None, description="A data set unlike the task, as in [data]. By default the one that comes with embedfit.")
    documents: str | None = Field(None, description="Its documents, if they are a file of their own.")
    keep: float | None = Field(
        None, gt=0, le=1, description="Share of the base model's general score to keep, by merging base and tuned weights; 0.98 is a start."
    )


class LadderConfig(_Section):
    """What `embedfit ladder` measures."""

    rungs: tuple[str, ...] = Field((), description="Keys of the methods. By default all that the data allows.")
    document_template: str | None = Field(None, description="Richer document text to try. By default every field of text.")


class StoreConfig(_Section):
    """Where `embedfit index` puts documents and vectors, and `embedfit search` finds them."""

    kind: Literal["chroma", "pgvector", "qdrant"] = Field("chroma", description="Chroma, PostgreSQL with pgvector, or Qdrant.")
    location: str = Field(
        "store",
        description="A folder (Chroma; Qdrant for trying out), a URL, a connection string of PostgreSQL, or env:NAME of a variable.",
    )
    api_key: str | None = Field(None, description="env:NAME of the variable that holds the server's key.")
    index: str = Field("documents", pattern=r"^[a-z][a-z0-9_]{1,38}[a-z0-9]$", description="The live name.")
    min_recall: float = Field(
        0.95, ge=0, le=1, description="A new version that finds less of what exact search finds, in the first 10, does not go live."
    )


class TrackConfig(_Section):
    """Where results are followed."""

    langwatch: bool = Field(True, description="Send each query's results to LangWatch, where LANGWATCH_API_KEY is set.")
    report_to: tuple[Literal["mlflow", "wandb", "tensorboard"], ...] = Field((), description="Log the training to these.")


_Price = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class GenerateConfig(_Section):
    """What an LLM writes, and what that may cost. Where records or questions are asked for, `embedfit run` begins with it."""

    records: int = Field(0, ge=0, description="Records to write, shared evenly among the documents; [data] record is their type.")
    questions: int = Field(0, ge=0, description="Questions to write for each document.")
    model: str = Field("gpt-4.1-mini", description="The LLM, by the name that its endpoint knows.")
    base_url: str | None = Field(None, description="Any OpenAI-compatible endpoint, with /v1. By default OPENAI_BASE_URL, or OpenAI's own.")
    key: str | None = Field(
        None, description="The environment variable that holds the key. By default OPENAI_API_KEY, or for another host EMBEDFIT_KEY_<HOST>."
    )
    headers: dict[str, str] = Field({}, description="More headers, for gateways: name -> the environment variable that holds the value.")
    mode: Literal["json_schema", "tools", "json"] = Field("json_schema", description="How the endpoint is told the shape of an answer.")
    prompt: str | None = Field(None, description="A Jinja template. By default the bundled one for transactions, records or questions.")
    examples: str | None = Field(
        None, description="Real texts to imitate: JSONL with 'query', or one per line; a few are drawn for each prompt."
    )
    styles: dict[str, str] = Field({}, description="Styles of questions: name -> how it is put. By default keywords, question, situation.")
    personas: tuple[str, ...] = Field((), description="Who asks the questions. By default six, from the expert to the beginner.")
    temperature: float | None = Field(None, ge=0, description="Of the LLM. By default its own.")
    max_tokens: int = Field(800, ge=1, description="Room for a reply. One that is cut off is asked for again with twice as much.")
    tries: int = Field(10, ge=1, description="Replies for one record or question before it is given up.")
    seed: int = Field(0, ge=0, description="Another seed, other requests.")
    budget: float | None = Field(
        None,
        gt=0,
        description="Stop before more than this is spent, in US dollars (or the currency of price), all runs on a ledger together.",
    )
    max_tokens_total: int | None = Field(None, gt=0, description="Stop before more tokens than this are used, likewise.")
    price: _Price | None = Field(
        None,
        description="Of a million prompt tokens and completion tokens, in US dollars or your currency. Known for some of OpenAI's models.",
    )
    concurrency: int = Field(32, ge=1, description="Requests at a time, at most; fewer while the endpoint says 429.")
    timeout: float = Field(120.0, gt=0, description="Seconds for one request.")
    judge: str | None = Field(None, description="An LLM that categorises every record without knowing its label; may be the same.")
    judge_prompt: str | None = Field(None, description="A Jinja template for the judge.")
    judge_tries: int = Field(3, ge=1, description="Right at once is easy, right later is hard, never right in so many tries is suspect.")
    judge_price: _Price | None = Field(None, description="As price, where the judge is another model.")
    suspects: Literal["keep", "drop"] = Field("keep", description="Whether suspect records stand in the output.")

    @field_validator("key", mode="before")
    @classmethod
    def _key_is_a_variable(cls, value: Any) -> Any:
        if value is not None and not is_variable(value):
            raise no_variable('key = "NAME"')
        return value

    @field_validator("headers", mode="before")
    @classmethod
    def _headers_are_variables(cls, value: Any) -> Any:
        if not (isinstance(value, dict) and all(map(is_header_name, value)) and all(map(is_variable, value.values()))):
            raise no_variable('headers = {X-Gateway = "NAME"}')
        return value

    @field_validator("base_url", mode="after")
    @classmethod
    def _address_has_no_secret(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                checked_address(value)
            except ConfigError as error:
                raise PydanticCustomError("address", "{problem}", {"problem": str(error)}) from None
        return value


class Config(_Section):
    """A whole experiment."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="First part of the run directory's name.")
    output: str = Field("runs", description="Where run directories are made.")
    engine: Literal["local", "ray"] = Field(
        "local", description="Where texts are encoded, searched and mined: this process, or a Ray cluster."
    )
    data: DataConfig
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    mix: MixConfig = MixConfig()
    general: GeneralConfig = GeneralConfig()
    ladder: LadderConfig = LadderConfig()
    store: StoreConfig = StoreConfig()
    track: TrackConfig = TrackConfig()
    generate: GenerateConfig = GenerateConfig()


_UNUSED = {
    "tune": ("split.folds", "evaluate.seeds", "general.queries", "general.documents", "general.keep"),
    "ladder": ("evaluate.bm25", "evaluate.seeds", "general.queries", "general.documents", "general.keep"),
    "curve": ("tune.patience", "evaluate.bm25", "evaluate.seeds", "general.queries", "general.documents", "general.keep"),
    "evaluate": ("split.folds", "split.leaks", "evaluate.bm25"),
    "compare": ("split.folds", "split.leaks"),
}
"""Command -> settings that have no part in it though one could think so: a command says so where they are given. Of the others that it
does not use (docs/config.md), nobody could: [store] has no part in a training."""


def unused_settings(config: Config, command: str) -> list[str]:
    """Return the settings that were given and of which a command says that it does not use them."""
    given = []
    for key in _UNUSED.get(command, ()):
        section, name = key.split(".")
        settings = getattr(config, section)
        if getattr(settings, name) != type(settings).model_fields[name].default:
            given.append(key)
    return given


def with_method(config: TuneConfig, method: str) -> TuneConfig:
    """Return the settings for another method: what was set, but for what only suits the other one."""
    if method == config.method:
        return config
    suits_one = {"method", "learning_rate", "train_embeddings"}
    return TuneConfig.model_validate({**config.model_dump(exclude_unset=True, exclude=suits_one), "method": method})


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read embedfit.toml. Paths of data in it are relative to the file.

    Args:
        path: Of the file.
        options: Settings that replace those of the file: section -> key -> value, or key -> value outside of sections.

    Raises:
        ConfigError: It is not there, not TOML, or says something that it may not.
    """
    path = Path(path)
    try:
        # A byte order mark is what Windows editors add, and no part of TOML.
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        beside = [other.name for other in path.parent.glob("*.toml")]
        raise ConfigError(f"{path}: {error.strerror}{did_you_mean(path.name, beside)}; fix: 'embedfit init' writes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    for section, changes in (options or {}).items():
        if not isinstance(changes, Mapping):
            said[section] = changes
        elif changes and isinstance(said.get(section, {}), dict):
            said[section] = {**said.get(section, {}), **changes}
            if section == "split" and changes.get("folds"):
                said[section].pop("test", None)  # folds in place of one split
    return make_config(said, where=str(path), folder=path.parent)


def make_config(said: dict[str, Any], *, where: str = "config", folder: Path = Path()) -> Config:
    """Check a configuration and make its paths relative to a folder.

    Raises:
        ConfigError: An unknown key (with the nearest known one), or a value that is out of range.
    """
    try:
        refuse_secrets(said.get("store"), where)
        for section in NO_SECRETS_IN:
            refuse_urls_with_secrets(said.get(section), section, where)
        config = Config.model_validate(said)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None
    try:
        check_metric(config.evaluate.metric, config.evaluate.k)
    except ConfigError as error:
        raise ConfigError(f"{where}: key 'evaluate.metric': {error}") from None
    if config.split.folds and "test" in config.split.model_fields_set:
        raise ConfigError(
            f"{where}: split.test = {config.split.test:g} and split.folds = {config.split.folds} contradict each other: "
            "folds hold out every query once; fix: leave one of them out"
        )
    if config.general.documents and not config.general.queries:
        raise ConfigError(f"{where}: general.documents needs general.queries; fix: set both, or leave both out")
    return placed_in(config, folder)


def placed_in(config: Config, folder: Path) -> Config:
    """Return a configuration whose paths are relative to a folder, as one that can be used from here; absolute paths stay."""

    def beside(path: str | None) -> str | None:
        return path if path is None or path.startswith("hub:") else str(folder / path)

    def placed(data: DataConfig) -> DataConfig:
        record = data.record if data.record in (None, "transaction") or ":" in str(data.record) else str(folder / str(data.record))
        return data.model_copy(update={"queries": beside(data.queries), "documents": beside(data.documents), "record": record})

    data = placed(config.data)
    mix = config.mix.model_copy(update={"data": tuple(map(placed, config.mix.data))})
    general = config.general
    general = general.model_copy(update={"queries": beside(general.queries), "documents": beside(general.documents)})
    written = config.generate
    written = written.model_copy(update={key: beside(getattr(written, key)) for key in ("prompt", "judge_prompt", "examples")})
    model = config.model
    if (folder / model.name).exists():  # a model's folder, or an adapter's file
        model = model.model_copy(update={"name": str(folder / model.name)})
    store = config.store
    if store.kind != "pgvector" and "://" not in store.location and not store.location.startswith(FROM_ENVIRONMENT):
        store = store.model_copy(update={"location": str(folder / store.location)})
    rerankers = tuple(str(folder / name) if (folder / name).is_dir() else name for name in config.evaluate.rerankers)
    evaluate = config.evaluate.model_copy(update={"rerankers": rerankers})
    found = {"data": data, "mix": mix, "general": general, "generate": written, "model": model, "evaluate": evaluate, "store": store}
    return config.model_copy(update={**found, "output": str(folder / config.output)})


def json_schema() -> str:
    """Return the JSON Schema of embedfit.toml, for editors."""
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **Config.model_json_schema()}, indent=2)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in first["loc"][:-1]:
            if isinstance(part, str):  # the others are places in a list, whose type was found before
                section = section.model_fields[part].annotation
                section = typing.get_args(section)[0] if typing.get_origin(section) is tuple else section
        known = list(section.model_fields)
        return f"key {key!r} is unknown" + (did_you_mean(str(first["loc"][-1]), known) or f"; known: {', '.join(known)}")
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if key.startswith(SECRET_KEYS) or first["loc"] in (("generate",), ("store",)):
        return f"key {key!r}: {first['msg']}"
    seen = shown(first["input"]) if _is_plain(first["input"]) else "something that is not shown, as it may be a secret"
    return f"key {key!r}: {first['msg']}, seen {seen}"


def _is_plain(value: Any) -> bool:
    """Return whether a value that stands in the wrong place can be no secret: a number, or a short word as choices are."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not isinstance(value, dict) and (not isinstance(value, str) or bool(_CHOICE.fullmatch(value)))


_CHOICE = re.compile(r"[a-z]{0,12}[0-9]{0,2}|[0-9.,+-]{1,6}")
