"""A finished model to the Hugging Face Hub, to a folder or to an archive; fetched again and held against what was measured.

Nothing of the training text goes out unless it is asked for, and no path of this machine. The model card is our own: the library's
would quote training examples.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from embedfit import console
from embedfit.compare import Comparison, Difference
from embedfit.config import TuneConfig
from embedfit.data import Dataset, load, write_jsonl, writing
from embedfit.encode import CachedEncoder, Kind, LocalEncoder, Vectors
from embedfit.errors import ConfigError, EmbedfitError, ModelError, OfflineError, StorageError
from embedfit.files import clear_leftovers, temporary_folder, temporary_path
from embedfit.hub import MINILM, check_reachable, hub_address, hub_errors, hub_token, reason_of
from embedfit.parity import COSINE_TOLERANCE, QUERIES_TOLERANCE
from embedfit.retrieve import run_of, top_k
from embedfit.score import PerQuery, score_run
from embedfit.tune.readers import OLDEST, older_form

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Content: TypeAlias = Path | bytes
What: TypeAlias = Literal["model", "dataset"]

EVIDENCE = "embedfit.json"
"""The file of a published model that holds its evidence, and the list of the files that were published."""
EXAMPLES = 5
"""Training queries that a card quotes, if it is to quote any."""
_QUERIES, _DOCUMENTS = 64, 2000
"""What is encoded again by the model that was fetched."""
_MOST = 0.25
"""How much of the metric may differ, where a few queries' worth (`QUERIES_TOLERANCE`) would be more."""


@dataclass(frozen=True)
class Target:
    """Where something is published.

    Attributes:
        kind: The Hub, a folder, or a tar archive.
        where: ``owner/name``, or a path.
    """

    kind: Literal["hub", "folder", "archive"]
    where: str

    @classmethod
    def of(cls, said: str) -> Target:
        """Read ``owner/name``, ``./folder`` or ``name.tar``.

        Raises:
            ConfigError: It is none of them.
        """
        if said.endswith(".tar") or said.startswith((".", "/", "~")):
            path = os.path.normpath(os.path.expanduser(said))
            target = cls("archive" if said.endswith(".tar") else "folder", path if os.path.isabs(path) else os.path.join(".", path))
            # A home that nobody has is left as it is.
            if said.isprintable() and not path.startswith("~") and target.title.strip("."):
                return target
        elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", said, re.ASCII) and len(said) <= 96:
            return cls("hub", said)
        raise ConfigError(
            f"{said!r} is no place to publish to; expected owner/name on the Hub, a folder like ./name, or an archive like name.tar"
        )

    @property
    def title(self) -> str:
        """What the thing is called there."""
        return os.path.basename(os.path.abspath(self.where)).removesuffix(".tar")

    @property
    def path(self) -> Path:
        """Where a folder or an archive will lie, symbolic links followed."""
        return Path(os.path.realpath(self.where))

    def check_free(self) -> None:
        """Make sure that nothing is in the way of a folder or an archive; an empty folder is not.

        Raises:
            StorageError: Something is, or the place cannot be read.
        """
        if self.kind == "hub":
            return
        path = self.path
        try:
            clear_leftovers(path.parent)  # a killed publication's, which would be in its way
            is_there = path.exists()
            is_free = self.kind == "folder" and is_there and path.is_dir() and not any(path.iterdir())
        except OSError as error:
            raise StorageError(f"{self.where}: cannot be read: {error.strerror}") from None
        if is_there and not is_free:
            raise StorageError(f"{self.where} is there already; fix: give another name, or remove it")
        if is_there and Path.cwd().is_relative_to(path):
            raise StorageError(
                f"{self.where} is the folder you stand in, which cannot be exchanged; fix: a new folder, like ./{self.title}"
            )


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
        return sum(map(_size, self.files.values()))

    def describe(self) -> str:
        """Return what will be sent where, for a person to agree to; several lines."""
        endpoint = f"{hub_address()}/{'datasets/' if self.kind == 'dataset' else ''}" if self.target.kind == "hub" else ""
        place = {"hub": endpoint, "folder": "the folder ", "archive": "the archive "}
        seen = f", {'PUBLIC: anybody can see it' if self.public else 'private'}" if self.target.kind == "hub" else ""
        text = "holds" if self.has_text else "holds none of"
        lines = [f"The {self.kind} goes to {place[self.target.kind]}{self.target.where}{seen}. It {text} the labelled text."]
        lines += [f"  {console.printable(name)}  {_readable(_size(content))}" for name, content in sorted(self.files.items())]
        lines.append(f"  {len(self.files)} files, {_readable(self.bytes)}")
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
                with _hub_errors(self.target.where):
                    folder = _api().snapshot_download(
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
        api = _api()
        with _hub_errors(repo):
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
            path = _api().hf_hub_download(self.target.where, EVIDENCE, repo_type=self.kind, revision=revision, cache_dir=temporary)
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
                entry.size, entry.mode = _size(content), 0o644
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
    if not near or not differs <= min(QUERIES_TOLERANCE[precision] / len(dataset.queries), _MOST):
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
    card = _rendered(
        "dataset_card.md",
        metadata=_front_matter(data.to_yaml()),
        title=_line(name),
        queries=f"{len(dataset.judged):,}",
        documents=f"{len(dataset.corpus):,}",
    )
    return Publication(target, "dataset", {**files, "README.md": card.encode()}, public, has_text=True)


def model_card(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
) -> str:
    """Return the model's page: what it does, on what evidence, made how and of what, and how to use it.

    Args:
        target: Where it will stand.
        folder: Of the model.
        manifest: Of the run.
        comparison: Of the run.
        examples: Training queries and their answers to quote.
    """
    config, base = manifest["config"], manifest["base"]["name"]
    tuned = manifest["tuning"]
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    served = not any(module["type"].endswith(".Router") for module in modules)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    parts = [{part: f"{count:,}" for part, count in split.items()} for split in manifest["split"]]
    first = f"{parts[0]['train']} for training, {parts[0]['dev']} for choosing, {parts[0]['test']} held out"
    counts = manifest.get("data")  # of the run: the data may have changed since
    data = [
        f"Data set: `{_line(Path(config['data']['queries']).name)}`",
        *([f"{counts['queries']:,} labelled queries, {counts['documents']:,} documents"] if counts else []),
        f"{len(parts)} folds, each {first}; this model was trained on all" if len(parts) > 1 else f"Queries: {first}",
        *(f"Put before each {name}: `{re.sub('`', '', json.dumps(text))}`" for name, text in prompts.items()),
    ]
    forgetting = manifest.get("forgetting")
    method = {"full": "all weights", "lora": f"LoRA of rank {config['tune']['lora_rank']}", "adapter": "a linear map of the query's vector"}
    settings, kind = TuneConfig.model_validate(config["tune"]), tuned[0]["candidates"]
    trained = {
        "method": method[settings.method],
        "loss": f"softmax over candidate documents, every known positive a positive; scale {settings.scale:g}",
        "epochs": settings.epochs_with(kind),
        "batch size": settings.batch_size,
        "learning rate": f"{settings.learning_rate_with(kind):g}",
        "warm-up": settings.warmup,
        "weight decay": settings.weight_decay,
        "seed": settings.seed,
        "kept epoch": ", ".join(str(one["epoch"]) for one in tuned),
        "training time": f"{sum(one['seconds'] for one in tuned):.0f} s",
        "base model": f"{_line(public_name(base))} (fingerprint {manifest['base']['fingerprint'][:12]})",
    }
    if config["tune"]["method"] == "adapter":
        trained = {name: trained[name] for name in ("method", "loss", "seed", "training time", "base model")}
    hub_base = _hub_name(base)
    return _rendered(
        "model_card.md",
        metadata=_front_matter(_metadata(target, comparison, config, hub_base)),
        title=target.title,
        base=f"[{hub_base}](https://huggingface.co/{hub_base})" if hub_base else _line(public_name(base)),
        embedfit=manifest["embedfit"],
        dimensions=_dimensions(folder),
        sentence=comparison.sentence,
        held_out=comparison.held_out,
        interval=comparison.to_dict()["interval"],
        differences=_shown(comparison),
        strata=[(stratum.label, stratum[row.metric]) for stratum in comparison.strata for row in _shown(comparison)],
        notes=[forgetting["sentence"]] if forgetting else [],
        data=data,
        template=_line(config["data"]["document_template"]),
        # JSON on one line, in a block of code: nothing in it is read as Markdown or HTML.
        examples=[json.dumps({"query": query, "expected": list(answers)}, ensure_ascii=False) for query, answers in examples[:EXAMPLES]],
        settings=trained,
        general=", and on general questions, to see what was forgotten (above)." if forgetting else ".",
        repo=target.where,
        served=served,
        oldest=_oldest_reader(folder),
        alike=served and not prompts,
        texts={kind: json.dumps(prompts.get(kind, ""), ensure_ascii=False) for kind in ("query", "document")},
        prompt_name=', "prompt_name": "query"' if "query" in prompts else "",
    )


def public_name(name: str) -> str:
    """Return a model's name without the path of a folder on this machine."""
    return Path(name).name if name.startswith((".", "/", "~")) or Path(name).is_dir() else name


def _hub_name(name: str) -> str | None:
    """Return a model's name if it is one on the Hub."""
    if name == MINILM:
        return f"sentence-transformers/{MINILM}"
    return name if name == public_name(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _shown(comparison: Comparison) -> list[Difference]:
    """Return the differences that the card shows: recall at each k, the others at the largest, and the one that the verdict is about."""
    k = max(int(found.metric.partition("@")[2]) for found in comparison.differences)
    wanted = (f"mrr@{k}", f"ndcg@{k}", comparison.metric)
    return [found for found in comparison.differences if found.metric.startswith("recall@") or found.metric in wanted]


def _metadata(target: Target, comparison: Comparison, config: Mapping[str, Any], base: str | None) -> str:
    """Return the card's metadata as YAML, with the model-index that the Hub shows."""
    from huggingface_hub import EvalResult, ModelCardData

    data = Path(config["data"]["queries"]).name
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.casefold()).strip("-") or "data",
            dataset_name=f"{data}, held-out queries" if comparison.held_out else data,
            metric_type=f"cosine_{found.metric}",  # as sentence-transformers names them
            metric_name=f"Cosine {found.metric}",
            metric_value=round(found.tuned, 4),
        )
        for found in _shown(comparison)
    ]
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "embedfit"]
    return ModelCardData(
        model_name=target.title,
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=tags,
        eval_results=results,
    ).to_yaml()


def _front_matter(yaml: str) -> str:
    return f"---\n{yaml.strip()}\n---\n"


def _rendered(card: str, /, **said: Any) -> str:
    import jinja2

    text = (resources.files("embedfit") / "templates" / card).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    return environment.from_string(text).render(**said)


def _line(text: str) -> str:
    """Return text as it may stand within a line of Markdown: no new line, no code, no HTML, no cell of a table."""
    return re.sub(r"[`<>|]", "", " ".join(text.split()))


def _dimensions(folder: Path) -> int:
    """Return how many dimensions a saved model's vectors have: the last module that says so."""
    found = 0
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        path = folder / module["path"] / "config.json"
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found = next(
            (said[key] for key in ("out_features", "embedding_dimension", "word_embedding_dimension", "hidden_size") if key in said), found
        )
    return int(found)


def _oldest_reader(folder: Path) -> str:
    """Return the oldest sentence-transformers that is known to read a saved model: else the one that saved it."""
    if older_form(folder) is not None:
        return OLDEST
    saved = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["__version__"]
    return str(saved["sentence_transformers"])


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _readable(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _api() -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if console.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line, without the signature of an upload's address.

    Raises:
        EmbedfitError: Instead of it.
    """
    try:
        yield
    except hub_errors() as error:
        raise EmbedfitError(f"{repo}: the Hub did not take or give it: {reason_of(error)}") from None
