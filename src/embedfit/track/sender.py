"""Delivers results to LangWatch, and keeps in a spool file what could not be delivered."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from embedfit import progress
from embedfit.errors import ConfigError, EmbedfitError, did_you_mean, shown
from embedfit.files import cache_folder, writing
from embedfit.hosts import connected, redirect_target, too_large
from embedfit.replies import complains, complaint_of, described, masked, one_line, read_json
from embedfit.track.langwatch import endpoint, headers, langwatch_key, rejected_spans, results_body, shown_endpoint, span_encoder

if TYPE_CHECKING:
    import httpx

PATIENCE, _PATIENCE_AGAIN = 2.5, 30.0
"""Seconds without a response after which sending stops: at the end of a command, and in `resend`."""
_BATCH = 50
"""Number of results per request."""
SPOOL = "langwatch.jsonl"
"""Name of the spool file: a line for the run, then a line per result."""


@dataclass(frozen=True)
class Delivery:
    """The outcome of a delivery.

    Attributes:
        delivered: Number of results that the server accepted.
        left: Number of results that were not accepted and stay in the spool.
        problem: Reason why results are left; empty if there are none.
        address: URL that shows the results; empty if there is none.
    """

    delivered: int
    left: int
    problem: str = ""
    address: str = ""


def resend(folder: str | Path) -> Delivery:
    """Send results that could not be delivered before.

    Args:
        folder: Run directory, or the folder that the warning named.

    Raises:
        ConfigError: The folder does not exist, or there is no key.
        EmbedfitError: Results are left again; they stay in the spool.
    """
    folder = Path(folder)
    if not folder.is_dir():
        names = [path.name for path in folder.absolute().parent.glob("*") if path.is_dir()]
        raise ConfigError(f"{folder}: is not a run directory{did_you_mean(folder.name, names)}")
    if not (folder / SPOOL).exists():
        return Delivery(0, 0)
    if not langwatch_key():
        raise ConfigError("LangWatch needs a key; fix: set LANGWATCH_API_KEY")
    delivery = deliver(folder, _PATIENCE_AGAIN)
    if delivery.left:
        raise EmbedfitError(
            f"{delivery.left:,} results were not delivered to LangWatch ({delivery.problem}); they are kept, the same command sends them"
        )
    return delivery


def spool_place(name: str, folder: Path | None) -> tuple[str, Path]:
    """Return the id of a run, and the folder of its spool: the run directory, by default a new folder in the cache."""
    if folder:
        return folder.name, folder
    run_id = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06}"
    return run_id, cache_folder() / "track" / run_id


def unused_name(name: str, taken: Sequence[str]) -> str:
    """Return a name that is not taken, with a number appended if necessary."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


def write_spool(path: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a spool file: a line for the run, then a line per result."""
    with writing(path) as file:
        for row in (head, *rows):
            file.write(json.dumps(row).encode() + b"\n")


def deliver(folder: Path, patience: float) -> Delivery:
    """Send the results in a folder's spool, and leave those that were not accepted.

    Args:
        folder: Folder of the spool.
        patience: Seconds without a response after which sending stops.
    """
    head, *rows = (json.loads(line) for line in (folder / SPOOL).read_text(encoding="utf-8").splitlines())
    sender = _Sender(head, rows, patience)
    # A separate thread, because looking up a host name has no timeout.
    thread = threading.Thread(target=sender.run, daemon=True)
    thread.start()
    with progress.bar("results to LangWatch", len(rows)) as done:
        reported = 0
        while thread.is_alive() and time.monotonic() - sender.moved < patience:
            thread.join(0.02)
            done(sender.reached - reported)
            reported = sender.reached
    left = [*sender.too_large, *rows[sender.reached :]]
    if left:
        write_spool(folder / SPOOL, head, left)
        return Delivery(len(rows) - len(left), len(left), sender.problem or f"{shown_endpoint()} does not answer")
    (folder / SPOOL).unlink()
    with contextlib.suppress(OSError):
        if folder.parent == cache_folder() / "track":
            folder.rmdir()
    return Delivery(len(rows), 0, "", sender.address)


class _Refused(Exception):
    """The server did not accept some results; ``too_large`` means that it might accept fewer at a time."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


class _Sender:
    """Sends results in order and in batches until an error occurs. Batches that are too large are split in halves.

    Attributes:
        reached: Number of results that were accepted, or are too large to be.
        too_large: Results that the server does not accept even alone.
        moved: Monotonic time of the last response, in seconds; infinity while a library is being imported.
        problem: Description of the error; empty if there was none.
        address: URL that shows the results; empty if there is none.
    """

    def __init__(self, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], patience: float) -> None:
        self._head, self._rows, self._patience = head, rows, patience
        self.reached, self.problem, self.address = 0, "", ""
        self.too_large: list[Mapping[str, Any]] = []
        self.moved = time.monotonic()

    def run(self) -> None:
        """Send all results; errors end up in `problem`."""
        import httpx

        host = shown_endpoint()
        try:
            with connected(lambda: httpx.Client(base_url=endpoint(), headers=headers(), timeout=self._patience)) as client:
                self._send(client)
        except httpx.HTTPError as error:
            self.problem = f"{host} cannot be reached: {one_line(str(error)) or type(error).__name__}"
        except (EmbedfitError, _Refused) as error:
            self.problem = str(error)
        except Exception as error:  # an unknown server may answer anything, which must neither end the command nor be printed by the thread
            self.problem = f"{host} does not answer as LangWatch does: {type(error).__name__}"

    def _send(self, client: httpx.Client) -> None:
        slug = name = self._head["experiment"]
        if name is not None:
            kind = {"experiment_name": name, "experiment_slug": name, "experiment_type": "BATCH_EVALUATION_V2"}
            reply = self._post(client, "/api/experiment/init", json=kind)
            slug, path = (reply.get(key) if isinstance(reply, dict) else None for key in ("slug", "path"))
            if not (isinstance(slug, str) and isinstance(path, str)):
                raise _Refused(f"{shown_endpoint()} does not answer as LangWatch does: its experiment has no slug and path")
            self.address = f"{shown_endpoint()}{quote(path)}?runId={quote(self._head['run_id'])}"
        else:
            # Fails early if there is no server, before the slow import below.
            client.head("/")
        self.moved = float("inf")
        encode = span_encoder()
        self.moved = time.monotonic()
        for start in range(0, len(self._rows), _BATCH):
            self._send_rows(client, encode, slug, self._rows[start : start + _BATCH])

    def _send_rows(self, client: httpx.Client, encode: Any, slug: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send results, in halves if they are too large together. A result that is too large alone is set aside."""
        try:
            if slug is not None:
                body = results_body(slug, self._head, rows, self.reached + len(rows), len(self._rows))
                self._post(client, "/api/evaluations/batch/log_results", json=body)
            spans = encode(self._head["run_id"], rows)
            self._post(client, "/api/otel/v1/traces", content=spans, headers={"Content-Type": "application/x-protobuf"})
        except _Refused as refused:
            if not refused.too_large:
                raise
            if len(rows) > 1:
                half = len(rows) // 2
                self._send_rows(client, encode, slug, rows[:half])
                self._send_rows(client, encode, slug, rows[half:])
                return
            self.too_large.append(rows[0])
            more = f", and {len(self.too_large) - 1:,} more" if len(self.too_large) > 1 else ""
            self.problem = f"{refused}, even alone: the result of query {shown(self.too_large[0]['query'])}{more}"
        self.reached += len(rows)

    def _post(self, client: httpx.Client, path: str, **content: Any) -> Any:
        """Return the server's JSON reply, or None for another reply that confirms acceptance.

        Raises:
            _Refused: The server did not accept the request, or something else replied, such as a login page.
        """
        response = client.post(path, **content)
        self.moved = time.monotonic()
        host, status, body = shown_endpoint(), response.status_code, read_json(response.content)
        complaint = complaint_of(response.content)
        if response.is_success and not complains(body):
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if rejected := rejected_spans(body, response.content if kind == "application/x-protobuf" else b""):
                raise _Refused(f"{host} answered {status} and rejected {rejected}")
            if isinstance(body, dict) or kind == "application/x-protobuf" or (not response.content and kind != "text/html"):
                return body
            raise _Refused(f"{host} answered {status} with {described(response.content)}; fix: check LANGWATCH_ENDPOINT")
        if response.is_redirect:
            destination = redirect_target(response.headers, "another page of its own, such as a login")
            raise _Refused(f"{host} answered {status} and redirects to {destination}; fix: check LANGWATCH_ENDPOINT")
        reason = one_line(masked(complaint.message, langwatch_key()))
        raise _Refused(f"{host} answered {status}" + (f": {reason}" if reason else ""), too_large=too_large(status, complaint))
