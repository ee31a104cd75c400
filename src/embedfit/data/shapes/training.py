"""Rows for training: sentence-transformers, FlagEmbedding, Tevatron, DPR, and MS MARCO's triples."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from embedfit import console
from embedfit.data.cells import id_of, listed, read_grade, read_text, spelling, whole_number
from embedfit.data.library import Library
from embedfit.data.shapes.shape import Lines, Shape, each_row, graded, id_in, passages_in, rest_of, source_of, texts_of
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, shown

_ANCHORS = ("anchor", "query", "question", "sentence", "text", "input")
_WRONG = re.compile(r"(hard_)?neg(ative)?s?([_-]?\d+)?")
_RIGHT = re.compile(r"pos(itive)?s?([_-]?\d+)?|relevant_passages?")


def _anchor(keys: frozenset[str]) -> str:
    return next((key for key in _ANCHORS if key in keys), "")


def _fits_tuples(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    right = [key for key in keys if _RIGHT.fullmatch(key) and key.startswith(("positive", "relevant"))]  # "pos" may be a part of speech
    texts = all(_texts_only(row[key]) for row in rows for key in right if key in row)
    return bool(_anchor(keys)) and bool(right) and texts


def _texts_only(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    # A column "positive" may also hold judgements or probabilities.
    return all(item is None or (isinstance(item, str) and not _JUDGEMENT.fullmatch(item.casefold())) for item in values)


_JUDGEMENT = re.compile(r"[-+]?[\d.]+|true|false|yes|no")


def _tuples(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read (anchor, positive, negative ...) with any number of each, which may be lists; with ids beside FlagEmbedding's lists."""
    anchor = _anchor(frozenset(row)) or "query"
    grades: list[list[str]] = [[], []]
    scores: dict[str, float] = {}
    taken = {"id", "_id", anchor}
    for key in row:
        wrong = bool(_WRONG.fullmatch(key))
        if not wrong and not _RIGHT.fullmatch(key):
            continue
        texts = texts_of(row, key, where)
        ids = row.get(f"{key}_id") or row.get(f"{key}_ids")
        if ids is not None and (not isinstance(ids, list) or len(ids) != len(texts)):
            raise DataError(where, f"has {len(texts)} texts under {key!r} and the ids {shown(ids)}", expected="an id for each text")
        taken |= {key, f"{key}_id", f"{key}_ids", f"{key}_scores"}
        known = [id_of(id) or "" for id in ids or [None] * len(texts)]
        documents = [library.add(text, id=id, where=where) for text, id in zip(texts, known, strict=True)]
        grades[wrong] += documents
        scores |= zip(documents, _scores_of(row, key, len(texts), where), strict=False)
    id = id_in(row, "id", "_id", "query_id")
    metadata = rest_of(row, *taken, "query_id", "pos_scores", "neg_scores", "prompt", "type")
    yield Pair(where, number, read_text(row, anchor, where), graded(*grades) or None, id, "", metadata, scores=scores)


def _scores_of(row: Row, key: str, count: int, where: str) -> list[float]:
    """Return a teacher's scores of the texts under a key; none if there are none.

    Raises:
        DataError: There is not one number for each text.
    """
    scores = row.get(f"{key}_scores")
    if isinstance(scores, str):
        with contextlib.suppress(ValueError):
            scores = listed(scores)
    if scores is None or scores == []:
        return []
    numbers = [_number(score) for score in scores] if isinstance(scores, list) else []
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if len(known) != count or len(known) != len(numbers):
        raise DataError(where, f"has {count} texts under {key!r} and the scores {shown(scores)}", expected="a number for each text")
    return known


_SCORES = ("score", "label", "similarity_score", "similarity", "relatedness_score", "labels")
_SENTENCES = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_A", "sentence_B"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("question1", "question2"),
)


_SCALES = (1, 5)
"""Highest similarities of sentence-transformers, and of the STS tasks."""


def _fits_scores(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return any(set(names) <= keys for names in _SENTENCES) and any(key in keys for key in _SCORES)


def _scores(lines: Lines, library: Library) -> Iterator[Pair | DataError]:
    """Read pairs of sentences with a similarity from 0 to 1 or to 5, a whole grade, or a label of 0 and 1."""
    lines = list(lines)
    keys = {key for _, row in lines for key in row}
    key = next(name for name in _SCORES if name in keys)
    first, second = next(names for names in _SENTENCES if set(names) <= keys)
    scores = [_number(row.get(key)) for _, row in lines]
    known = [score for score in scores if score is not None]
    highest = max(known, default=0)
    scale = next((scale for scale in _SCALES if highest <= scale), 0)
    similarities = bool(known) and bool(scale) and min(known) >= 0 and not all(score.is_integer() for score in known)
    if similarities:
        source = source_of(lines[0][0])
        console.note(
            f"{source}: {key!r} is a similarity from 0 to {scale}: from {scale / 2:g} the second sentence is right, below it is not"
        )
    for number, ((where, row), score) in enumerate(zip(lines, scores, strict=True), 1):
        try:
            texts = [read_text(row, name, where) for name in (first, second)]
            similar = similarities and score is not None and score >= scale / 2
            grade = None if row.get(key) is None else int(similar) if similarities and score is not None else read_grade(row[key])
            document = library.add(texts[1], where=where)
            yield Pair(where, number, texts[0], None if grade is None else {document: grade})
        except ValueError:
            fix = "divide the scores by the highest one, or round them to whole grades"
            yield DataError(
                where, f"key {key!r} is {shown(row[key])}", expected="a whole grade, or a similarity from 0 to 1 or to 5", fix=fix
            )
        except DataError as error:
            yield error


_INFERENCES = {
    **dict.fromkeys(("entailment", "entails", "entailed"), "entailment"),
    "neutral": "neutral",
    **dict.fromkeys(("contradiction", "contradicts", "contradictory", "notentailment"), "contradiction"),
    **dict.fromkeys(("", "-1"), ""),
}
"""Label of a pair of sentences, as `spelling` spells it -> its meaning; empty for a pair without an agreed label."""
_NUMBERED = {"0": "entailment", "1": "neutral", "2": "contradiction"}
"""Labels of SNLI and MNLI by their numbers."""
_NLI_LABELS = ("label", "gold_label", "label_text", "labels")


def _inference(row: Row) -> str:
    """Return the label of a pair of sentences as a word: the first that is one, else a number."""
    values = [str(whole_number(row[key])).strip() for key in _NLI_LABELS if row.get(key) is not None]
    values = [re.sub(r"\.0+$", "", value) if re.match(r"-?\d", value) else spelling(value) for value in values]
    return next((value for value in values if value in _INFERENCES), values[0] if values else "")


def _fits_inferences(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    values = {_inference(row) for row in rows if any(key in row for key in _NLI_LABELS)}
    words = values <= _INFERENCES.keys() and bool(values - {"", "-1"})
    if {"premise", "hypothesis"} <= keys:
        return words or (bool(values) and values <= {*_NUMBERED, *_INFERENCES})
    return words and any(set(names) <= keys for names in _SENTENCES)


def _inferences(lines: Lines, library: Library) -> Iterator[Pair | DataError]:
    """Read pairs of sentences: what is entailed is right, what is contradicted is not, and what is neither is not judged."""
    lines = list(lines)
    keys = {key for _, row in lines for key in row}
    first, second = next(names for names in (("premise", "hypothesis"), *_SENTENCES) if set(names) <= keys)
    numbered = {_inference(row) for _, row in lines} - _INFERENCES.keys()
    source, neutral = source_of(lines[0][0]), 0
    if numbered and "2" not in numbered:
        fix = f"write words; or, if 1 is right, set query = {first!r}, label = {second!r}, grade = 'label' in [data]"
        seen = f"has no label but {' and '.join(sorted(numbered))} in all {len(lines):,} rows, and either may be entailment"
        yield DataError(source, seen, expected="0, 1 and 2, or words such as 'entailment'", fix=fix)
        return
    for number, (where, row) in enumerate(lines, 1):
        try:
            texts = [read_text(row, name, where) for name in (first, second)]
            own = _inference(row)
            meaning = _INFERENCES.get(own, _NUMBERED.get(own))
            if meaning is None:
                raise DataError(where, f"has the label {shown(own)}", expected="entailment, neutral or contradiction, or 0, 1 or 2")
            neutral += meaning == "neutral"
            judged = {"entailment": 1, "contradiction": 0}.get(meaning)
            grades = None if judged is None else {library.add(texts[1], where=where): judged}
            yield Pair(where, number, texts[0], grades)
        except DataError as error:
            yield error
    of_numbers = "; of the numbers, 0 is entailment and 2 contradiction" if numbered else ""
    console.note(
        f"{source}: entailed sentences are right, contradicted ones are not, and {neutral:,} neutral ones are not judged{of_numbers}"
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _fits_examples(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return "texts" in keys and all(isinstance(row.get("texts"), list) for row in rows)


def _examples(lines: Lines, library: Library) -> Iterator[Pair | DataError]:
    """Read examples of the older sentence-transformers: ``{"texts": [...], "label": 1.0}``."""
    pairs: list[tuple[str, Row]] = []
    for where, row in lines:
        texts = row.get("texts")
        if not isinstance(texts, list) or len(texts) < 2:
            yield DataError(where, f"key 'texts' is {shown(texts)}", expected="a list of two texts or more")
        elif len(texts) == 2 and "label" in row:
            pairs.append((where, {"sentence1": texts[0], "sentence2": texts[1], "score": row["label"]}))
        else:
            names = ["anchor", "positive", *(f"negative_{place}" for place in range(1, len(texts) - 1))]
            pairs.append((where, dict(zip(names, texts, strict=True))))
    yield from (_scores if pairs and "score" in pairs[0][1] else each_row(_tuples))(pairs, library)


def _alike(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a set of texts that say the same, of which the first is the query."""
    texts = row.get("set")
    if not isinstance(texts, list) or len(texts) < 2:
        raise DataError(where, f"key 'set' is {shown(texts)}", expected="a list of two texts or more")
    yield from _tuples(where, number, {"anchor": texts[0], "positive": texts[1:]}, library)


def _tevatron(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    right = passages_in(row, "positive_passages", where, library)
    wrong = passages_in(row, "negative_passages", where, library)
    key = "query" if "query" in row else "query_text"
    metadata = rest_of(row, "query_id", key, "positive_passages", "negative_passages")
    yield Pair(where, number, read_text(row, key, where), graded(right, wrong) or None, id_in(row, "query_id"), "", metadata)


def _dpr(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    right = passages_in(row, "positive_ctxs", where, library)
    wrong = [id for key in ("hard_negative_ctxs", "negative_ctxs") for id in passages_in(row, key, where, library)]
    metadata = rest_of(row, "question", "positive_ctxs", "negative_ctxs", "hard_negative_ctxs", "id", "qid", "question_id")
    id = id_in(row, "id", "qid", "question_id")
    yield Pair(where, number, read_text(row, "question", where), graded(right, wrong) or None, id, "", metadata)


def _fits_triples(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    numbers = any(re.fullmatch(r"\d+", str(value).strip()) for row in rows[:20] for value in row.values())
    return keys == {"1", "2", "3"} and not numbers


def _triple(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    named = {"anchor": row.get("1"), "positive": row.get("2"), "negative": row.get("3")}
    yield from _tuples(where, number, {key: value for key, value in named.items() if value is not None}, library)


SHAPES = (
    Shape("Tevatron", lambda keys, rows: "positive_passages" in keys, each_row(_tevatron), mined=True),
    Shape("DPR", lambda keys, rows: {"question", "positive_ctxs"} <= keys, each_row(_dpr), mined=True),
    Shape("FlagEmbedding", lambda keys, rows: {"query", "pos"} <= keys, each_row(_tuples), mined=True),
    Shape("sentence-transformers, tuples", _fits_tuples, each_row(_tuples), mined=True),
    Shape("NLI", _fits_inferences, _inferences),
    Shape("sentence-transformers, pairs with a score", _fits_scores, _scores),
    Shape("sentence-transformers, examples", _fits_examples, _examples, mined=True),
    Shape("sentence-transformers, sets", lambda keys, rows: keys == {"set"}, each_row(_alike), mined=True),
    Shape("MS MARCO, triples", _fits_triples, each_row(_triple), mined=True),
)
