"""Checks of a data set before training: conflicts, copies, leaks, and unusual labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from embedfit.data.dataset import PARTS, Dataset, normalised
from embedfit.data.duplicates import near_duplicates, queries_that_are_documents
from embedfit.data.labels import SEPARATORS
from embedfit.errors import shown
from embedfit.words import words_of

Level: TypeAlias = Literal["problem", "warning", "note"]
_NAME_WORDS = 10
"""Maximum number of words of a document that is a name and not a passage."""
_MERGED_SHARE = 0.1
"""Maximum share of merged queries that are reported as probable mistakes. Above it, several answers are probably intended."""
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
        _conflicts,
        _near_conflicts,
        _copies,
        _near_copies,
        _chained,
        _label_inside,
        _own_text,
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
    queries = list(dataset.queries)
    duplicates = near_duplicates(dataset.query_texts())
    group_of = {queries[position]: number for number, group in enumerate(duplicates.same) for position in group}
    members: dict[str, dict[int, list[str]]] = {part: {} for part in PARTS}
    for part, ids in parts.items():
        for id in ids:
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


def _conflicts(dataset: Dataset) -> list[Finding]:
    same: dict[str, list[str]] = {}
    for id in dataset.judged:
        same.setdefault(normalised(dataset.queries[id].text), []).append(id)
    findings = []
    for ids in same.values():
        if len({tuple(sorted(dataset.relevant(id))) for id in ids}) > 1:
            labels = ", ".join(sorted({label for id in ids for label in dataset.relevant(id)}))
            text = shown(dataset.queries[ids[0]].text)
            message = f"{len(ids)} queries say {text} and have different labels ({labels}); if all are right, give each query all of them"
            findings.append(Finding("warning", "conflict", message, tuple(ids)))
    return findings


def _near_conflicts(dataset: Dataset) -> list[Finding]:
    findings = []
    for chain in _chains({id: query.text for id, query in dataset.queries.items()}):
        ids = tuple(id for id in chain if dataset.relevant(id))
        if _all_the_same([dataset.queries[id].text for id in ids]) or len({tuple(sorted(dataset.relevant(id))) for id in ids}) == 1:
            continue
        labels = sorted({label for id in ids for label in dataset.relevant(id)})
        text = shown(dataset.queries[ids[0]].text)
        message = f"{len(ids)} queries nearly say {text} and have different labels ({', '.join(labels[:5])})"
        findings.append(Finding("note", "near conflict", message, ids))
    return findings


def _copies(dataset: Dataset) -> list[Finding]:
    same: dict[str, list[str]] = {}
    for id, document in dataset.corpus.items():
        same.setdefault(normalised(f"{document.title} {document.text}"), []).append(id)
    return [
        Finding("warning", "copy", f"documents {', '.join(ids[:5])} say the same: {shown(dataset.corpus[ids[0]].text)}", tuple(ids))
        for ids in same.values()
        if len(ids) > 1
    ]


def _near_copies(dataset: Dataset) -> list[Finding]:
    texts = {id: f"{document.title} {document.text}".strip() for id, document in dataset.corpus.items()}
    return [
        Finding("warning", "near copy", f"documents {', '.join(ids[:5])} nearly say the same: {shown(texts[ids[0]])}", ids)
        for ids in _chains(texts)
        if not _all_the_same([texts[id] for id in ids])
    ]


def _chained(dataset: Dataset) -> list[Finding]:
    judged = set(dataset.judged)
    findings = []
    for chain in _chains({id: query.text for id, query in dataset.queries.items()}):
        ids = tuple(id for id in chain if id in judged)
        if len(ids) > max(_CHAIN_QUERIES, _CHAIN_SHARE * len(judged)):
            message = (
                f"{len(ids):,} of {len(judged):,} queries are copies or near copies, or copies of those, and are never divided "
                f"between train, dev and test: {shown(dataset.queries[ids[0]].text)}"
            )
            findings.append(Finding("warning", "chain", message, ids))
    return findings


def _chains(texts: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the ids of copies and near copies, in groups of at least two."""
    ids = list(texts)
    return [tuple(ids[place] for place in chain) for chain in near_duplicates(list(texts.values())).chains if len(chain) > 1]


def _all_the_same(texts: Sequence[str]) -> bool:
    """Return whether the texts are exact copies, which other checks report."""
    return len(set(map(normalised, texts))) <= 1


def _label_inside(dataset: Dataset) -> list[Finding]:
    names = {id: words_of(document.title or document.text) for id, document in dataset.corpus.items()}
    # Spaces on both sides match whole words only.
    within = {id: f" {' '.join(name)} " for id, name in names.items() if len(name) <= _NAME_WORDS}
    holding = {}
    for id in dataset.judged:
        text = f" {' '.join(words_of(dataset.queries[id].text))} "
        inside = [label for label in dataset.relevant(id) if label in within and within[label] in text]
        if inside:
            holding[id] = inside[0]
    if not holding:
        return []
    id, label = next(iter(holding.items()))
    share = len(holding) / len(dataset.judged)
    message = (
        f"{len(holding):,} of {len(dataset.judged):,} queries ({share:.1%}) hold the name of their own document, such as {id!r}: "
        f"{shown(dataset.corpus[label].title or dataset.corpus[label].text)}; queries without it will be harder"
    )
    return [Finding("warning", "label inside", message, tuple(holding))]


def _own_text(dataset: Dataset) -> list[Finding]:
    """Report queries that copy a relevant document. Any search method finds it."""
    holding = []
    for id in dataset.judged:
        words = words_of(dataset.queries[id].text)
        documents = [dataset.corpus[label] for label in dataset.relevant(id)]
        if any(words in (words_of(document.text), words_of(f"{document.title} {document.text}")) for document in documents):
            holding.append(id)
    if not holding:
        return []
    share = len(holding) / len(dataset.judged)
    message = (
        f"{len(holding):,} of {len(dataset.judged):,} queries ({share:.1%}) say word for word what their own document says, such as "
        f"{holding[0]!r}: {shown(dataset.queries[holding[0]].text)}; any search finds those, and figures on them show nothing"
    )
    return [Finding("warning", "own text", message, tuple(holding))]


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
    answers = {tuple(sorted(dataset.relevant(id))) for id in dataset.judged}
    if len(answers) > 1:
        return []
    return [
        Finding("problem", "one label", f"all {len(dataset.judged):,} queries have the same answer: nothing can be learned or measured")
    ]


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
    judged = set(dataset.judged)
    rest = tuple(id for id in dataset.queries if id not in judged)
    without = sum(id in dataset.qrels for id in rest)
    answered = f"; {without:,} of them are judged to have none" if without else ""
    message = f"{len(rest):,} queries have no relevant document and are left out{answered}"
    return [Finding("note", "unjudged", message, rest)] if rest else []
