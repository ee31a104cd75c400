"""The section [tune] of embedfit.toml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from embedfit.sections import Section

_LEARNING_RATES = {"full": 2e-4, "lora": 2e-3, "adapter": 2e-4, "reranker": 2e-4}
"""Default learning rates, if every document is a candidate in every step."""
_EPOCHS = 4
"""Default epochs, if every document is a candidate in every step."""
_MERGE = 0.5
"""Default weight of the trained weights in the merge with the base model's, if documents are frozen."""


class TuneConfig(Section):
    """How the model is trained. The defaults are the same for every data set."""

    method: Literal["full", "lora", "adapter", "reranker"] = Field(
        "full",
        description="What to train: all weights (full), small matrices beside them (lora), a linear map of the query vector (adapter), "
        "or a cross-encoder that reranks what the model finds (reranker).",
    )
    reranker: str | None = Field(
        None,
        description="Cross-encoder to start from, with method = 'reranker' and in the ladder: a folder or a Hub name. Another model gets a "
        "new head. By default the model itself does, and the ladder leaves the rung out.",
    )
    documents: Literal["trained", "frozen"] = Field(
        "trained",
        description="Whether documents are encoded by the trained model. frozen: their vectors stay as they are, so that an index stays "
        "valid; only the encoder of queries is trained.",
    )
    query_model: str | None = Field(
        None,
        description="Another model to encode queries with: a folder or a Hub name. It is trained for the document vectors of [model], "
        "which may be behind an API. Needs documents = 'frozen'; for `embedfit tune` alone.",
    )
    lora_rank: int = Field(16, ge=1, description="Rank of LoRA's matrices.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Maximum number of epochs. By default 4 if all documents are candidates, else 2.",
    )
    batch_size: int = Field(32, ge=1, description="Queries in a step.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW. By default 2e-4 (2e-3 with LoRA) if all documents are candidates, else half of that.",
    )
    schedule: Literal["linear", "averaged"] = Field(
        "linear",
        description="Learning rate after the warm-up. linear: it falls to zero. averaged: it stays, and the model of an epoch is the mean "
        "of the weights after each of its steps.",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in training.")
    train_embeddings: bool = Field(False, description="Train the token embeddings too, which are half of a small model's weights.")
    freeze: int | Literal["auto"] = Field(
        "auto",
        description="Number of lower layers to freeze, with the embeddings. auto: half of them if all documents are candidates, "
        "method = 'full' and there are 500 to 2,000 training queries, else none.",
    )
    min_gradient: float = Field(
        0.1,
        ge=0,
        description="Least gradient of a text in a batch, for labels without a teacher. With less it is not encoded, and its last vector "
        "stands in. For a query it is about the probability that wrong documents still have. 0: every text is encoded.",
    )
    scale: float = Field(14.0, gt=0, description="Factor of the cosine similarities in the loss (1 / temperature).")
    candidates: Literal["auto", "all", "mined", "batch"] = Field(
        "auto",
        description="Documents that a training query is scored against. all: the corpus. batch: in-batch and random negatives. "
        "mined: hard negatives too. auto: all for a small corpus, else mined.",
    )
    negatives: int | None = Field(
        None, ge=0, description="Random negatives in a step, unless candidates = 'all'. By default 32 for 'batch' and 0 for 'mined'."
    )
    hard_negatives: int = Field(
        1, ge=0, description="Hard negatives for each query in a step: documents judged irrelevant first, then mined ones."
    )
    mined_margin: float = Field(
        1.0,
        gt=0,
        description="Maximum similarity of a hard negative to its query, as a share of the similarity of the least "
        "similar relevant document.",
    )
    judge: str | None = Field(
        None,
        description="A judge of hard negatives: a cross-encoder (a folder or a Hub name), which must score them lower than every "
        "relevant document, or openai:MODEL, an LLM at the endpoint of [generate], which must say that they do not answer the query.",
    )
    teacher: str | None = Field(
        None,
        description="Teacher whose scores are learnt beside the labels: a cross-encoder (a folder or a Hub name), or 'data' for the "
        "scores that come with the data (pos_scores and neg_scores).",
    )
    teacher_weight: float = Field(1.0, gt=0, description="Weight of the teacher beside the labels in the loss.")
    mine_every: int | None = Field(
        None,
        ge=1,
        description="Steps between two minings. By default one epoch, and more if the corpus is large compared with the queries.",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="Memory for the activations of a step, and as much for the states above frozen layers, in GiB. What exceeds it is "
        "computed again. By default a third and an eighth of all memory.",
    )
    merge: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Weight of the trained weights in a merge with the base model's, which keeps more of what the base model knows. "
        "By default 0.5 if documents = 'frozen', else 1.",
    )
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Smaller dimensions to train for, so that vectors can be truncated to them."
    )
    patience: int = Field(2, ge=1, description="Epochs without a better dev score after which training stops.")
    seed: int = Field(0, ge=0, description="Seed of dropout, batch order, random negatives and LoRA's initial weights.")

    @field_validator("freeze", mode="before")
    @classmethod
    def _layers_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise PydanticCustomError("freeze", "expected 'auto' or a number of layers")
        if value not in ("auto", 0) and info.data.get("train_embeddings"):
            raise PydanticCustomError("freeze", "the embeddings below a frozen layer are frozen; needs train_embeddings = false")
        return value

    @field_validator("train_embeddings")
    @classmethod
    def _only_with_full(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("method") == "lora":
            raise PydanticCustomError("method", "needs method = 'full'")
        return value

    def identity(self) -> dict[str, Any]:
        """Return the settings that name a result. Where a later setting has no effect, it has the name from before that setting."""
        later = {
            "freeze": 0,
            "documents": "trained",
            "schedule": "linear",
            "min_gradient": 0,
            "merge": None,
            "reranker": None,
            "query_model": None,
        }
        unused = {name for name, value in later.items() if getattr(self, name) == value}
        if self.teacher or self.documents == "frozen" or self.method not in ("full", "lora"):
            unused.add("min_gradient")
        return self.model_dump(exclude=unused if self.teacher else {*unused, "teacher", "teacher_weight"})

    def epochs_with(self, candidates: str) -> int:
        """Return the number of epochs: the setting, or the default for ``all``, ``mined``, ``batch`` or ``corpus`` candidates.

        In a large corpus, few queries share a document, so training overfits sooner than on a list of labels that every query
        shares. It takes half the epochs at half the learning rate.
        """
        return self.epochs or (_EPOCHS if candidates == "all" else _EPOCHS // 2)

    def learning_rate_with(self, candidates: str) -> float:
        """Return the peak learning rate: the setting, or the default for the method and the candidates (see `epochs_with`)."""
        return self.learning_rate or _LEARNING_RATES[self.method] / (1 if candidates == "all" else 2)

    def min_gradient_with(self, candidates: str) -> float:
        """Return the least gradient of a text that is encoded: the setting if every document is a candidate, without a teacher; else 0.

        Where candidates are drawn, nearly every batch has a document for the first time, and would be encoded whole. What a teacher's
        scores teach beside the labels has small gradients.
        """
        return self.min_gradient if candidates == "all" and not self.teacher else 0.0

    @property
    def merge_weight(self) -> float:
        """Weight of the trained weights in the merge with the base model's: the setting, or the default."""
        return self.merge or (_MERGE if self.documents == "frozen" else 1.0)
