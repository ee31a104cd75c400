"""A finished model to the Hugging Face Hub, to a folder or to an archive; fetched again and held against what was measured.

Nothing of the training text goes out unless it is asked for, and no path of this machine. The model card is our own: the library's
would quote training examples.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Kind, Vectors
from embedfit.encode.local import LocalEncoder
from embedfit.encode.readers import older_form
from embedfit.errors import ConfigError, ModelError, OfflineError, StorageError
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import PerQuery, score_run
from embedfit.files import temporary_folder, temporary_path, writing
from embedfit.hub import check_reachable, hub_address, hub_token, public_name
from embedfit.publish.card import content_size, front_matter, model_card, rendered
from embedfit.publish.target import EVIDENCE, MOST, Content, Target, What, hub_api, in_one_line, readable_size, refusals
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.run import run_of
from embedfit.studies.forms import COSINE_TOLERANCE, QUERIES_TOLERANCE

_QUERIES, _DOCUMENTS = 64, 2000
"""What is encoded again by the model that was fetched."""


@dataclass(frozen=True)
class Publication:
    """What will be published where; nothing has been sent yet.

    Attributes:
        target: Where.
        kind: What.
        files: Path there -> a file here, or its content.
        public: Whether anybody may see it, on the Hub.
        has_text: Whether training text is in it.
    """

    target: Target
    kind: What
    files: Mapping[str, Content] = field(repr=False)
    public: bool = False
    has_text: bool = False

    @property
    def bytes(self) -> int:
        """How large it is."""
        return sum(map(content_size, self.files.values()))

    def describe(self) -> str:
        """Return what will be sent where, for a person to agree to; several lines."""
        endpoint = f"{hub_address()}/{'datasets/' if self.kind == 'dataset' else ''}" if self.target.kind == "hub" else ""
        place = {"hub": endpoint, "folder": "the folder ", "archive": "the archive "}
        seen = f", {'PUBLIC: anybody can see it' if self.public else 'private'}" if self.target.kind == "hub" else ""
        text = "holds" if self.has_text else "holds none of"
        lines = [f"The {self.kind} goes to {place[self.target.kind]}{self.target.where}{seen}. It {text} the labelled text."]
        lines += [f"  {console.printable(name)}  {readable_size(content_size(content))}" for name, content in sorted(self.files.items())]
        lines.append(f"  {len(self.files)} files, {readable_size(self.bytes)}")
        if self.target.kind == "hub" and EVIDENCE in self.files:
            lines.append("  Files of an earlier publication there that are not among these are removed.")
        return "\n".join(lines)

    def send(self) -> str:
        """Publish it. Returns the revision on the Hub, else the path.

        Raises:
            EmbedfitError: It cannot be sent or written, or would change who may see what is there.
        """
        if self.target.kind == "hub":
            return self._push()
        self.target.check_free()
        try:
            if self.target.kind == "archive":
                self._pack(self.target.path)
            else:
                self._lay_out(self.target.path)
        except OSError as error:
            raise StorageError(f"{self.target.where}: cannot be written: {error.strerror or error}") from None
        return self.target.where

    @contextlib.contextmanager
    def fetched(self, revision: str) -> Iterator[Path]:
        """Give a folder with what was published, as anybody would get it: downloaded, unpacked, or read where it is.

        Raises:
            EmbedfitError: It cannot be had.
        """
        if self.target.kind == "folder":
            yield self.target.path
            return
        with temporary_folder() as temporary:
            if self.target.kind == "archive":
                with tarfile.open(self.target.path) as archive:
                    archive.extractall(temporary, filter="data")
                yield temporary / self.target.title
            else:
                with refusals(self.target.where):
                    folder = hub_api().snapshot_download(
                        self.target.where,
                        repo_type=self.kind,
                        revision=revision,
                        cache_dir=temporary,
                        allow_patterns=[*self.files, "*.json"],  # settings of somebody else's beside it would change what it does
                    )
                yield Path(folder)

    def _push(self) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import RepositoryNotFoundError

        repo = self.target.where
        if not hub_token():
            raise ConfigError(f"publishing to {repo} on the Hub needs a token that may write; fix: set HF_TOKEN, or 'hf auth login'")
        try:
            check_reachable(repo)
        except OfflineError:
            instead = f"./{self.target.title} or {self.target.title}.tar"
            raise OfflineError(f"{repo}: the Hub cannot be reached; fix: publish to a folder or an archive: {instead}") from None
        api = hub_api()
        with refusals(repo):
            stale: set[str] = set()
            try:
                there = api.repo_info(repo, repo_type=self.kind)
            except RepositoryNotFoundError:
                api.create_repo(repo, repo_type=self.kind, private=not self.public, exist_ok=True)
            else:
                if bool(there.private) == self.public:
                    state, fix = ("private", "change that on the Hub") if there.private else ("public", "--public, or another name")
                    raise ConfigError(f"{repo} is there already and is {state}; fix: {fix}")
                before = {file.rfilename for file in getattr(there, "siblings", None) or ()}
                stale = (self._published_before(there.sha) if EVIDENCE in before else set()) & before - set(self.files)
            operations: list[Any] = [CommitOperationAdd(name, content) for name, content in self.files.items()]
            operations += [CommitOperationDelete(name) for name in sorted(stale)]
            said = f"{self.kind.capitalize()} from embedfit"
            return str(api.create_commit(repo, operations, commit_message=said, repo_type=self.kind).oid)

    def _published_before(self, revision: str | None) -> set[str]:
        """Return the files that an earlier publication says it wrote to the repository; of any other nothing is known."""
        with temporary_folder() as temporary:
            path = hub_api().hf_hub_download(self.target.where, EVIDENCE, repo_type=self.kind, revision=revision, cache_dir=temporary)
            try:
                return {str(name) for name in json.loads(Path(path).read_text(encoding="utf-8")).get("files", ())}
            except (ValueError, AttributeError, TypeError):
                return set()

    def _lay_out(self, folder: Path) -> None:
        with temporary_path(folder) as temporary:
            for name, content in self.files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, path)
                else:
                    path.write_bytes(content)
            if folder.exists():  # it is empty, and this takes its place only as long as it is
                temporary.chmod(stat.S_IMODE(folder.stat().st_mode))
            temporary.rename(folder)

    def _pack(self, path: Path) -> None:
        # The same files make the same archive: no times, no names of users.
        with writing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{self.target.title}/{name}")
                entry.size, entry.mode = content_size(content), 0o644
                with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as source:
                    archive.addfile(entry, source)


@dataclass(frozen=True)
class Parity:
    """How near a fetched model comes to the one that was measured.

    Attributes:
        texts: Encoded by both.
        cosine: The lowest of a vector with its counterpart.
        metric: Like ``mrr@10``.
        measured: Its mean over the queries, as the run kept it; None where that, or the data of the run, is not at hand.
        fetched: By the one that was fetched.
    """

    texts: int
    cosine: float
    metric: str
    measured: float | None
    fetched: float | None

    @property
    def sentence(self) -> str:
        """It in words."""
        said = f"Fetched again: the vectors of {self.texts:,} texts are the same (lowest cosine {self.cosine:.6f})"
        unknown = "; no labelled data was at hand to score, as it was in the run"
        scores = unknown if self.fetched is None else f", and so is {self.metric} ({self.fetched:.3f})"
        return f"{said}{scores}."


def check_parity(
    measured: LocalEncoder,
    fetched: LocalEncoder,
    dataset: Dataset,
    template: str,
    metric: str,
    scores: Mapping[str, float] | None = None,
) -> Parity:
    """Compare a fetched model with the measured one, on up to 64 queries and 2,000 documents.

    The score of these queries is that of a search through all documents; the vectors of further documents are the measured ones.

    Args:
        measured: The model of the run. Its vectors come from the cache if they are there.
        fetched: The same, as published.
        dataset: What to encode; without documents the queries' vectors alone are compared.
        template: What a document says.
        metric: To score by, like ``mrr@10``.
        scores: Query id -> the metric as the run kept it; empty to compare vectors alone. By default what the measured model
            reaches now.

    Raises:
        ModelError: Vectors or scores differ by more than the arithmetic explains.
    """
    dataset = dataset.select((list(dataset.judged) or list(dataset.queries))[:_QUERIES])
    asked = dict.fromkeys(id for query in dataset.queries for id in dataset.relevant(query))
    again = set([*asked, *(id for id in dataset.corpus if id not in asked)][: max(_DOCUMENTS, len(asked))])
    said = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True)) if dataset.corpus else {}
    ids = sorted(said)
    rows = [row for row, id in enumerate(ids) if id in again]
    texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": [said[ids[row]] for row in rows]}
    before = {kind: CachedEncoder(measured).encode(texts[kind], kind) for kind in texts if texts[kind]}
    after = {kind: fetched.encode(texts[kind], kind) for kind in before}
    if any(before[kind].shape != after[kind].shape for kind in before):
        raise ModelError(
            f"the model that was fetched has {after['query'].shape[1]} dimensions, the measured one {before['query'].shape[1]}"
        )
    cosine = float(min((before[kind] * after[kind]).sum(axis=1).min() for kind in before))
    precision = "bf16" if fetched.loaded.bf16 else "fp32"
    means: list[float | None] = [None, None]
    differs = 0.0
    if dataset.judged and ids and scores != {}:
        documents = CachedEncoder(measured).encode([said[id] for id in ids], "document")
        mixed = documents.copy()
        mixed[rows] = after["document"]

        def values(queries: Vectors, documents: Vectors) -> PerQuery:
            k = int(metric.partition("@")[2])
            run = run_of(dataset, tuple(ids), partial(top_k, queries, documents), k)
            return score_run(run, dataset.qrels, ks=(k,)).values[metric]

        kept = values(before["query"], documents) if scores is None else np.array([scores[id] for id in dataset.queries])
        found = values(after["query"], mixed)
        means = [float(kept.mean()), float(found.mean())]
        differs = float(np.abs(found - kept).mean())
    near = np.isfinite(cosine) and cosine >= 1 - COSINE_TOLERANCE[precision]
    if not near or not differs <= min(QUERIES_TOLERANCE[precision] / len(dataset.queries), MOST):
        raise ModelError(
            f"the model that was fetched is not the one that was measured: lowest cosine {cosine:.6f}, {metric} differs by {differs:.4f}; "
            "fix: publish again, and do not use what is there"
        )
    return Parity(sum(map(len, texts.values())), cosine, metric, *means)


def check_dataset_parity(folder: Path, digest: str) -> None:
    """Make sure that a published data set is the one that was sent.

    Args:
        folder: With the published files.
        digest: Of the data set, as `Dataset.digest` returns it.

    Raises:
        StorageError: It is another.
    """
    if load(folder / "queries.jsonl", folder / "documents.jsonl").digest() != digest:
        raise StorageError("the data set that was fetched is not the one that was published; fix: publish again")


def model_publication(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    *,
    public: bool = False,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
) -> Publication:
    """Return what is to be published of a run.

    Args:
        target: Where to.
        folder: Of the model.
        manifest: Of the run.
        comparison: Of the run.
        public: Whether anybody may see it.
        examples: Training queries and their answers to quote in the card; only these of all text.
    """
    files: dict[str, Content] = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"
    }
    files |= older_form(folder) or {}  # those of a run of before were saved in the new form alone
    files["README.md"] = model_card(target, folder, manifest, comparison, examples).encode()
    said = comparison.to_dict() | {"base": public_name(manifest["base"]["name"]), "tuned": target.title}
    config = manifest["config"]
    evidence = {
        "embedfit": manifest["embedfit"],
        "base": {"name": public_name(manifest["base"]["name"]), "fingerprint": manifest["base"]["fingerprint"]},
        "fingerprint": manifest["fingerprint"],
        "document_template": config["data"]["document_template"],
        "split": manifest["split"],
        "tune": config["tune"],
        "comparison": said,
        "files": sorted([*files, EVIDENCE]),
    }
    files[EVIDENCE] = json.dumps(evidence, indent=1).encode()
    return Publication(target, "model", files, public, bool(examples))


def dataset_publication(target: Target, dataset: Dataset, name: str, *, public: bool = False) -> Publication:
    """Return what is to be published of a data set: all of its queries, labels and documents.

    Args:
        target: Where to.
        dataset: To publish.
        name: For the card.
        public: Whether anybody may see it.
    """
    from huggingface_hub import DatasetCardData

    with temporary_folder() as temporary:
        write_jsonl(dataset, temporary)
        files: dict[str, Content] = {path.name: path.read_bytes() for path in sorted(temporary.iterdir())}
    configs = [{"config_name": part, "data_files": f"{part}.jsonl"} for part in ("queries", "documents")]
    data = DatasetCardData(pretty_name=name, task_categories=["text-retrieval"], tags=["embedfit"], configs=configs)
    card = rendered(
        "dataset_card.md",
        metadata=front_matter(data.to_yaml()),
        title=in_one_line(name),
        queries=f"{len(dataset.judged):,}",
        documents=f"{len(dataset.corpus):,}",
    )
    return Publication(target, "dataset", {**files, "README.md": card.encode()}, public, has_text=True)
