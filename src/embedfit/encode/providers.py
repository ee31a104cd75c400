"""One request for vectors, for each provider, and the meaning of its errors."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from embedfit.encode.encoder import Vectors
from embedfit.errors import ConfigError, ModelError, require, shown
from embedfit.hosts import (
    KEY_REFUSED,
    OPENAI,
    checked_address,
    connected,
    error_status,
    key_in,
    key_variable,
    may_pass,
    openai_host,
    openai_url,
    openais,
    quota_spent,
    redirect_target,
    retry_after,
)
from embedfit.hub import hub_token
from embedfit.replies import Complaint, complains, complaint_of, described, one_line, read_json

_TIMEOUT = 60.0
Provider: TypeAlias = Literal["openai", "hf-inference"]
Ask: TypeAlias = Callable[[list[str]], tuple[Vectors, int | None]]
Answers: TypeAlias = list[tuple[list[int], Vectors]]
"""Positions of texts and their vectors, for each request."""


@dataclass(frozen=True)
class Address:
    """Address of a remote encoder.

    Attributes:
        provider: API of the host.
        model: Name of the model at the host; the URL of a Hugging Face endpoint.
        url: URL without ``/embeddings``, with Azure's ``?api-version=`` if it has one; the URL of a Hugging Face endpoint; None for a model
            that Hugging Face serves by name.
        dimensions: Number of dimensions to ask for; None for all.
    """

    provider: Provider
    model: str
    url: str | None
    dimensions: int | None = None

    @classmethod
    def of(cls, name: str) -> Address:
        """Parse the name of a remote encoder, in a form that `embedfit.encode.remote` lists.

        Raises:
            ConfigError: The name is malformed, or its URL holds a password or an unknown query. Neither is shown.
        """
        provider, _, rest = name.partition(":")
        if provider == "hf-inference":
            model, url = rest, rest if rest.startswith(("http://", "https://")) else None
            options = ""
        elif provider == "openai":
            model, at, url = re.fullmatch(r"(.*?)(?:(@)(https?://.*))?", rest, re.DOTALL).groups()  # type: ignore[union-attr]
            model, _, options = model.partition("?")
            url = url if at else openai_url()
        else:
            raise ConfigError(f"model {name!r} is not remote; expected openai:MODEL or hf-inference:MODEL")
        if "://" in model and model != url:
            raise ConfigError(f"model {provider}:... names an address that is not http(s)://host; it is not shown")
        if not model:
            raise ConfigError(
                f"model '{provider}:' names no model; expected openai:MODEL, openai:MODEL@URL, hf-inference:MODEL or hf-inference:URL"
            )
        if url:
            try:
                parts = checked_address(url)
            except ConfigError as error:
                secret = "has a password in its URL, or something else that" if "@" in url else "has something in its URL that"
                raise ConfigError(
                    f"model {provider}:... {secret} does not belong there and would be written to reports ({error}); "
                    f"fix: the environment holds the key ({key_variable(url)})"
                ) from None
            if provider == "hf-inference" and parts.query:
                raise ConfigError("model hf-inference:... has a query in its URL, which is not sent on; fix: leave it out")
        match = re.fullmatch(r"(?:dimensions=([1-9][0-9]*))?", options)
        if not match:
            option = options if re.fullmatch(r"\w+=\d{0,6}", options) else options.partition("=")[0]
            raise ConfigError(
                f"model {provider}:{one_line(model, 60)}: option {shown(option)} is unknown; expected dimensions=N, "
                "like openai:text-embedding-3-large?dimensions=256"
            )
        return cls(
            "openai" if provider == "openai" else "hf-inference",
            model,
            url.strip().rstrip("/") if url else None,
            int(match[1]) if match[1] else None,
        )

    @property
    def host(self) -> str:
        """Host and port, as far as the URL names one."""
        return urlsplit(self.url).netloc if self.url else "huggingface.co"

    @property
    def variable(self) -> str:
        """Environment variable with the key for this host."""
        if self.provider == "openai" and openais(self.url or OPENAI):
            return "OPENAI_API_KEY"
        name = self.host.partition(":")[0]
        if name in ("huggingface.co", "huggingface.cloud") or name.endswith((".huggingface.co", ".huggingface.cloud")):
            return "HF_TOKEN"
        return key_variable(f"//{self.host}")

    @property
    def metered(self) -> bool:
        """Whether the host is api.openai.com, with its prices and limits."""
        return self.host == urlsplit(OPENAI).netloc


class Failure(Exception):
    """A request was not answered with vectors.

    Attributes:
        complaint: Error of the host or of the connection.
        status: HTTP status, or the one in an error body under HTTP 200; None if there was no answer.
        wait: Seconds that the host asks to wait; None if it does not ask.
        breaks: Whether the connection broke or timed out after the request was sent.
    """

    def __init__(
        self, complaint: Complaint, status: int | None = None, headers: Mapping[str, str] | None = None, *, breaks: bool = False
    ) -> None:
        if status and 300 <= status < 400:
            complaint = Complaint(f"it redirects requests to {redirect_target(headers or {})}; fix: give the final address")
        super().__init__(complaint.message)
        self.complaint, self.wait, self.breaks = complaint, retry_after(headers or {}), breaks
        self.status = error_status(status, complaint) if status else None

    @property
    def quota(self) -> bool:
        """Whether the account can buy no more. Waiting does not help."""
        return quota_spent(self.status or 0, self.complaint)

    @property
    def too_much(self) -> bool:
        """Whether a request with fewer texts may succeed. A wrong key, for which some hosts answer 400, stays wrong."""
        wrong_key = self.status == 400 and self.complaint.status in KEY_REFUSED and not self._of_its_size
        return not self.quota and not wrong_key and (self.status in (200, 400, 413, 422, 424) or self._of_its_size)

    @property
    def _of_its_size(self) -> bool:
        """Whether the host complains about the size of a request rather than about the number of requests."""
        return self.status in (400, 429) and bool(_LARGE_BATCH.search(self.complaint.message))

    @property
    def again(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or (may_pass(self.status) and not self.quota and not self._of_its_size)


_LARGE_BATCH = re.compile(
    r"\b(batch(es)?|requests?|payload|body|inputs?)\b[^.;]{0,40}\btoo (large|big|long)\b|\bbatch[ _]size\b|\btoo (large|big) a? ?batch"
    r"|\btoo many (inputs?|texts|items|documents|sequences)\b",
    re.IGNORECASE,
)


def key_of(address: Address) -> str | None:
    """Return the key for a host; None where there is none and the host may do without.

    Raises:
        ModelError: There is no key, and the host needs one.
        ConfigError: The key cannot be sent in a header.
    """
    variable = address.variable
    key = hub_token() if variable == "HF_TOKEN" else key_in(variable)
    if not key and variable == "OPENAI_API_KEY":
        raise ModelError(
            f"openai:{address.model} needs a key; fix: set {variable}, or name another server: openai:MODEL@http://localhost:8080/v1"
        )
    return key or None


def openai_asker(address: Address, key: str | None) -> Ask:
    """Return a function that sends one request to an OpenAI-compatible server, by OpenAI's SDK."""
    openai = require("openai", extra="openai")
    host = openai_host(address.url or OPENAI, key)
    # A redirect would take the headers to another host.
    client = connected(
        lambda: openai.OpenAI(**host.client, timeout=_TIMEOUT, http_client=openai.DefaultHttpxClient(follow_redirects=False))
    )
    dimensions = address.dimensions or openai.omit

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        create = client.embeddings.with_raw_response.create
        try:
            answer = create(model=address.model, input=texts, dimensions=dimensions, extra_headers=host.headers)
        except openai.APIStatusError as error:
            raise Failure(complaint_of(error.response.content), error.status_code, error.response.headers) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Failure(Complaint(_message(cause)), breaks=type(cause).__name__ not in _NO_CONNECTION) from None
        content = answer.content
        body = read_json(content)
        rows = body.get("data") if isinstance(body, dict) else None
        if not rows and (complains(body) or (isinstance(body, dict) and complaint_of(content).message)):
            raise Failure(complaint_of(content), 200, answer.headers)
        where = f"openai:{address.model}: {address.host} answered {answer.status_code}"
        if not isinstance(rows, list):
            raise ModelError(f"{where} with {described(content)}; expected JSON with 'data'")
        return _in_order(rows, len(texts), where), _tokens(body.get("usage"))

    return ask


_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "LocalProtocolError", "UnsupportedProtocol", "InvalidURL")


def _message(error: BaseException) -> str:
    """Return the message of a connection error without any URL in it."""
    return re.sub(r"\S+://\S+", "...", str(error)) or type(error).__name__


def _in_order(rows: list[Any], count: int, where: str) -> Vectors:
    """Return the vectors of ``data`` in the order of the texts, by ``index``.

    Raises:
        ModelError: An index or a vector is missing, repeated or malformed.
    """
    vectors: list[Any] = [None] * count
    if len(rows) != count:
        raise ModelError(f"{where} with {len(rows):,} vectors; expected one vector for each of {count:,} texts")
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < count or vectors[index] is not None:
            seen = shown(row.get("index")) if isinstance(row, dict) and "index" in row else "none"
            raise ModelError(f"{where} with a vector whose index is {seen}; expected each of 0 to {count - 1:,} once")
        vectors[index] = _vector(row.get("embedding"))
        if vectors[index] is None:
            seen = shown(row.get("embedding"), 40)
            raise ModelError(f"{where} with {seen} as embedding; expected numbers")
        if len(vectors[index]) != len(vectors[rows[0]["index"]]):
            raise ModelError(f"{where} with vectors of different lengths")
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


def _vector(value: Any) -> Vectors | None:
    """Return an embedding given as numbers, or as base64 of little-endian float32; None for anything else."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        numbers = np.array(value) if isinstance(value, list) else np.array(None)
    except (ValueError, OverflowError):
        return None
    return numbers.astype(np.float64) if numbers.ndim == 1 and numbers.dtype.kind in "fiu" else None


def _tokens(usage: Any) -> int | None:
    """Return the number of tokens that a server counted; None if it gives no number."""
    for name in ("total_tokens", "prompt_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if type(count) is int and 0 <= count < 2**53:
            return count
    return None


def hugging_face_asker(address: Address, key: str | None) -> Ask:
    """Return a function that sends one request to Hugging Face Inference, by its own client."""
    from huggingface_hub import InferenceClient, get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    lost: Any = HfHubHTTPError.__mro__[1]  # HTTPError of the HTTP library that the client uses; its versions differ
    # Without a key, the client would send the user's token to any host.
    headers = {} if key else {"authorization": None}
    last = threading.local()

    class Client(InferenceClient):
        """Keeps the body of the last answer, as the client makes vectors of anything that numpy can read.

        It follows no redirect, which would take the texts to another host. The session that it shares with downloads follows them.
        """

        def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
            response = get_session().post(
                request_parameters.url,
                json=request_parameters.json,
                content=request_parameters.data,
                headers=request_parameters.headers,
                cookies=self.cookies,
                timeout=self.timeout,
                follow_redirects=False,
            )
            if response.is_redirect:
                raise Failure(Complaint(), response.status_code, response.headers)
            hf_raise_for_status(response)
            last.body = response.content
            return last.body

    client = Client(address.model, provider="hf-inference", token=key, timeout=_TIMEOUT, headers=headers)  # type: ignore[arg-type]
    connected(get_session)

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        last.body = b""
        where = f"hf-inference:{address.host if address.url else address.model}: {address.host} answered 200"
        try:
            # Long texts are truncated, as by a local model.
            vectors = client.feature_extraction(texts, truncate=True)  # type: ignore[arg-type]
        except HfHubHTTPError as error:
            complaint = complaint_of(error.response.content)
            complaint = complaint if complaint.message else Complaint(_message(error))
            raise Failure(complaint, error.response.status_code, error.response.headers) from None
        except (lost, OSError) as error:
            if type(error).__name__ in ("ReadTimeout", "WriteTimeout"):
                raise Failure(Complaint(f"no answer within {_TIMEOUT:.0f} s"), breaks=True) from None
            raise Failure(Complaint(_message(error)), breaks=type(error).__name__ not in _NO_CONNECTION) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            body = read_json(last.body)
            if complains(body) or (isinstance(body, dict) and complaint_of(last.body).message):
                raise Failure(complaint_of(last.body), 200) from None
            raise ModelError(f"{where} with {described(last.body)}; expected one vector for each text") from None
        rows = read_json(last.body) if isinstance(last.body, bytes) else None
        if isinstance(rows, list) and any(_vector(row) is None for row in rows) and vectors.ndim == 2:
            raise ModelError(f"{where} with something other than numbers in a vector")
        return vectors, None

    return ask
