"""Checks of a data set before training: conflicts, copies, leaks, and unusual labels."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import PARTS, Dataset, normalised
from embedfit.data.duplicates import Duplicates, near_duplicates, queries_that_are_documents
from embedfit.data.labels import SEPARATORS
from embedfit.errors import shown
from embedfit.words import words_of

Level: TypeAlias = Literal["problem", "warning", "note"]
_NAME_WORDS = 10
"""Maximum number of words of a document that is a name and not a passage."""
_MERGED_SHARE = 0.1
"""Maximum share of merged queries that are reported as probable mistakes. Above it, several answers are probably intended."""
_DIGIT, _WORD = re.compile(r"\d"), re.compile(r"[^\W\d_]{2,}|[^\W\d_\x00-\u02ff]")
"""What a code has, and what makes a text more than one: two letters in a row, or one of a script in which a single one may be a word."""
_CHAIN_SHARE, _CHAIN_QUERIES = 0.1, 10
"""Share and number of the queries above which a chain of near duplicates is reported, since it makes parts uneven."""
_ENTITIES, _ENTITY_SHARE, _MET_BEFORE = 10, 0.2, 0.5
"""A field that identifies customers, merchants or the like has at least so many values, none in more than this share of the queries.
It is reported if the last share of the test queries have a value that also occurs in another part."""


@dataclass(frozen=True)
class Finding:
    """A result of a check.

    Attributes:
        level: ``problem`` makes figures wrong, ``warning`` may make them wrong, ``note`` does not.
        kind: Short name of the check, for filtering.
        message: Text of one line.
        ids: Ids of the queries or documents concerned.
    """

    level: Level
    kind: str
    message: str
    ids: tuple[str, ...] = field(default=(), repr=False)


def check_dataset(dataset: Dataset) -> list[Finding]:
    """Return the findings in a data set: conflicts, copies, labels inside queries, rare and unused labels.

    Args:
        dataset: Data set to check.
    """
    checks = (
        _merged,
        _joined,
        _bare,
        _conflicts,
        _near_conflicts,
        _copies,
        _near_copies,
        _chained,
        _own_words,
        _documents_themselves,
        _one_label,
        _rare,
        _unasked,
        _unjudged,
    )
    return [finding for check in checks for finding in check(dataset)]


def check_leaks(dataset: Dataset, parts: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return the held-out queries that are copies or near copies of queries in a part that training uses.

    Test is held out from dev and train, and dev from train. A query that a model was trained on, or chosen by, does not test it.
    `near_duplicates` defines near copies.

    Args:
        dataset: Data set with the queries of the parts.
        parts: ``train``, ``dev`` and ``test`` -> query ids. Parts may be missing.

    Returns:
        A problem of kind ``leak`` for each leaking held-out query. Its ids are the held-out query and then its copies: exact ones
        first, and dev before train. `without_leaks` drops these copies.
    """
    duplicates = near_duplicates(dataset.query_texts())
    queries = list(dataset.queries)
    places = _shared_places(queries, duplicates, parts)
    group_of = dict(zip((queries[place] for place in places), duplicates.group_of[places].tolist(), strict=True))
    members: dict[str, dict[int, list[str]]] = {part: {} for part in PARTS}
    for part, ids in parts.items() if group_of else ():
        for id in ids:
            if id in group_of:
                members[part].setdefault(group_of[id], []).append(id)
    near: dict[int, list[int]] = {}
    for left, right in duplicates.near:
        near.setdefault(left, []).append(right)
        near.setdefault(right, []).append(left)
    findings = []
    for held_out, seen in (("test", ("dev", "train")), ("dev", ("train",))):
        for group, ids in members[held_out].items():
            same = [(part, id) for part in seen for id in members[part].get(group, ())]
            nearly = [(part, id) for part in seen for number in near.get(group, ()) for id in members[part].get(number, ())]
            if not same and not nearly:
                continue
            (part, first), *rest = same + nearly
            copy = f"says {'what' if same else 'nearly what'} {part} query {first!r} says: {shown(dataset.queries[first].text)}"
            more = f" (and {len(rest):,} more)" if rest else ""
            copies = tuple(id for _, id in same + nearly)
            findings += [Finding("problem", "leak", f"{held_out} query {id!r} {copy}{more}", (id, *copies)) for id in ids]
    return findings


def _shared_places(queries: Sequence[str], duplicates: Duplicates, parts: Mapping[str, Sequence[str]]) -> npt.NDArray[np.int64]:
    """Return the positions of the queries in chains of copies and near copies that have queries in several parts."""
    chain_of, several, before = duplicates.chain_of, np.zeros(len(queries), bool), np.zeros(len(queries), bool)
    for ids in parts.values():
        inside = set(ids)
        here = np.zeros(len(queries), bool)
        here[chain_of[np.fromiter((id in inside for id in queries), bool, len(queries))]] = True
        several |= here & before
        before |= here
    return np.flatnonzero(several[chain_of])


def check_groups(dataset: Dataset, parts: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return the metadata fields that identify something, such as a customer, with the same values in several parts.

    Queries of one customer tend to be alike, so a model is tested on customers that it was trained on. Whether that matters, and
    whether future customers are new, only the owner of the data knows.

    Args:
        dataset: Data set with the queries of the parts.
        parts: ``train``, ``dev`` and ``test`` -> query ids.

    Returns:
        A note of kind ``group`` for each such field that is not the label. Its ids are the test queries concerned.
    """
    part_of = {id: part for part, ids in parts.items() for id in ids}
    test = parts.get("test", ())
    findings = []
    for name in sorted({name for id in part_of for name in dataset.queries[id].metadata}):
        values = {id: dataset.queries[id].metadata.get(name) for id in part_of}
        # A number with a fraction is a measurement and identifies nothing.
        named = {
            id: str(value) for id, value in values.items() if isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
        }
        counts = Counter(named.values())
        if len(counts) < _ENTITIES or counts.most_common(1)[0][1] > _ENTITY_SHARE * len(part_of) or _is_label(dataset, named):
            continue
        seen = {value for id, value in named.items() if part_of[id] != "test"}
        met = tuple(id for id in test if named.get(id) in seen)
        if len(met) < max(1, _MET_BEFORE * len(test)):
            continue
        message = (
            f"{len(met):,} of {len(test):,} test queries have a {name} that train or dev queries have too, such as {shown(named[met[0]])}; "
            f'if new ones will come, group_by = "{name}" in [split] keeps those of each {name} in one part'
        )
        findings.append(Finding("note", "group", message, met))
    return findings


def warnings(findings: Iterable[Finding], each: int = 3) -> list[str]:
    """Return the messages of warnings: the first few of each kind, and the number of the rest."""
    messages: dict[str, list[str]] = {}
    for finding in findings:
        if finding.level == "warning":
            messages.setdefault(finding.kind, []).append(finding.message)
    lines = []
    for kind, texts in messages.items():
        more = len(texts) - each
        lines += texts[:each] + ([f"... and {more:,} more of the kind '{kind}'; 'embedfit check' lists them"] if more > 0 else [])
    return lines


def _merged(dataset: Dataset) -> list[Finding]:
    ids = dataset.merged
    if not ids:
        return []
    labels = ", ".join(sorted(dataset.relevant(ids[0])))
    message = (
        f"{len(ids):,} of {len(dataset.queries):,} queries stand in several rows with different labels, and all of these count as right, "
        f"such as {shown(dataset.queries[ids[0]].text)} ({labels}); if they contradict each other, remove the wrong rows"
    )
    # If many queries have several rows, several answers are intended.
    return [Finding("warning" if len(ids) <= _MERGED_SHARE * len(dataset.queries) else "note", "conflict", message, ids)]


def _joined(dataset: Dataset) -> list[Finding]:
    labels = [id for id, document in dataset.corpus.items() if document.text == id and not document.metadata]
    for separator in SEPARATORS:
        parts = {id: {part.strip() for part in id.split(separator)} for id in labels if separator in id.strip()}
        times = Counter(part for own in parts.values() for part in own)
        ids = tuple(id for id, own in parts.items() if all(times[part] > 1 for part in own))
        # A few names may share words. If most labels consist of words that recur, they are lists.
        if len(ids) > 2 and 2 * len(ids) > len(parts):
            message = f"{len(ids):,} labels look like several with {separator!r} between them, such as {shown(ids[0])}"
            return [Finding("warning", "joined labels", f"{message}; if they are, set data.separator = {separator!r}", ids)]
    return []


def _bare(dataset: Dataset) -> list[Finding]:
    """Report documents that are nothing but a number or a code, such as labels that were encoded for a classifier."""
    plain = {id: f"{document.title} {document.text}" for id, document in dataset.corpus.items() if not document.metadata}
    ids = tuple(id for id, text in plain.items() if _DIGIT.search(text) and not _WORD.search(text))
    if not ids or 2 * len(ids) <= len(dataset.corpus):
        return []
    message = (
        f"{len(ids):,} of {len(dataset.corpus):,} documents are bare numbers or codes, such as {shown(dataset.corpus[ids[0]].text)}, "
        "which tell a model nothing; name them in a file of documents with the fields id and text"
    )
    return [Finding("warning", "bare code", message, ids)]


def _conflicts(dataset: Dataset) -> list[Finding]:
    judged = dataset.judged
    same = _alike(judged, lambda id: normalised(dataset.queries[id].text))
    findings = []
    for ids in same:
        if len({tuple(sorted(dataset.relevant(id))) for id in ids}) > 1:
            labels = ", ".join(sorted({label for id in ids for label in dataset.relevant(id)}))
            text = shown(dataset.queries[ids[0]].text)
            message = f"{len(ids)} queries say {text} and have different labels ({labels}); if all are right, give each query all of them"
            findings.append(Finding("warning", "conflict", message, tuple(ids)))
    return findings


def _near_conflicts(dataset: Dataset) -> list[Finding]:
    findings = []
    for chain in _chains(list(dataset.queries), dataset.query_texts()):
        ids = tuple(id for id in chain if dataset.relevant(id))
        if _all_the_same([dataset.queries[id].text for id in ids]) or len({tuple(sorted(dataset.relevant(id))) for id in ids}) == 1:
            continue
        labels = sorted({label for id in ids for label in dataset.relevant(id)})
        text = shown(dataset.queries[ids[0]].text)
        message = f"{len(ids)} queries nearly say {text} and have different labels ({', '.join(labels[:5])})"
        findings.append(Finding("note", "near conflict", message, ids))
    return findings


def _copies(dataset: Dataset) -> list[Finding]:
    corpus = dataset.corpus
    return [
        Finding("warning", "copy", f"documents {', '.join(ids[:5])} say the same: {shown(corpus[ids[0]].text)}", tuple(ids))
        for ids in _alike(list(corpus), lambda id: normalised(f"{corpus[id].title} {corpus[id].text}"))
    ]


def _alike(ids: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    """Return the groups of at least two ids with the same key. Keys of single ids are not kept in memory."""
    hashes = np.fromiter((hash(key(id)) for id in ids), np.int64, len(ids))
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    groups: dict[str, list[str]] = {}
    for place in np.unique(np.concatenate([order[again], order[again + 1]])).tolist():
        groups.setdefault(key(ids[place]), []).append(ids[place])
    return [group for group in groups.values() if len(group) > 1]


def _near_copies(dataset: Dataset) -> list[Finding]:
    texts = {id: f"{document.title} {document.text}".strip() for id, document in dataset.corpus.items()}
    return [
        Finding("warning", "near copy", f"documents {', '.join(ids[:5])} nearly say the same: {shown(texts[ids[0]])}", ids)
        for ids in _chains(list(texts), list(texts.values()))
        if not _all_the_same([texts[id] for id in ids])
    ]


def _chained(dataset: Dataset) -> list[Finding]:
    count = len(dataset.judged)
    findings = []
    for chain in _chains(list(dataset.queries), dataset.query_texts()):
        ids = tuple(id for id in chain if dataset.relevant(id))
        if len(ids) > max(_CHAIN_QUERIES, _CHAIN_SHARE * count):
            message = (
                f"{len(ids):,} of {count:,} queries are copies or near copies, or copies of those, and are never divided "
                f"between train, dev and test: {shown(dataset.queries[ids[0]].text)}"
            )
            findings.append(Finding("warning", "chain", message, ids))
    return findings


def _chains(ids: Sequence[str], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the ids of copies and near copies, in groups of at least two."""
    return [tuple(ids[place] for place in chain) for chain in near_duplicates(texts).chains]


def _all_the_same(texts: Sequence[str]) -> bool:
    """Return whether the texts are exact copies, which other checks report."""
    return len(set(map(normalised, texts))) <= 1


def _own_words(dataset: Dataset) -> list[Finding]:
    """Report queries that hold the name of a relevant document, and queries that copy one, which any search method finds."""
    corpus, judged = dataset.corpus, dataset.judged
    names = {id: words_of(document.title or document.text) for id, document in corpus.items()}
    # Spaces on both sides match whole words only.
    within = {id: f" {' '.join(name)} " for id, name in names.items() if len(name) <= _NAME_WORDS}

    @functools.lru_cache(maxsize=2**14)
    def said_by(id: str) -> tuple[tuple[str, ...], ...]:
        return words_of(corpus[id].text), words_of(f"{corpus[id].title} {corpus[id].text}")

    inside: dict[str, str] = {}
    copying: list[str] = []
    for id in judged:
        words, labels = words_of(dataset.queries[id].text), dataset.relevant(id)
        text = f" {' '.join(words)} "
        label = next((label for label in labels if label in within and within[label] in text), None)
        if label is not None:
            inside[id] = label
        if any(words in said_by(label) for label in labels):
            copying.append(id)
    findings = []
    if inside:
        id, label = next(iter(inside.items()))
        message = (
            f"{len(inside):,} of {len(judged):,} queries ({len(inside) / len(judged):.1%}) hold the name of their own document, such as "
            f"{id!r}: {shown(corpus[label].title or corpus[label].text)}; queries without it will be harder"
        )
        findings.append(Finding("warning", "label inside", message, tuple(inside)))
    if copying:
        message = (
            f"{len(copying):,} of {len(judged):,} queries ({len(copying) / len(judged):.1%}) say word for word what their own document "
            f"says, such as {copying[0]!r}: {shown(dataset.queries[copying[0]].text)}; any search finds those, and figures on them show "
            "nothing"
        )
        findings.append(Finding("warning", "own text", message, tuple(copying)))
    return findings


def _documents_themselves(dataset: Dataset) -> list[Finding]:
    documents = queries_that_are_documents(dataset)
    ids = tuple(id for id in dataset.queries if id in documents)
    if not ids:
        return []
    message = f"{len(ids):,} queries are documents themselves, such as {ids[0]!r}: a query never finds itself, here or when measured"
    return [Finding("note", "itself", message, ids)]


def _is_label(dataset: Dataset, named: Mapping[str, str]) -> bool:
    """Return whether values correspond to labels one to one."""
    pairs = {(value, tuple(sorted(dataset.relevant(id)))) for id, value in named.items()}
    return len(pairs) == len({value for value, _ in pairs}) == len({answer for _, answer in pairs})


def _one_label(dataset: Dataset) -> list[Finding]:
    judged = dataset.judged
    if len({frozenset(dataset.relevant(id)) for id in judged}) > 1:
        return []
    return [Finding("problem", "one label", f"all {len(judged):,} queries have the same answer: nothing can be learned or measured")]


def _rare(dataset: Dataset) -> list[Finding]:
    counts = Counter(label for id in dataset.judged for label in dataset.relevant(id))
    single = tuple(label for label, count in counts.items() if count == 1)
    # If hardly any label repeats, the documents are passages, and one query for each is normal.
    if not single or len(single) > len(counts) / 2:
        return []
    return [
        Finding("warning", "rare", f"{len(single):,} of {len(counts):,} labels have a single query, which cannot be in two parts", single)
    ]


def _unasked(dataset: Dataset) -> list[Finding]:
    asked = {label for id in dataset.judged for label in dataset.relevant(id)}
    unasked = tuple(id for id in dataset.corpus if id not in asked)
    if not unasked:
        return []
    return [Finding("note", "not asked for", f"{len(unasked):,} of {len(dataset.corpus):,} documents are right for no query", unasked)]


def _unjudged(dataset: Dataset) -> list[Finding]:
    rest = tuple(id for id in dataset.queries if not dataset.relevant(id))
    without = sum(id in dataset.qrels for id in rest)
    answered = f"; {without:,} of them are judged to have none" if without else ""
    message = f"{len(rest):,} queries have no relevant document and are left out{answered}"
    return [Finding("note", "unjudged", message, rest)] if rest else []
