"""The first stage: an LLM writes the queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.config import Config
from embedfit.data.columns import Columns
from embedfit.data.dataset import Document
from embedfit.data.documents import read_documents
from embedfit.data.formats.source import Options
from embedfit.data.records import record_type
from embedfit.errors import ConfigError, shown
from embedfit.files import writing
from embedfit.generate.outcome import Estimate, Generated
from embedfit.generate.tasks import PERSONAS, STYLES, Questions, Records, Task, prompt_template, read_examples
from embedfit.generate.writer import estimate, generate
from embedfit.pipeline.passages import cutting_of
from embedfit.report.pages import generated_html

if TYPE_CHECKING:
    from embedfit.generate.endpoint import Endpoint


def run_generate(config: Config, endpoint: Callable[[], Endpoint] | None = None) -> Generated:
    """Have an LLM write the queries file of ``[data]`` under the settings of ``[generate]``, with a report beside it.

    Args:
        config: All settings.
        endpoint: Factory of the endpoint, called if a request has to be sent; by default with the key from the environment.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix.
    """
    output = Path(config.data.queries)
    outcome = generate(_task(config), output, config.generate, endpoint)
    with writing(output.with_suffix(".html")) as file:
        file.write(generated_html(f"{output.name}: {outcome.kind} by {config.generate.model}", outcome).encode())
    return outcome


def estimate_generate(config: Config) -> Estimate:
    """Return the requests that `run_generate` has still to send, and their approximate cost. Nothing is sent."""
    return estimate(_task(config), Path(config.data.queries), config.generate)


def _task(config: Config) -> Task:
    """Return the writing task that ``[generate]`` describes, for the documents of ``[data]``."""
    settings = config.generate
    if bool(settings.records) == bool(settings.questions):
        raise ConfigError("[generate] writes either records or questions: set one of them above 0")
    if not config.data.documents:
        raise ConfigError("[generate] needs data.documents: the labels to write records for, or the passages to write questions for")
    documents, examples = _documents(config, config.data.documents), read_examples(settings.examples)
    if settings.questions:
        template = prompt_template(settings.prompt, "question")
        _check_reading_back(config, documents)
        return Questions(
            documents,
            settings.questions,
            template,
            settings.styles or STYLES,
            settings.personas or PERSONAS,
            examples,
            settings.seed,
            config.data.query or "query",
            config.data.label or "expected",
        )
    if not config.data.record:
        raise ConfigError("generate.records needs data.record: 'transaction', 'module:Class' or a JSON Schema file")
    record = record_type(config.data.record, template=config.data.query_template, label=config.data.label)
    template = prompt_template(settings.prompt, "transaction" if config.data.record == "transaction" else "record")
    return Records(documents, settings.records, record, template, examples, settings.seed)


def _documents(config: Config, path: str) -> dict[str, Document]:
    data = config.data
    columns = Columns(document_id=data.document_id or "", document_title=data.document_title or "", document_text=data.document_text or "")
    options = Options(data.encoding or "", data.delimiter or "", data.sheet or "", columns.given)
    return read_documents(path, columns, options, cutting_of(data, config.model))


def _check_reading_back(config: Config, documents: Mapping[str, Document]) -> None:
    """Refuse settings of ``[data]`` under which the generated queries could not be read, before they are paid for.

    Raises:
        ConfigError: A setting needs something that generated queries do not have.
    """
    data = config.data
    if data.record:
        raise ConfigError("generate.questions writes queries, not records; fix: leave data.record out")
    for name in ("grade", "id", "part", "qrels"):
        if getattr(data, name):
            raise ConfigError(f"data.{name} is {getattr(data, name)!r}, and generated queries have no {name}; fix: leave it out")
    split = next((id for id in documents if data.separator and data.separator in id), None)
    if split is not None:
        raise ConfigError(f"the document id {shown(split)} contains data.separator, {data.separator!r}; fix: another separator, or none")


def write_queries(config: Config) -> None:
    """Have an LLM write the queries that `embedfit run` starts with.

    Raises:
        ConfigError: A limit stopped the generation before all queries were written.
    """
    outcome = run_generate(config)
    if outcome.accepted + outcome.given_up < outcome.asked and outcome.stopped:
        raise ConfigError(f"{outcome.accepted:,} of {outcome.asked:,} {outcome.kind} were written: {outcome.stopped}")
