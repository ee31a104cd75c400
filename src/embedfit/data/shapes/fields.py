"""Fields of a labelling task: the query, and the document that is judged for it."""

from __future__ import annotations

from typing import Any

from embedfit.data.cells import id_of
from embedfit.data.columns import ANY_COLUMNS, labelled_columns, names_document_ids, names_passages
from embedfit.data.texts import Row


def roles_of(fields: Row) -> tuple[str, str, str, dict[str, Any]]:
    """Return (field of the query, field of the document, id of the document, further fields) of a labelling task.

    A document is judged if a field of a passage stands beside that of the query; else the field and the id are empty.
    """
    texts = {name: value for name, value in fields.items() if isinstance(value, str) and value.strip()}
    columns = labelled_columns([texts], ANY_COLUMNS, with_documents=True)
    query = columns.query if columns.query in texts else next(iter(texts), "text")
    passage = next((name for name in texts if name != query and names_passages(name)), "")
    id_field = next((name for name in fields if names_document_ids(name)), "") if passage else ""
    rest = {name: value for name, value in fields.items() if name not in (query, passage, id_field)}
    return query, passage, id_of(fields.get(id_field)) or "", rest
