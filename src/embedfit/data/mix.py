"""Several training sets as one, in shares that a temperature sets."""

from __future__ import annotations

import random
from collections.abc import Sequence

from embedfit.data.dataset import Dataset, Document, Query, normalised
from embedfit.data.texts import TEACHER_SCORES
from embedfit.template import DOCUMENT_TEMPLATE


def rendered(dataset: Dataset, template: str) -> Dataset:
    """Return a data set whose document texts are rendered under a template."""
    texts = dataset.document_texts(template)
    corpus = {id: Document(id, text) for id, text in zip(dataset.corpus, texts, strict=True)}
    return Dataset(dataset.queries, corpus, dataset.qrels, dataset.parts)


def with_further(
    train: Dataset,
    dev: Dataset | None,
    template: str,
    further: Sequence[tuple[Dataset, str]],
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[Dataset, Dataset | None, str]:
    """Return (train with further data sets mixed in, dev, the template of both), or the arguments without further data sets."""
    if not further:
        return train, dev, template
    return mixed([(train, template), *further], temperature=temperature, seed=seed), dev and rendered(dev, template), DOCUMENT_TEMPLATE


def mixed(datasets: Sequence[tuple[Dataset, str]], *, temperature: float = 1.0, seed: int = 0) -> Dataset:
    """Return one data set of the judged queries of several.

    A set of n queries has a share of n ** (1 / temperature) in an epoch, which is as long as all sets together (temperature-scaled
    mixing: Raffel et al. 2020, section 3.5.2). At 1, every query occurs once. Above 1, queries of small sets occur more often and
    those of large sets less often. Copies of a document in two sets become one document, so that neither is a negative for the
    other's queries.

    Args:
        datasets: Data sets, each with the template of its documents.
        temperature: Mixing temperature, 1 or more.
        seed: Seed of the choice of queries that occur once more than others.

    Returns:
        A data set whose documents have a text only, for the default template.
    """
    corpus: dict[str, Document] = {}
    kept: dict[str, str] = {}
    queries: dict[str, Query] = {}
    qrels: dict[str, dict[str, int]] = {}
    rng = random.Random(seed)
    weights = [len(dataset.judged) ** (1 / temperature) for dataset, _ in datasets]
    total = sum(len(dataset.judged) for dataset, _ in datasets)
    for number, ((dataset, template), weight) in enumerate(zip(datasets, weights, strict=True)):
        names = {}
        for id, document in rendered(dataset, template).corpus.items():
            names[id] = kept.setdefault(normalised(document.text), f"{number}/{id}")
            corpus.setdefault(names[id], Document(names[id], document.text))
        judged = list(dataset.judged)
        rounds, rest = divmod(round(total * weight / sum(weights)), len(judged))
        again = set(rng.sample(judged, rest))
        for turn in range(rounds + 1):
            for id in judged:
                if turn < rounds or id in again:
                    name = f"{number}/{id}/{turn}"
                    scores = dataset.queries[id].metadata.get(TEACHER_SCORES)
                    taught = {TEACHER_SCORES: {names[key]: score for key, score in scores.items() if key in names}} if scores else {}
                    queries[name] = Query(name, dataset.queries[id].text, taught)
                    grades: dict[str, int] = {}
                    for document_id, grade in dataset.qrels[id].items():
                        grades[names[document_id]] = max(grade, grades.get(names[document_id], grade))
                    qrels[name] = grades
    return Dataset(queries, corpus, qrels)
