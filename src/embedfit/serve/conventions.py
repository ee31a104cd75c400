"""Conventions that clients already speak: OpenAI's embeddings, Cohere's and Jina's rerank, text-embeddings-inference."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from embedfit.encode.encoder import Kind, Vectors
from embedfit.encode.local import local_of
from embedfit.encode.pooling import pooling_of
from embedfit.errors import shown
from embedfit.serve.problems import Refused
from embedfit.serve.service import Service

_KINDS: dict[str, Kind] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
    "corpus": "document",
}
"""Words of several services for what a text is."""
Texts = str | list[str]
Tokens = list[StrictInt]


class Lenient(BaseModel):
    """The body of a request of another convention. Keys that mean nothing here are ignored, as other servers do."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, allow_inf_nan=False)


class EmbeddingsBody(Lenient):
    """OpenAI's request for embeddings, and what it is silent about: `input_type`."""

    input: str | Tokens | list[str] | list[Tokens]
    model: str = ""
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    input_type: str | None = Field(None, description="query or document. By default document, or what ends the model's name after ':'.")


class RerankBody(Lenient):
    """Cohere's and Jina's request to rerank documents."""

    query: str
    documents: list[str | dict[str, Any]] = Field(min_length=1)
    model: str = ""
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class EmbedBody(Lenient):
    """text-embeddings-inference's request for embeddings."""

    inputs: str | Tokens | list[str] | list[Tokens]
    normalize: bool = True
    truncate: bool | None = None
    prompt_name: str | None = None
    dimensions: int | None = Field(None, ge=1)


class TeiRerankBody(Lenient):
    """text-embeddings-inference's request to rerank texts."""

    query: str
    texts: list[str] = Field(min_length=1)
    return_text: bool = False
    raw_scores: bool = False
    truncate: bool | None = None


def add_conventions(app: FastAPI) -> None:
    """Add the routes of all conventions."""
    _add_openai(app)
    _add_rerank(app)
    _add_tei(app)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _add_openai(app: FastAPI) -> None:
    @app.post("/v1/embeddings", tags=["OpenAI"], summary="Embeddings")
    async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
        """Return an embedding of each text."""
        service = _service(request)
        name, kind = _model(service, body.model, body.input_type)
        texts = await _texts(service, body.input)
        vectors = _cut(await service.encode(texts, kind), body.dimensions)
        tokens = await service.batcher.call(service.tokens, texts, kind)
        rows: Sequence[Any] = [_base64(vector) for vector in vectors] if body.encoding_format == "base64" else _numbers(vectors)
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    @app.get("/v1/models", tags=["OpenAI"], summary="Models")
    async def models(request: Request) -> Response:
        """Return the one model, and its two kinds of texts as models of their own."""
        name = _service(request).searcher.name
        return JSONResponse({"object": "list", "data": [_card(id) for id in (name, f"{name}:query", f"{name}:document")]})

    @app.get("/v1/models/{name:path}", tags=["OpenAI"], summary="One model")
    async def model(name: str, request: Request) -> Response:
        """Return the model of a name."""
        _model(_service(request), name, None)
        return JSONResponse(_card(name))


def _add_rerank(app: FastAPI) -> None:
    async def rerank(body: RerankBody, request: Request) -> Response:
        """Rank documents for a query by cosine similarity."""
        service = _service(request)
        name, _ = _model(service, body.model, None)
        texts = [_document(document, number) for number, document in enumerate(body.documents, 1)]
        scores = await _similarities(service, body.query, texts)
        order = np.argsort(-scores, kind="stable")[: body.top_n]
        results: list[dict[str, Any]] = [{"index": int(index), "relevance_score": float(scores[index])} for index in order]
        if body.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        tokens = await service.batcher.call(service.tokens, [body.query, *texts], "document")
        usage = {"total_tokens": tokens, "prompt_tokens": tokens}
        meta = {"api_version": {"version": request.url.path[2]}, "billed_units": {"search_units": 1}}
        return JSONResponse({"id": service.searcher.fingerprint[:36], "model": name, "results": results, "usage": usage, "meta": meta})

    for path, client in (("/v1/rerank", "Cohere, Jina"), ("/v2/rerank", "Cohere")):
        app.post(path, tags=[client], summary="Rerank", name=f"rerank {path}")(rerank)


def _add_tei(app: FastAPI) -> None:
    @app.post("/", include_in_schema=False)  # where Hugging Face's clients send the same
    @app.post("/embed", tags=["text-embeddings-inference"], summary="Embeddings")
    async def embed(body: EmbedBody, request: Request) -> Response:
        """Return an embedding of each text. All are of unit length, also without `normalize`."""
        service = _service(request)
        texts = await _texts(service, body.inputs)
        vectors = await service.encode(texts, _kind(body.prompt_name, "prompt_name"))
        return JSONResponse(_numbers(_cut(vectors, body.dimensions)))

    @app.post("/rerank", tags=["text-embeddings-inference"], summary="Rerank")
    async def rerank_texts(body: TeiRerankBody, request: Request) -> Response:
        """Rank texts for a query by cosine similarity."""
        scores = await _similarities(_service(request), body.query, body.texts)
        order = np.argsort(-scores, kind="stable")
        texts = [{"text": body.texts[index]} if body.return_text else {} for index in order]
        return JSONResponse(
            [{"index": int(index), "score": float(scores[index]), **text} for index, text in zip(order, texts, strict=True)]
        )

    @app.get("/health", tags=["text-embeddings-inference"], summary="Is it ready?")
    async def health() -> Response:
        """Return 200 if the server can answer."""
        return Response()

    @app.get("/info", tags=["text-embeddings-inference"], summary="What is served")
    async def info(request: Request) -> Response:
        """Return the model, its fingerprint, and the limits."""
        service = _service(request)
        settings, searcher = service.settings, service.searcher
        model = local_of(searcher.encoder)
        limit = model.loaded.truncation([], "query").limit if model else 0
        return JSONResponse(
            {
                "model_id": searcher.name,
                "model_sha": searcher.fingerprint,
                "model_dtype": "float32",
                "model_type": {"embedding": {"pooling": (pooling_of(model.folder) if model else None) or "mean"}},
                "max_concurrent_requests": settings.queue,
                "max_input_length": min(limit, 2**31 - 1),
                "max_batch_tokens": 1024,
                "max_batch_requests": settings.largest,
                "max_client_batch_size": settings.texts,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": version("embedfit"),
                "fingerprint": searcher.fingerprint,
                "dimension": service.encoder.dimension,
                "documents": len(searcher.documents),
                "prompts": dict(service.encoder.prompts),
                "threshold": searcher.threshold,
                "feedback": service.feedback is not None,
            }
        )


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "embedfit"}


def _model(service: Service, given: str, input_type: str | None) -> tuple[str, Kind]:
    """Return the name of the model and the kind of the texts that a request means.

    Raises:
        Refused: Another model is named.
    """
    name = service.searcher.name
    base, _, ending = given.rpartition(":")
    kind = ending if base in (name, name.rpartition("/")[2]) and ending in ("query", "document") else None
    if given not in ("", name, name.rpartition("/")[2]) and kind is None:
        raise Refused(404, f"this model is not served here; expected {shown(name)}", code="model_not_found")
    return given or name, _kind(input_type, "input_type") if input_type or kind is None else _KINDS[kind]


def _kind(word: str | None, name: str) -> Kind:
    if not word:
        return "document"
    if word.casefold() not in _KINDS:
        raise Refused(422, f"{name}: expected 'query' or 'document'", code="invalid_body")
    return _KINDS[word.casefold()]


async def _texts(service: Service, given: str | Tokens | list[str] | list[Tokens]) -> list[str]:
    """Return texts, from texts or from the model's own tokens."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise Refused(422, "there is no text; expected at least one", code="empty_input")
    if isinstance(given[0], str):
        return given  # type: ignore[return-value]
    rows: list[Tokens] = [given] if isinstance(given[0], int) else given  # type: ignore[list-item, assignment]
    texts: list[str] = await service.batcher.call(_decoded, service, rows)
    return texts


def _decoded(service: Service, rows: list[Tokens]) -> list[str]:
    model = local_of(service.searcher.encoder)
    tokenizer = model.loaded.model.tokenizer if model else None
    if tokenizer is None or not hasattr(tokenizer, "decode"):
        raise Refused(422, "tokens cannot be read here; expected texts", code="invalid_input")
    size = len(tokenizer)
    if any(not 0 <= token < size for row in rows for token in row):
        raise Refused(
            422,
            f"a token is outside the model's {size:,}: they are of another tokenizer; fix: send texts "
            "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
            code="invalid_input",
        )
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def _cut(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Return the first dimensions of vectors, at unit length."""
    if dimensions is None or not len(vectors):
        return vectors
    if dimensions > vectors.shape[1]:
        raise Refused(422, f"dimensions: expected at most {vectors.shape[1]:,}", code="invalid_body")
    cut = vectors[:, :dimensions]
    shortened: Vectors = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return shortened


def _base64(vector: Vectors) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


def _numbers(vectors: Vectors) -> list[list[float]]:
    return [[float(f"{number:.9g}") for number in row] for row in vectors.tolist()]


def _document(document: str | dict[str, Any], number: int) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise Refused(422, f"document {number}: has no 'text'", code="invalid_body")
    return text


async def _similarities(service: Service, query: str, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if len(texts) > service.settings.texts:
        raise Refused(422, f"{len(texts):,} documents; expected at most {service.settings.texts:,}", code="too_many_texts")
    version = service.version
    [vector] = await service.encode([query], "query", version)
    scores: np.ndarray[Any, np.dtype[np.float32]] = await service.encode(texts, "document", version) @ vector
    return scores
