"""Publishes a model or a data set to the Hugging Face Hub, a folder or an archive.

No training text is published unless it is asked for, and no path of this machine. The model card is embedfit's own, because that
of sentence-transformers quotes training examples.
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
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.data.write import write_jsonl
from embedfit.encode.readers import older_form
from embedfit.errors import ConfigError, OfflineError, StorageError
from embedfit.evaluation.comparison import Comparison
from embedfit.files import temporary_folder, temporary_path, writing
from embedfit.hub import check_reachable, hub_address, hub_token, public_name
from embedfit.publish.card import content_size, front_matter, model_card, rendered, reranker_card
from embedfit.publish.target import EVIDENCE, Content, PublicationKind, Target, hub_api, in_one_line, readable_size, refusals
from embedfit.studies.deployable import Deployable


@dataclass(frozen=True)
class Publication:
    """Files that are ready to be published; nothing has been sent yet.

    Attributes:
        target: Target of the publication.
        kind: Model or data set.
        files: Path in the publication -> a local file, or content.
        public: Whether a repository on the Hub is public.
        has_text: Whether the files contain training text.
    """

    target: Target
    kind: PublicationKind
    files: Mapping[str, Content] = field(repr=False)
    public: bool = False
    has_text: bool = False

    @property
    def bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(map(content_size, self.files.values()))

    def describe(self) -> str:
        """Return what will be sent where, as several lines for a person to confirm."""
        endpoint = f"{hub_address()}/{'datasets/' if self.kind == 'dataset' else ''}" if self.target.kind == "hub" else ""
        place = {"hub": endpoint, "folder": "the folder ", "archive": "the archive "}
        access = f", {'PUBLIC: anybody can see it' if self.public else 'private'}" if self.target.kind == "hub" else ""
        text = "contains" if self.has_text else "contains none of"
        lines = [f"The {self.kind} goes to {place[self.target.kind]}{self.target.where}{access}. It {text} the labelled text."]
        lines += [f"  {console.printable(name)}  {readable_size(content_size(content))}" for name, content in sorted(self.files.items())]
        lines.append(f"  {len(self.files)} files, {readable_size(self.bytes)}")
        if self.target.kind == "hub" and EVIDENCE in self.files:
            lines.append("  Files of an earlier publication that are not in this list are deleted from the repository.")
        return "\n".join(lines)

    def send(self) -> str:
        """Publish the files. Return the revision on the Hub, or the path.

        Raises:
            EmbedfitError: The files cannot be sent or written, or the repository's visibility differs.
        """
        if self.target.kind == "hub":
            return self._push()
        self.target.check_free()
        try:
            if self.target.kind == "archive":
                self._write_archive(self.target.path)
            else:
                self._write_folder(self.target.path)
        except OSError as error:
            raise StorageError(f"{self.target.where}: cannot be written: {error.strerror or error}") from None
        return self.target.where

    @contextlib.contextmanager
    def fetched(self, revision: str) -> Iterator[Path]:
        """Yield a folder with the published files as a user would get them: downloaded, unpacked, or in place.

        Args:
            revision: Result of `send`.

        Raises:
            EmbedfitError: The files cannot be fetched.
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
                        allow_patterns=[*self.files, "*.json"],  # a stray settings file in the repository would change the model
                    )
                yield Path(folder)

    def _push(self) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import RepositoryNotFoundError

        repo = self.target.where
        if not hub_token():
            raise ConfigError(f"publishing to {repo} on the Hub needs a token with write access; fix: set HF_TOKEN, or run 'hf auth login'")
        try:
            check_reachable(repo)
        except OfflineError:
            local = f"./{self.target.title} or {self.target.title}.tar"
            raise OfflineError(f"{repo}: the Hub cannot be reached; fix: publish to a folder or an archive: {local}") from None
        api = hub_api()
        with refusals(repo):
            stale: set[str] = set()
            try:
                info = api.repo_info(repo, repo_type=self.kind)
            except RepositoryNotFoundError:
                api.create_repo(repo, repo_type=self.kind, private=not self.public, exist_ok=True)
            else:
                if bool(info.private) == self.public:
                    state = "private" if info.private else "public"
                    fix = "change that on the Hub" if info.private else "add --public, or choose another name"
                    raise ConfigError(f"{repo} already exists and is {state}; fix: {fix}")
                before = {file.rfilename for file in getattr(info, "siblings", None) or ()}
                stale = (self._published_before(info.sha) if EVIDENCE in before else set()) & before - set(self.files)
            operations: list[Any] = [CommitOperationAdd(name, content) for name, content in self.files.items()]
            operations += [CommitOperationDelete(name) for name in sorted(stale)]
            message = f"{self.kind.capitalize()} from embedfit"
            return str(api.create_commit(repo, operations, commit_message=message, repo_type=self.kind).oid)

    def _published_before(self, revision: str | None) -> set[str]:
        """Return the files that an earlier publication lists as its own; empty if there is no list."""
        with temporary_folder() as temporary:
            path = hub_api().hf_hub_download(self.target.where, EVIDENCE, repo_type=self.kind, revision=revision, cache_dir=temporary)
            try:
                return {str(name) for name in json.loads(Path(path).read_text(encoding="utf-8")).get("files", ())}
            except (ValueError, AttributeError, TypeError):
                return set()

    def _write_folder(self, folder: Path) -> None:
        with temporary_path(folder) as temporary:
            for name, content in self.files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, path)
                else:
                    path.write_bytes(content)
            if folder.exists():  # an empty folder, which rename replaces only while it is empty
                temporary.chmod(stat.S_IMODE(folder.stat().st_mode))
            temporary.rename(folder)

    def _write_archive(self, path: Path) -> None:
        # Without times and user names, the same files give the same archive.
        with writing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{self.target.title}/{name}")
                entry.size, entry.mode = content_size(content), 0o644
                with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as source:
                    archive.addfile(entry, source)


def model_publication(
    target: Target,
    folder: Path,
    manifest: Mapping[str, Any],
    comparison: Comparison,
    *,
    public: bool = False,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
    forms: Sequence[Deployable] = (),
    forms_folder: Path | None = None,
    rejected: Mapping[str, str] = MappingProxyType({}),
) -> Publication:
    """Return the publication of a run's model.

    Args:
        target: Target of the publication.
        folder: Folder of the model.
        manifest: Manifest of the run.
        comparison: Comparison of the run.
        public: Whether a repository on the Hub is public.
        examples: Training queries to quote in the card, each with its answers. No other training text is published.
        forms: Forms to publish beside the model.
        forms_folder: Folder that their files are in.
        rejected: Forms that lose too much -> the reason.
    """
    files: dict[str, Content] = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"
    }
    files |= older_form(folder) or {}  # earlier versions of embedfit saved models without the older form
    if forms_folder:
        files |= {name: forms_folder / name for form in forms for name in form.files}
    if manifest.get("reranker"):
        card = reranker_card(target, folder, manifest, comparison, examples)
    else:
        card = model_card(target, folder, manifest, comparison, examples, forms, rejected)
    files["README.md"] = card.encode()
    summary = comparison.to_dict() | {"base": public_name(manifest["base"]["name"]), "tuned": target.title}
    config = manifest["config"]
    evidence = {
        "embedfit": manifest["embedfit"],
        "base": {"name": public_name(manifest["base"]["name"]), "fingerprint": manifest["base"]["fingerprint"]},
        "fingerprint": manifest["fingerprint"],
        "document_template": config["data"]["document_template"],
        "split": manifest["split"],
        "tune": config["tune"],
        "comparison": summary,
        "files": sorted([*files, EVIDENCE]),
    }
    files[EVIDENCE] = json.dumps(evidence, indent=1).encode()
    return Publication(target, "model", files, public, bool(examples))


def dataset_publication(target: Target, dataset: Dataset, name: str, *, public: bool = False) -> Publication:
    """Return the publication of a data set, with all of its queries, labels and documents.

    Args:
        target: Target of the publication.
        dataset: Data set to publish.
        name: Title of the card.
        public: Whether a repository on the Hub is public.
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
