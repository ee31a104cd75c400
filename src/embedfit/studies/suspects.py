"""Doubtful labels, against which two models agree: find them, write them for a person to decide on, apply the decisions."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.data.dataset import Dataset
from embedfit.errors import DataError, did_you_mean, shown
from embedfit.files import neutral, writing
from embedfit.retrieve.run import Run

if TYPE_CHECKING:
    import pandas as pd

DECISIONS = ("keep", "replace", "add")
"""Decisions that a person may make, besides naming the right documents."""
COLUMNS = ("query_id", "query", "expected", "suggested", "kind", "confidence")
COUNTED = (*DECISIONS, "document ids", "undecided")
_SEPARATOR = "|"
"""Separator of document ids in a cell; spreadsheets and data use the comma and the semicolon for other purposes."""
_SURE = 0.75
"""Confidence below which the label may be right too: the model finds it at least a third as probable as the suggestion."""


def find_suspects(dataset: Dataset, base: Run, tuned: Run, *, scale: float = 14.0) -> pd.DataFrame:
    """Return the queries for which both models rank the same document first, and that document is not a right one.

    The confidence is p(suggested) / (p(suggested) + p(expected)), the probability of the suggestion given that one of the two
    is right. Here p is the softmax of ``scale`` times the scores of the tuned model, as in its training, and expected is the
    label that ranks best. The confidence is 0.5 if the model cannot tell the two apart. An expected document that was not
    retrieved counts as if it had the lowest retrieved score, which bounds its own. Confident learning finds wrong labels by such
    probabilities, from a model that never saw the query (Northcutt, Jiang and Chuang 2021).

    The kind is ``also right`` if the confidence is under 0.75, else ``mislabel``. A document with grade 0, which a person judged
    not right, is not suggested.

    Args:
        dataset: Data set with the texts and judgements of the queries.
        base: Run of the model before tuning.
        tuned: Run of a model that was not tuned on these queries; otherwise it would have learned the wrong labels too.
        scale: Scale of the softmax in tuning.

    Returns:
        One row per suspect, the most confident first: query_id, query, expected (a list of ids), suggested, kind,
        confidence (from 0.5 to 1).
    """
    import pandas as pd

    first = {id: base.documents_at(row, 1) for row, id in enumerate(base.query_ids)}
    rows = []
    for row, (id, scores) in enumerate(zip(tuned.query_ids, tuned.scores, strict=True)):
        ranking, expected = tuned.documents_at(row), dataset.relevant(id)
        if not ranking or ranking[:1] != first[id] or ranking[0] in dataset.qrels.get(id, {}) or not expected:
            continue
        suggested = ranking[0]
        ranks = [rank for rank, document in enumerate(ranking) if document in expected]
        gap = float(scores[0]) - float(scores[ranks[0] if ranks else len(ranking) - 1])
        confidence = 1 / (1 + math.exp(-scale * gap))
        kind = "mislabel" if confidence >= _SURE else "also right"
        rows.append((id, dataset.queries[id].text, list(expected), suggested, kind, confidence))
    rows.sort(key=lambda row: (-row[-1], row[0]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_suspects(suspects: pd.DataFrame, path: str | Path) -> Path:
    """Write suspects as CSV for a spreadsheet, with an empty column ``decision`` for a person to fill.

    A cell that a spreadsheet would read as a formula gets an apostrophe before its first sign (OWASP, "CSV Injection");
    `relabelled` recognises such ids. The file is UTF-8 with a byte order mark, without which Excel guesses the encoding.

    Args:
        suspects: Suspects as `find_suspects` returns them.
        path: Path of the file.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    text = io.StringIO(newline="")
    rows = csv.writer(text, quoting=csv.QUOTE_ALL)
    rows.writerow([*COLUMNS, "decision"])
    for id, query, expected, suggested, kind, confidence in suspects[list(COLUMNS)].to_numpy():
        texts = (id, query, f" {_SEPARATOR} ".join(expected), suggested)
        rows.writerow([*map(neutral, texts), kind, f"{confidence:.3f}", ""])
    with writing(path) as file:
        file.write(text.getvalue().encode("utf-8-sig"))
    return path


def read_decisions(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file of suspects, with the decisions so far. Ids are as in the file.

    Raises:
        DataError: The file cannot be read, or is not such a table.
    """
    return [row for _, row in _table(path)]


def decide(path: Path, query_id: str, before: str, decision: str) -> bool:
    """Write a decision into a file of suspects. All else in it stays; several processes may do so at once.

    Args:
        path: Path of the file.
        query_id: Id of the query, as in the file.
        before: Decision that is replaced; empty for an undecided one.
        decision: New decision; empty to leave it undecided.

    Returns:
        Whether it was written. It is not if the file has no such query any more, or another decision than ``before``.

    Raises:
        DataError: The file cannot be read, or is not such a table.
        StorageError: The file cannot be written.
    """
    import filelock

    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        delimiter, header, rows = _parsed(path)
        place, id = header.index("decision"), header.index("query_id")
        cells = next((cells for _, cells in rows if cells[id] == query_id), None)
        if cells is None:
            return False
        cells += [""] * (len(header) - len(cells))
        if cells[place].strip() != before:
            return False
        cells[place] = decision
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([header, *(cells for _, cells in rows)])
        with writing(path) as file:
            file.write(text.getvalue().encode("utf-8-sig"))
    return True


def relabelled(dataset: Dataset, path: str | Path) -> tuple[Dataset, dict[str, int]]:
    """Return a data set with a person's decisions applied, and the number of each decision.

    The file is that of `write_suspects` with the column ``decision`` filled, as any spreadsheet saves it: separated by commas,
    semicolons or tabs, with or without a byte order mark, with columns in any order. A decision is

    - ``keep``: the label is right, and the suggestion is judged not right (grade 0), so that it is not made again;
    - ``replace``: the suggested document replaces the expected ones;
    - ``add``: the suggested document is right as well;
    - document ids separated by ``|``, or a JSON list of ids: these documents are right, and no others;
    - empty: undecided, and nothing changes.

    An added document gets the best grade among the query's labels.

    Args:
        dataset: Data set that the suspects are from.
        path: Path of the corrected CSV.

    Returns:
        The data set, and the number of rows for each of `COUNTED`.

    Raises:
        DataError: A line names an unknown query, document or decision, or the file is not such a table. Nothing is applied.
    """
    queries, documents = _written(dataset.queries), _written(dataset.corpus)
    qrels, counts, seen = dict(dataset.qrels), dict.fromkeys(COUNTED, 0), set[str]()
    for where, row in _table(Path(path)):
        id = _known(row["query_id"], queries, where, "query")
        if id in seen:
            raise DataError(where, f"query {id!r} occurs here a second time", fix="keep one of its lines")
        seen.add(id)
        decision = row["decision"].strip()
        word = decision.casefold()
        if not decision:
            counts["undecided"] += 1
            continue
        judged, grades = dataset.qrels.get(id, {}), dataset.relevant(id)
        best = max(grades.values(), default=1)
        if word in DECISIONS:
            suggested = _known(row["suggested"], documents, where, "document")
        if word == "keep":
            changed = {**judged, suggested: judged.get(suggested, 0)}
        elif word == "add":
            changed = {**judged, suggested: best}
        else:
            right = [suggested] if word == "replace" else _documents(decision, documents, where)
            changed = {document: grade for document, grade in judged.items() if grade == 0 and document not in right}
            changed |= {document: grades.get(document, best) for document in right}
        counts[word if word in DECISIONS else "document ids"] += 1
        qrels[id] = changed
    return Dataset(dataset.queries, dataset.corpus, qrels, dataset.parts), counts


def _written(ids: Iterable[str]) -> dict[str, str]:
    """Return each id under every form that it may have in a cell."""
    ids = list(ids)
    return {id: id for id in ids} | {neutral(id): id for id in ids}


def _known(cell: str, known: Mapping[str, str], where: str, kind: str) -> str:
    """Return the id in a cell, or raise a DataError if it is unknown."""
    id = known.get(cell, known.get(cell.strip()))
    if id is None:
        count = f"{len(set(known.values())):,} {'queries' if kind == 'query' else 'documents'}"
        raise DataError(where, f"{kind} {shown(cell.strip())} is not among the {count}{did_you_mean(cell.strip(), known.values())}")
    return id


def _documents(decision: str, known: Mapping[str, str], where: str) -> list[str]:
    """Return the ids that a decision names, without repeats."""
    if decision in known:
        return [known[decision]]
    cells = decision.split(_SEPARATOR)
    if decision.startswith("["):
        try:
            cells = [str(id) for id in json.loads(decision)]
        except ValueError as error:
            raise DataError(where, f"decision {shown(decision)} is not JSON ({error})", expected="a list of document ids") from None
    elif len(cells) == 1:
        hint = did_you_mean(decision, [*DECISIONS, *known.values()])
        raise DataError(
            where,
            f"decision {shown(decision)} is unknown{hint}",
            expected=f"{', '.join(DECISIONS)}, or document ids separated by {_SEPARATOR}",
        )
    if not cells:
        raise DataError(where, "decision names no document", expected=f"{', '.join(DECISIONS)}, or document ids")
    return list(dict.fromkeys(_known(cell, known, where, "document") for cell in cells))


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file and line, row) of a CSV as spreadsheets save it."""
    _, header, rows = _parsed(path)
    for where, cells in rows:
        yield where, dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))


def _parsed(path: Path) -> tuple[str, list[str], list[tuple[str, list[str]]]]:
    """Return the delimiter, the header, and (file and line, cells) of each row of a CSV as spreadsheets save it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", fix="give the CSV of suspects") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8", fix="save it from the spreadsheet as 'CSV UTF-8'") from None
    csv.field_size_limit(2**31 - 1)
    found = []
    try:
        delimiter, rows, header = _opened(text, path)
        line = rows.line_num + 1
        for cells in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            if any(cells[len(header) :]):
                raise DataError(where, f"has {len(cells)} cells", expected=f"{len(header)}, as in the header")
            if any(cells):  # Excel omits empty cells at the end of a line
                found.append((where, cells[: len(header)]))
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}", f"is not CSV ({error})", expected="quotes that close") from None
    return delimiter, header, found


def _opened(text: str, path: Path) -> tuple[str, Any, list[str]]:
    """Return the delimiter, the reader behind the header, and the header."""
    needed = ("query_id", "suggested", "decision")
    problem = DataError(f"{path}:1", f"has no columns {', '.join(needed)}", expected="the CSV of suspects, with its header")
    for delimiter in ",;\t":
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
        except csv.Error as error:  # a header in quotes, with another delimiter; or no CSV
            problem = DataError(f"{path}:{rows.line_num}", f"is not CSV ({error})", expected="quotes that close")
            continue
        if set(needed) <= set(header):
            return delimiter, rows, header
    raise problem
