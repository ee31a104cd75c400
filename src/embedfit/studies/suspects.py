"""Labels in doubt: where two models agree against the label. Found, written down for a person to decide, and applied."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.data.dataset import Dataset
from embedfit.errors import DataError, did_you_mean, shown
from embedfit.files import neutral, writing
from embedfit.retrieve.run import Run

if TYPE_CHECKING:
    import pandas as pd

DECISIONS = ("keep", "replace", "add")
"""What a person may decide, besides naming the right documents."""
COLUMNS = ("query_id", "query", "expected", "suggested", "kind", "confidence")
COUNTED = (*DECISIONS, "document ids", "undecided")
_BETWEEN = "|"
"""Stands between document ids in a cell: spreadsheets and data use the comma and the semicolon for other things."""
_SURE = 0.75
"""Confidence under which a label is taken to be right too: the model finds it at least a third as probable as the suggestion."""


def find_suspects(dataset: Dataset, base: Run, tuned: Run, *, scale: float = 14.0) -> pd.DataFrame:
    """Return the queries for which both models put the same document first, and it is not among the right ones.

    The confidence is p(suggested) / (p(suggested) + p(expected)), with p the softmax of ``scale`` times the scores of the tuned
    model, as in its training, and expected the label that ranks best: the probability of the suggestion, given that one of the
    two is right. It is 0.5 where the model cannot tell them apart. Of an expected document that was not retrieved it is known
    that it scores no higher than the last that was, and the confidence is what would follow from that score. Probabilities of
    a model that never saw the query are what confident learning finds wrong labels by (Northcutt, Jiang and Chuang 2021).

    The kind is ``also right`` where the confidence is under 0.75, else ``mislabel``.

    A document that was judged, and found not right (grade 0), is not suggested.

    Args:
        dataset: With the texts and judgements of the queries.
        base: Of the model before tuning.
        tuned: Of a model that was not tuned on these queries: one that was has learned the wrong labels too.
        scale: Of the softmax in tuning.

    Returns:
        One row per suspect, the most confident first: query_id, query, expected (a list of ids), suggested, kind,
        confidence (from 0.5 to 1).
    """
    import pandas as pd

    first = {id: base.documents_at(row, 1) for row, id in enumerate(base.query_ids)}
    rows = []
    for row, (id, scores) in enumerate(zip(tuned.query_ids, tuned.scores, strict=True)):
        found, expected = tuned.documents_at(row), dataset.relevant(id)
        if not found or found[:1] != first[id] or found[0] in dataset.qrels.get(id, {}) or not expected:
            continue
        suggested = found[0]
        ranks = [rank for rank, document in enumerate(found) if document in expected]
        gap = float(scores[0]) - float(scores[ranks[0] if ranks else len(found) - 1])
        confidence = 1 / (1 + math.exp(-scale * gap))
        kind = "mislabel" if confidence >= _SURE else "also right"
        rows.append((id, dataset.queries[id].text, list(expected), suggested, kind, confidence))
    rows.sort(key=lambda row: (-row[-1], row[0]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_suspects(suspects: pd.DataFrame, path: str | Path) -> Path:
    """Write suspects as CSV for a spreadsheet, with an empty column ``decision`` for a person to fill.

    A cell that a spreadsheet would take for a formula has an apostrophe before the sign that makes it one (OWASP, "CSV
    Injection"); `relabelled` knows such ids again. UTF-8 with a byte order mark, without which Excel guesses.

    Args:
        suspects: From `find_suspects`.
        path: Of the file.

    Raises:
        StorageError: It cannot be written.
    """
    path = Path(path)
    text = io.StringIO(newline="")
    rows = csv.writer(text, quoting=csv.QUOTE_ALL)
    rows.writerow([*COLUMNS, "decision"])
    for id, query, expected, suggested, kind, confidence in suspects[list(COLUMNS)].to_numpy():
        texts = (id, query, f" {_BETWEEN} ".join(expected), suggested)
        rows.writerow([*map(neutral, texts), kind, f"{confidence:.3f}", ""])
    with writing(path) as file:
        file.write(text.getvalue().encode("utf-8-sig"))
    return path


def relabelled(dataset: Dataset, path: str | Path) -> tuple[Dataset, dict[str, int]]:
    """Return a data set with a person's decisions applied, and how many there were of each.

    The file is that of `write_suspects`, with the column ``decision`` filled, as any spreadsheet saves it: with commas,
    semicolons or tabs, with or without a byte order mark, columns in any order. A decision is

    - ``keep``: the label is right, and the suggestion is judged not to be (grade 0), so that it is not made again;
    - ``replace``: the suggested document takes the place of the expected ones;
    - ``add``: it is right as well;
    - ids of documents with ``|`` between them, or a JSON list of ids: these are right, and no others;
    - nothing: undecided, and nothing changes.

    A document that comes in gets the best grade that the query's labels had.

    Args:
        dataset: In which the suspects were found.
        path: Of the corrected CSV.

    Returns:
        The data set, and a count for each of `COUNTED`.

    Raises:
        DataError: A line names an unknown query, document or decision, or the file is no such table; nothing is applied.
    """
    queries, documents = _written(dataset.queries), _written(dataset.corpus)
    qrels, counts, seen = dict(dataset.qrels), dict.fromkeys(COUNTED, 0), set[str]()
    for where, row in _table(Path(path)):
        id = _known(row["query_id"], queries, where, "query")
        if id in seen:
            raise DataError(where, f"query {id!r} stands here a second time", fix="leave one of its lines")
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
            changed = {one: grade for one, grade in judged.items() if grade == 0 and one not in right}
            changed |= {one: grades.get(one, best) for one in right}
        counts[word if word in DECISIONS else "document ids"] += 1
        qrels[id] = changed
    return Dataset(dataset.queries, dataset.corpus, qrels, dataset.parts), counts


def _written(ids: Iterable[str]) -> dict[str, str]:
    """Return the ids by how they may stand in a cell."""
    ids = list(ids)
    return {id: id for id in ids} | {neutral(id): id for id in ids}


def _known(cell: str, known: Mapping[str, str], where: str, kind: str) -> str:
    """Return the id that a cell holds, or refuse it."""
    id = known.get(cell, known.get(cell.strip()))
    if id is None:
        count = f"{len(set(known.values())):,} {'queries' if kind == 'query' else 'documents'}"
        raise DataError(where, f"{kind} {shown(cell.strip())} is not among the {count}{did_you_mean(cell.strip(), known.values())}")
    return id


def _documents(decision: str, known: Mapping[str, str], where: str) -> list[str]:
    """Return the ids that a decision names, each once."""
    if decision in known:
        return [known[decision]]
    cells = decision.split(_BETWEEN)
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
            expected=f"{', '.join(DECISIONS)}, or document ids with {_BETWEEN} between them",
        )
    if not cells:
        raise DataError(where, "decision names no document", expected=f"{', '.join(DECISIONS)}, or document ids")
    return list(dict.fromkeys(_known(cell, known, where, "document") for cell in cells))


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file and line, row) of a CSV as spreadsheets save it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", fix="give the CSV of suspects") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8", fix="save it from the spreadsheet as 'CSV UTF-8'") from None
    needed = ("query_id", "suggested", "decision")
    csv.field_size_limit(2**31 - 1)
    try:
        for delimiter in ",;\t":
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if set(needed) <= set(header):
                break
        else:
            raise DataError(f"{path}:1", f"has no columns {', '.join(needed)}", expected="the CSV of suspects, with its header")
        line = rows.line_num + 1
        for cells in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            if any(cells[len(header) :]):
                raise DataError(where, f"has {len(cells)} cells", expected=f"{len(header)}, as in the header")
            if any(cells):  # Excel leaves empty cells at the end of a line out
                yield where, dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}", f"is not CSV ({error})", expected="quotes that close") from None
