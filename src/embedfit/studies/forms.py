"""Forms of one model: whether each still reaches the measured scores, its size, and its search speed.

There are two kinds of form. A lossless form is the same model loaded in another way: by the library alone, in a fresh process,
or as a LoRA on the base model. Different vectors are an error there, and stop the run. A lossy form is smaller on purpose:
fewer dimensions, int8, or one bit per dimension. Its loss is measured and compared with a tolerance.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Kind, Vectors
from embedfit.encode.local import LocalEncoder, load_model, quiet_libraries
from embedfit.encode.pooling import pooling_of, pools_itself
from embedfit.errors import ConfigError, ModelError
from embedfit.evaluation.score import PerQuery, score_run
from embedfit.files import temporary_folder
from embedfit.hub import model_folder
from embedfit.loading import is_half, whole_weights
from embedfit.metrics import KS, check_metric
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.run import Ranked, Run, named, own_positions, without_own
from embedfit.studies.quantised import Binary, Int8, lowest_cosine
from embedfit.template import DOCUMENT_TEMPLATE

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

Search: TypeAlias = Callable[[Vectors, int], Ranked]
"""Function from query vectors and k to the k best documents of each."""
Texts: TypeAlias = dict[Kind, list[str]]
COSINE_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest distance from 1 of the cosine between a lossless form's vector and the measured one, by the precision of the
measurement. In fp32 only the order of sums differs; a bfloat16 has 8 bits, and is off by up to one part in 256."""
QUERIES_TOLERANCE = {"fp32": 1, "bf16": 4}
"""Largest loss of the metric of a lossless form, in queries: documents with almost equal scores may change places."""
TRUNCATED_TOLERANCE = 0.02
"""Largest loss of the metric with the first dimensions alone, in a model trained for them: such models keep 98% of it at a
twelfth of their dimensions (sentence-transformers' documentation of MatryoshkaLoss; Kusupati et al. 2022)."""
INT8_TOLERANCE = 0.01
"""Largest loss of the metric with int8: with 256 steps per dimension, cosines change in the third decimal, and only near ties
change places."""
_TEXTS = 64
"""Most queries, and most documents, that a lossless form encodes again."""
_PAIRS = 50_000_000
"""Most pairs of query and document in one search, which take some seconds: the more documents, the fewer queries."""


@dataclass(frozen=True)
class Form:
    """One form of a model, compared with the model as measured.

    Attributes:
        name: Name of the form, such as ``int8``.
        metric: Main metric, such as ``mrr@10``.
        value: Mean of the metric over the queries.
        difference: ``value`` minus the mean that the measured vectors reach on the same queries.
        tolerance: Largest loss that passes; None if the loss is only reported.
        cosine: Lowest cosine of a vector with the measured one; None if the vectors are of another space.
        least_cosine: Smallest cosine that passes; None if the cosine is only reported.
        queries: Number of queries searched with.
        bytes: Bytes per document vector.
        queries_per_second: Speed of exact search through the whole corpus in this process, without encoding.
    """

    name: str
    metric: str
    value: float
    difference: float
    tolerance: float | None
    cosine: float | None
    least_cosine: float | None
    queries: int
    bytes: int
    queries_per_second: float

    @property
    def passed(self) -> bool:
        """Whether the form is within its tolerances; NaN is not."""
        near = self.least_cosine is None or (self.cosine is not None and self.cosine >= self.least_cosine)
        return near and (self.tolerance is None or self.difference >= -self.tolerance - 1e-12)


def check_forms(
    encoder: LocalEncoder,
    dataset: Dataset,
    template: str = DOCUMENT_TEMPLATE,
    *,
    metric: str = "mrr@10",
    ks: Sequence[int] = KS,
    matryoshka: Sequence[int] = (),
    lora: Path | None = None,
    fresh_process: bool = False,
) -> tuple[Form, ...]:
    """Measure every form of a model.

    A lossless form encodes up to 64 queries and 64 documents again, spread evenly over the data, and is searched with these
    queries. A lossy form is computed from the measured vectors and searched with all queries, or, in a large corpus, with
    fewer of them, spread evenly. `Form.queries` has their number.

    Args:
        encoder: Model as measured; its vectors come from the cache if they are there.
        dataset: Data set with the test queries.
        template: Document template.
        metric: Main metric.
        ks: Ranks at which the metrics are cut.
        matryoshka: Numbers of dimensions that the model was trained to be truncated to.
        lora: Folder, in peft's format, of a LoRA that was merged into the model; it names its base model.
        fresh_process: Whether a new Python process loads the model too, which costs it the imports.

    Returns:
        The forms: as measured, loaded by sentence-transformers alone, base model and LoRA if there is one, in a fresh
        process if requested, each number of dimensions, int8, binary, and binary rescored.

    Raises:
        ModelError: A lossless form gives other vectors than were measured. A lossy form that fails has `Form.passed` False.
        ConfigError: The metric is unknown, or the model has fewer dimensions than a number of ``matryoshka``.
    """
    check_metric(metric, ks)
    measured = _Measured(encoder, dataset.select(dataset.judged), template, metric, max(ks))
    dimensions = measured.documents.shape[1]
    for size in matryoshka:
        if not 0 < size <= dimensions:
            raise ConfigError(f"the model has {dimensions} dimensions, and cannot be cut to {size}")
    # This search is timed, so it runs before the fresh process starts.
    forms = [measured.searched("as measured", measured.search, 4 * dimensions, tolerance=0.0, cosine=1.0)]
    speed, sample = forms[0].queries_per_second, measured.sample()
    with _fresh_process(encoder.folder, sample, encoder.loading) if fresh_process else contextlib.nullcontext() as collect:
        alone = _encoded(_loaded_alone(encoder.folder, encoder.loading), sample)
        forms.append(measured.encoded_again("loaded by sentence-transformers alone", sample, alone, speed))
        if lora:
            forms.append(measured.encoded_again("base model and LoRA", sample, _encoded(_with_lora(lora, encoder), sample), speed))
        if collect:
            forms.append(measured.encoded_again("in a fresh process", sample, collect(), speed))
    for size in matryoshka:
        forms.append(
            measured.searched(f"first {size} dimensions", first_dimensions(measured.documents, size), 4 * size, TRUNCATED_TOLERANCE)
        )
    int8 = Int8.of(measured.documents)
    forms.append(measured.searched("int8", int8.search, dimensions, INT8_TOLERANCE, int8.lowest_cosine(measured.documents)))
    binary = Binary.of(measured.documents)
    forms.append(measured.searched("binary", binary.search, binary.bits.shape[1]))
    forms.append(measured.searched("binary, rescored", binary.search_and_rescore, binary.bits.shape[1]))
    return tuple(forms)


def to_frame(forms: Sequence[Form]) -> pd.DataFrame:
    """Return one row per form, with the attributes of `Form` as columns."""
    import pandas as pd

    return pd.DataFrame([{**vars(form), "passed": form.passed} for form in forms])


class _Measured:
    """The measured vectors, and the scoring of rankings.

    Documents stand in order of id, as in a `Run`, since ties are broken by it.

    Args:
        encoder: Model as measured.
        dataset: Data set with the test queries, all judged.
        template: Document template.
        metric: Main metric.
        k: Largest rank at which metrics are cut.
    """

    def __init__(self, encoder: LocalEncoder, dataset: Dataset, template: str, metric: str, k: int) -> None:
        self._dataset, self._metric, self._k = dataset, metric, k
        self._folder, self._precision = encoder.folder, "bf16" if encoder.loaded.bf16 or is_half(encoder.loading) else "fp32"
        texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
        self._document_ids = tuple(sorted(texts))
        self._document_texts = [texts[id] for id in self._document_ids]
        self._query_ids, self._query_texts = list(dataset.queries), dataset.query_texts()
        self._own = own_positions(dataset, self._document_ids)
        self._depth = k + bool((self._own >= 0).any())
        cached = CachedEncoder(encoder)
        self.documents = cached.encode(self._document_texts, "document")
        self._queries = cached.encode(self._query_texts, "query")
        self._searched = spread(len(self._queries), max(_TEXTS, _PAIRS // len(self.documents)))

    def sample(self) -> Texts:
        """Return the texts that lossless forms encode again, without repeats."""
        return {
            "query": list(dict.fromkeys(self._query_texts[row] for row in spread(len(self._query_texts), _TEXTS))),
            "document": list(dict.fromkeys(self._document_texts[row] for row in spread(len(self._document_texts), _TEXTS))),
        }

    def search(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query by the measured vectors."""
        return top_k(queries, self.documents, k)

    def searched(self, name: str, search: Search, bytes: int, tolerance: float | None = None, cosine: float | None = None) -> Form:
        """Return the form of a search with the measured query vectors."""
        vectors = self._queries[self._searched]
        seconds, ranked = _timed(lambda: search(vectors, self._depth))
        value = self._values(self._searched, ranked).mean()
        before = value if search == self.search else self._values(self._searched, self.search(vectors, self._depth)).mean()
        speed = len(vectors) / seconds
        return Form(name, self._metric, float(value), float(value - before), tolerance, cosine, None, len(vectors), bytes, speed)

    def encoded_again(self, name: str, sample: Texts, vectors: dict[Kind, Vectors], speed: float) -> Form:
        """Return the form in which a sample of the texts was encoded again, and all other vectors are as measured.

        Raises:
            ModelError: The new vectors are not near enough to the measured ones.
        """
        queries, query_rows, query_cosine = self._exchanged(self._queries, self._query_texts, sample["query"], vectors["query"])
        documents, _, document_cosine = self._exchanged(self.documents, self._document_texts, sample["document"], vectors["document"])
        lowest = min(query_cosine, document_cosine)
        value = self._values(query_rows, top_k(queries[query_rows], documents, self._depth)).mean()
        before = self._values(query_rows, self.search(self._queries[query_rows], self._depth)).mean()
        form = Form(
            name,
            self._metric,
            float(value),
            float(value - before),
            QUERIES_TOLERANCE[self._precision] / len(query_rows),
            lowest,
            1 - COSINE_TOLERANCE[self._precision],
            len(query_rows),
            4 * documents.shape[1],
            speed,
        )
        if not form.passed:
            raise ModelError(
                f"{self._folder}: the saved model, {name}, gives other vectors than were measured (lowest cosine {lowest:.6f}, expected "
                f"at least {form.least_cosine}; {self._metric} {form.difference:+.4f}, expected at least {-(form.tolerance or 0):.4f})"
            )
        return form

    def _exchanged(
        self, measured: Vectors, texts: list[str], sample: list[str], vectors: Vectors
    ) -> tuple[Vectors, npt.NDArray[np.int64], float]:
        """Return the vectors with those of the sample replaced, the replaced rows, and the lowest cosine in these rows."""
        if vectors.shape != (len(sample), measured.shape[1]):
            shape = f"{len(vectors)} vectors of {vectors.shape[-1]} dimensions"
            raise ModelError(
                f"{self._folder}: the saved model gives {shape} for {len(sample)} texts; expected {measured.shape[1]} dimensions"
            )
        place = {text: row for row, text in enumerate(sample)}
        # Rows are matched by text: equal texts must keep equal vectors, or ties would not be broken by id.
        rows = np.array([row for row, text in enumerate(texts) if text in place], np.int64)
        encoded = vectors[[place[texts[row]] for row in rows]]
        exchanged = measured.copy()
        exchanged[rows] = encoded
        return exchanged, rows, lowest_cosine(measured[rows], encoded)

    def _values(self, rows: npt.NDArray[np.int64], ranked: Ranked) -> PerQuery:
        ranked = without_own(ranked, self._own[rows], self._k, len(self._document_ids))
        run = Run(tuple(self._query_ids[row] for row in rows), named(self._document_ids, ranked[0]), *ranked)
        return score_run(run, self._dataset.qrels, ks=(self._k, int(self._metric.partition("@")[2]))).values[self._metric]


def _loaded_alone(folder: Path, options: dict[str, Any]) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    quiet_libraries()
    return SentenceTransformer(str(folder), local_files_only=True, model_kwargs=options)


def _with_lora(lora: Path, encoder: LocalEncoder) -> SentenceTransformer:
    """Return the LoRA's base model with the LoRA on it, not merged.

    Raises:
        ModelError: The folder is not a LoRA in peft's format, its base model cannot be loaded, or peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError("a LoRA needs the package peft; fix: pip install 'embedfit[lora]'") from None
    try:
        base = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{lora}: is not a LoRA in peft's format: {error}") from None
    if not (lora / "adapter_model.safetensors").exists():  # peft would load a pickle, which can run code
        raise ModelError(f"{lora}: has no adapter_model.safetensors")
    folder = model_folder(base, proof="config.json")
    pooling = None if pools_itself(folder) else pooling_of(encoder.folder)
    model = load_model(folder, encoder.prompts, pooling, whole_weights(encoder.loading))
    # peft changes the transformer in place, so its return value is not needed.
    transformer = model.transformers_model
    if transformer is None:
        raise ModelError(f"{lora}: its base model {base!r} has no transformer to put it on")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft and transformers about each other
        PeftModel.from_pretrained(transformer, str(lora))
    return model.eval()


def _encoded(model: SentenceTransformer, texts: Texts) -> dict[Kind, Vectors]:
    query = model.encode_query(texts["query"], normalize_embeddings=True, show_progress_bar=False)
    document = model.encode_document(texts["document"], normalize_embeddings=True, show_progress_bar=False)
    return {"query": np.asarray(query, np.float32), "document": np.asarray(document, np.float32)}


_FRESH = """
import json, sys
texts = json.load(sys.stdin)
import numpy, sentence_transformers
model = sentence_transformers.SentenceTransformer(texts["folder"], local_files_only=True, model_kwargs=texts["options"])
options = {"normalize_embeddings": True, "show_progress_bar": False}
query, document = model.encode_query(texts["query"], **options), model.encode_document(texts["document"], **options)
numpy.savez(texts["target"], query=query, document=document)
"""
"""A program as a user would write it, without embedfit."""


@contextlib.contextmanager
def _fresh_process(folder: Path, texts: Texts, options: dict[str, Any] | None = None) -> Iterator[Callable[[], dict[Kind, Vectors]]]:
    """Start a process that encodes texts, and yield a function that waits for its vectors.

    Raises:
        ModelError: The process failed; raised by the function.
    """
    with temporary_folder() as place:
        target, errors = place / "vectors.npz", place / "errors"
        # -P: a file in the working directory with a library's name must not be imported instead of it.
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _FRESH],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )

        def collect() -> dict[Kind, Vectors]:
            if process.wait():
                lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"it ended with {process.returncode}"
                raise ModelError(f"{folder}: the saved model cannot be used in a fresh process: {reason}")
            with np.load(target) as vectors:
                return {"query": vectors["query"], "document": vectors["document"]}

        try:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # `collect` reports the failure
                pipe.write(json.dumps({**texts, "folder": str(folder.resolve()), "target": str(target), "options": options or {}}).encode())
            yield collect
        finally:
            process.kill()
            process.wait()


def first_dimensions(documents: Vectors, size: int) -> Search:
    """Return a search by the first dimensions alone, scaled to unit length."""
    cut = _unit(documents[:, :size])
    return lambda queries, k: top_k(_unit(queries[:, :size]), cut, k)


def spread(total: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the numbers below a total, evenly spread."""
    return np.arange(total) if total <= most else np.linspace(0, total - 1, most).astype(np.int64)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _timed(search: Callable[[], Ranked]) -> tuple[float, Ranked]:
    """Return the seconds of a search, the best of three if it is short, and its result."""
    best, spent = float("inf"), 0.0
    for _ in range(3):
        started = time.perf_counter()
        ranked = search()
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds), spent + seconds
        if spent > 0.2:
            break
    return best, ranked
