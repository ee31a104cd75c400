"""The sections of embedfit.toml. Every setting is here, with its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from embedfit.errors import ConfigError
from embedfit.hosts import checked_address, is_header_name
from embedfit.loading import Attention, loading_options
from embedfit.metrics import KS
from embedfit.secrets import is_variable, no_variable
from embedfit.template import DOCUMENT_TEMPLATE


class Section(BaseModel):
    """A table of embedfit.toml, in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DataConfig(Section):
    """The queries, the documents and the judgements."""

    queries: str = Field(
        description="A file of labelled queries (JSONL, JSON, CSV, Excel, Parquet ...), a folder such as BEIR's, or hub:owner/name."
    )
    documents: str | None = Field(
        None,
        description="A file of documents, or a folder of Markdown, HTML, text and PDF files. By default each distinct label "
        "becomes a document.",
    )
    passage_tokens: int | None = Field(
        None,
        ge=16,
        description="Maximum tokens of a passage, for a folder of documents. By default 256, or fewer if the model reads fewer.",
    )
    passage_overlap: int | None = Field(
        None, ge=0, description="Tokens that a passage repeats of the one before. By default an eighth of passage_tokens."
    )
    qrels: str | None = Field(
        None, description="A file of judgements, where they stand apart from queries and documents: TREC's or BEIR's qrels, or a table."
    )
    query: str | None = Field(None, description="Column of the query text. By default 'query', 'question', 'text' or a similar name.")
    label: str | None = Field(
        None, description="Column of the relevant documents. By default 'expected', 'label', 'category', 'doc_id' or a similar name."
    )
    id: str | None = Field(None, description="Column of the query's id. By default 'id', 'query_id' or a similar name.")
    grade: str | None = Field(
        None,
        description="Column of the label's grade, 0 for not relevant; \"\" for none. By default 'grade', 'relevance', "
        "'score' or a similar name.",
    )
    part: str | None = Field(None, description="Column of the part: train, dev (or validation), test. By default 'part' or 'split'.")
    separator: str | None = Field(
        None, min_length=1, description="Separator of several labels in one cell, such as ';'. By default a cell is one label."
    )
    document_id: str | None = Field(None, description="Column of a document's id. By default 'id', 'doc_id' or a similar name.")
    document_title: str | None = Field(None, description="Column of a document's title. By default 'title' or a similar name.")
    document_text: str | None = Field(
        None,
        description="Column of a document's text. By default 'text', 'content' or a similar name. Without a file of documents, the "
        "rows of the queries bring the documents along.",
    )
    encoding: str | None = Field(None, description="Encoding of text files that are not UTF-8, such as 'cp1252'.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="Sign between the cells of a CSV file. By default the one that its header shows."
    )
    sheet: str | None = Field(None, description="Sheet of a workbook. By default the first one with rows.")
    record: str | None = Field(None, description="'transaction', 'module:Class' of a Pydantic model, or a JSON Schema file.")
    query_template: str | None = Field(None, description="Template of a record's query text, with field names in braces.")
    document_template: str = Field(DOCUMENT_TEMPLATE, description="Template of a document's text, with field names in braces.")


class SplitConfig(Section):
    """The queries for training, for choosing a checkpoint, and for the final test."""

    test: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the queries held out for testing, in a single split. Under 1,000 queries, folds are the default instead.",
    )
    dev: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the other queries for choosing the epoch, at most 500 queries; 0 for none. By default 0.1 "
        "with 1,000 or more, else none.",
    )
    folds: int | None = Field(
        None,
        ge=0,
        description="Number of folds. One model is trained for each, and every query is held out once; 0 for a single split. "
        "By default 5 under 1,000 queries, unless test is set.",
    )
    leaks: Literal["fail", "drop", "allow"] = Field(
        "fail",
        description="What to do when a held-out query is a copy or near copy of a training query: stop, drop the "
        "training query, or warn and go on.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split.")
    group_by: str | None = Field(
        None,
        description="A metadata field. Queries with the same value stay in one part. If the data has official parts, "
        "train queries that share a value with dev or test are left out, and dev queries that share one with test.",
    )
    by: Literal["queries", "documents"] = Field(
        "queries",
        description="What is held out. documents: no relevant document of a held-out query is relevant to a training or dev query.",
    )


class ModelConfig(Section):
    """The embedding model to start from."""

    name: str = Field(
        "BAAI/bge-base-en-v1.5",
        description="A Hub name, a local folder, all-MiniLM-L6-v2 (works offline), or a remote encoder such as "
        "openai:text-embedding-3-large.",
    )
    candidates: tuple[str, ...] = Field(
        (),
        description="Models to choose the base from, in place of name: the smallest that is within chance of the best before tuning.",
    )
    query_prompt: str | None = Field(None, description="Text before each query. By default the model's own prompt.")
    document_prompt: str | None = Field(None, description="Text before each document. By default the model's own prompt.")
    pooling: Literal["auto", "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"] = Field(
        "auto",
        description="Pooling of token vectors, for a model folder that does not name one (no modules.json). "
        "auto: lasttoken for a causal language model, else mean.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Number format for encoding. auto: bf16 where that is faster.")
    attn_implementation: Attention | None = Field(
        None,
        description="Implementation of attention, as transformers names it. By default the model's own choice, mostly sdpa; "
        "to train on short texts in bf16 on a CPU eager.",
    )
    model_kwargs: dict[str, Any] = Field(
        {}, description='sentence-transformers\' model_kwargs, such as {dtype = "bfloat16"}: options for loading the weights.'
    )
    price: float | None = Field(
        None, ge=0, description="Price of a million tokens of a remote encoder, in US dollars. By default OpenAI's list price."
    )

    @field_validator("model_kwargs")
    @classmethod
    def _options_are_plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return loading_options(value)
        except ConfigError as error:
            raise PydanticCustomError("model_kwargs", "{problem}", {"problem": str(error)}) from None

    @field_validator("candidates")
    @classmethod
    def _name_is_a_candidate(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        name = info.data.get("name")
        if value and name not in (cls.model_fields["name"].default, *value):
            raise PydanticCustomError("candidates", "name is {name}, which is no candidate; fix: leave one of them out", {"name": name})
        return value

    @property
    def loading(self) -> dict[str, Any]:
        """Options for loading the weights, with the implementation of attention among them."""
        return loading_options(self.model_kwargs, self.attn_implementation)

    @property
    def is_open(self) -> bool:
        """Whether the model is still to be chosen."""
        return bool(self.candidates) and self.name not in self.candidates


class EvaluateConfig(Section):
    """The metrics and the retrieval methods to measure."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(KS, min_length=1, description="Ranks at which the metrics are cut.")
    metric: str = Field("mrr@10", description="Metric of the verdict.")
    bm25: bool = Field(True, description="Measure BM25 as a second baseline.")
    retrieval: tuple[Literal["dense", "bm25", "hybrid"], ...] = Field(
        ("dense",),
        min_length=1,
        description="Retrieval methods of `embedfit evaluate`: vectors, words, or both (hybrid, by reciprocal rank fusion).",
    )
    rerankers: tuple[str, ...] = Field(
        (), description="Cross-encoders (Hub names or folders) with which `embedfit evaluate` reranks the top of each ranking."
    )
    rerank_top: int = Field(50, ge=1, description="Documents of each query that a cross-encoder reranks.")
    seeds: int = Field(
        1, ge=1, description="Number of training runs with different seeds, to show how much of the difference is training noise."
    )


class SearcherConfig(Section):
    """What is deployed, and how far its answers are trusted."""

    views: tuple[Literal["documents", "examples", "words", "classes", "terms", "base"], ...] = Field(
        ("documents", "examples", "words", "classes", "terms", "base"),
        min_length=1,
        description="Kinds of evidence to search with: the documents' vectors; labelled queries; the documents' words (BM25); linear "
        "models on the query's vector (classes), its words (terms), and its vector before tuning (base). "
        "Those that do not help are dropped.",
    )
    precision: float = Field(
        0.95, gt=0, lt=1, description="Share of right answers that is promised for those over the threshold, which need no person."
    )
    coverage: float = Field(0.95, gt=0, lt=1, description="Probability that the shown candidates hold a right answer.")
    keep_texts: bool = Field(True, description="Keep the labelled queries' texts in the searcher; without them, their vectors alone.")


class MixConfig(Section):
    """Additional training sets. Nothing is measured on them."""

    data: tuple[DataConfig, ...] = Field((), description="The data sets: a [[mix.data]] table for each, with the keys of [data].")
    temperature: float = Field(
        1.0,
        ge=1,
        description="Weight of small sets: a set of n queries has a share of n ** (1 / temperature). 1 trains on every query once.",
    )


class DeployConfig(Section):
    """The forms of the model to deploy, each cheaper to run."""

    forms: tuple[Literal["onnx", "onnx-int8", "static"], ...] = Field(
        (),
        description="Forms that a run exports: onnx in fp32, onnx-int8 with 8-bit weights, static as a mean of token vectors. "
        "A form that loses too much is left out.",
    )
    loss: float = Field(
        0.01, ge=0, le=1, description="Largest loss of the metric of the verdict that a form may have; one query's worth, if that is more."
    )


class GeneralConfig(Section):
    """A general data set, to measure what the model forgets, and the share of its score to keep."""

    queries: str | None = Field(None, description="A data set unlike the task, in a format that [data] takes. By default the bundled one.")
    documents: str | None = Field(None, description="Its file of documents, if they are in a separate file.")
    measure: Literal["ends", "sweep", "off"] = Field(
        "ends",
        description="What to measure: the base and the tuned model (ends), the merges of both too (sweep), or nothing (off). "
        "keep always measures merges.",
    )
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the base model's general score to keep, by merging base and tuned weights. 0.98 is a good start.",
    )


class LadderConfig(Section):
    """The methods that `embedfit ladder` measures."""

    rungs: tuple[str, ...] = Field((), description="Keys of the methods. By default all that the data allows.")
    document_template: str | None = Field(None, description="Template of a richer document text to try. By default all text fields.")


class StoreConfig(Section):
    """The vector store that `embedfit index` writes and `embedfit search` reads."""

    kind: Literal["chroma", "pgvector", "qdrant"] = Field("chroma", description="Chroma, PostgreSQL with pgvector, or Qdrant.")
    location: str = Field(
        "store",
        description="A folder (Chroma, or Qdrant for experiments), a URL, a PostgreSQL connection string, or env:NAME "
        "of an environment variable.",
    )
    api_key: str | None = Field(None, description="env:NAME of the environment variable that holds the server's key.")
    index: str = Field("documents", pattern=r"^[a-z][a-z0-9_]{1,38}[a-z0-9]$", description="Name of the live index.")
    min_recall: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Minimum recall of a new version in the first 10 results, against exact search. Below it, the "
        "version does not go live.",
    )


class TrackConfig(Section):
    """Services that receive results."""

    langwatch: bool = Field(True, description="Send the results of each query to LangWatch, if LANGWATCH_API_KEY is set.")
    report_to: tuple[Literal["mlflow", "wandb", "tensorboard"], ...] = Field((), description="Services that receive the training log.")


_Price = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class GenerateConfig(Section):
    """The data that an LLM writes, and its budget. If records or questions is above 0, `embedfit run` starts with generating."""

    records: int = Field(0, ge=0, description="Number of records to write, spread evenly over the documents. data.record is their type.")
    questions: int = Field(0, ge=0, description="Number of questions to write for each document.")
    model: str = Field("gpt-4.1-mini", description="Name of the LLM at its endpoint.")
    base_url: str | None = Field(None, description="An OpenAI-compatible endpoint, with /v1. By default OPENAI_BASE_URL, or OpenAI's own.")
    key: str | None = Field(
        None, description="Environment variable that holds the key. By default OPENAI_API_KEY, or EMBEDFIT_KEY_<HOST> for another host."
    )
    headers: dict[str, str] = Field({}, description="Additional headers, for gateways: name -> environment variable that holds the value.")
    mode: Literal["json_schema", "tools", "json"] = Field("json_schema", description="How the request states the schema of a reply.")
    prompt: str | None = Field(
        None, description="A Jinja template of the prompt. By default the bundled one for transactions, records or questions."
    )
    examples: str | None = Field(
        None, description="A file of real texts to imitate: JSONL with 'query', or one text on each line. Each prompt holds a random few."
    )
    styles: dict[str, str] = Field({}, description="Styles of questions: name -> instruction. By default keywords, question and situation.")
    personas: tuple[str, ...] = Field((), description="Personas who ask the questions. By default six, from expert to beginner.")
    temperature: float | None = Field(None, ge=0, description="Temperature of the LLM. By default its own.")
    max_tokens: int = Field(
        800, ge=1, description="Maximum tokens of a reply. A reply that is cut off is requested again with twice as many."
    )
    tries: int = Field(10, ge=1, description="Maximum number of replies for a record or question.")
    seed: int = Field(0, ge=0, description="Seed of the requests.")
    budget: float | None = Field(
        None,
        gt=0,
        description="Maximum cost of all runs on a ledger together, in US dollars (or the currency of price).",
    )
    max_tokens_total: int | None = Field(None, gt=0, description="Maximum number of tokens of all runs on a ledger together.")
    price: _Price | None = Field(
        None,
        description="Price of a million prompt tokens and of a million completion tokens, in US dollars or another "
        "currency. By default OpenAI's list price, for some models.",
    )
    concurrency: int = Field(32, ge=1, description="Maximum number of concurrent requests. It falls while the endpoint answers 429.")
    timeout: float = Field(120.0, gt=0, description="Timeout of a request, in seconds.")
    judge: str | None = Field(None, description="An LLM that categorises each record without seeing its label. It may be the same LLM.")
    judge_prompt: str | None = Field(None, description="A Jinja template of the judge's prompt.")
    judge_tries: int = Field(
        3,
        ge=1,
        description="Number of answers of the judge. A record is easy if the first is right, hard if a later one is, "
        "and suspect if none is.",
    )
    judge_price: _Price | None = Field(None, description="Price of the judge if it is another LLM, in the form of price.")
    suspects: Literal["keep", "drop"] = Field("keep", description="Keep or drop suspect records in the output.")

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
