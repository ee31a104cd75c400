"""The stage before all others: an LLM writes the queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.config import Config
from embedfit.data.dataset import Document
from embedfit.data.documents import read_documents
from embedfit.data.records import record_type
from embedfit.errors import ConfigError, shown
from embedfit.files import writing
from embedfit.generate.outcome import Estimate, Generated
from embedfit.generate.tasks import PERSONAS, STYLES, Questions, Records, Task, prompt_template, read_examples
from embedfit.generate.writer import estimate, generate
from embedfit.report.pages import generated_html

if TYPE_CHECKING:
    from embedfit.generate.endpoint import Endpoint


def run_generate(config: Config, endpoint: Callable[[], Endpoint] | None = None) -> Generated:
    """Have an LLM write the queries that ``[data]`` names, by what ``[generate]`` says, and a report beside them.

    Args:
        config: All settings.
        endpoint: Makes the endpoint when something has to be sent. By default with the key from the environment.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    output = Path(config.data.queries)
    found = generate(_task(config), output, config.generate, endpoint)
    with writing(output.with_suffix(".html")) as file:
        file.write(generated_html(f"{output.name}: {found.kind} by {config.generate.model}", found).encode())
    return found


def estimate_generate(config: Config) -> Estimate:
    """Return what `run_generate` would still have to ask, and about what that costs; nothing is sent."""
    return estimate(_task(config), Path(config.data.queries), config.generate)


def _task(config: Config) -> Task:
    """Return what ``[generate]`` asks for, of the documents of ``[data]``."""
    said = config.generate
    if bool(said.records) == bool(said.questions):
        raise ConfigError("[generate] asks for records or for questions: set one of them above 0")
    if not config.data.documents:
        raise ConfigError("[generate] needs data.documents: the labels to write records for, or the passages to write questions for")
    documents, examples = read_documents(config.data.documents), read_examples(said.examples)
    if said.questions:
        template = prompt_template(said.prompt, "question")
        _check_reading_back(config, documents)
        return Questions(
            documents,
            said.questions,
            template,
            said.styles or STYLES,
            said.personas or PERSONAS,
            examples,
            said.seed,
            config.data.query,
            config.data.label or "expected",
        )
    if not config.data.record:
        raise ConfigError("generate.records needs data.record: 'transaction', 'module:Class' or a JSON Schema file")
    record = record_type(config.data.record, template=config.data.query_template, label=config.data.label)
    template = prompt_template(said.prompt, "transaction" if config.data.record == "transaction" else "record")
    return Records(documents, said.records, record, template, examples, said.seed)


def _check_reading_back(config: Config, documents: Mapping[str, Document]) -> None:
    """Refuse settings of ``[data]`` by which written queries could not be read again, before they are paid for.

    Raises:
        ConfigError: One of them asks for what they do not have.
    """
    data = config.data
    if data.record:
        raise ConfigError("generate.questions writes queries, which are no records; fix: leave data.record out")
    if data.grade:
        raise ConfigError(f"data.grade is {data.grade!r}, and generated queries have no grade; fix: leave it out")
    split = next((id for id in documents if data.separator and data.separator in id), None)
    if split is not None:
        raise ConfigError(f"the document id {shown(split)} holds data.separator, {data.separator!r}; fix: another separator, or none")


def write_queries(config: Config) -> None:
    """Have the queries written that `embedfit run` begins with.

    Raises:
        ConfigError: A limit stopped it before all were written.
    """
    found = run_generate(config)
    if found.accepted + found.given_up < found.asked and found.stopped:
        raise ConfigError(f"{found.accepted:,} of {found.asked:,} {found.kind} are written: {found.stopped}")
