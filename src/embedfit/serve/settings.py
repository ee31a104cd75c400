"""Settings of a server, checked: address, token, limits, feedback."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import secrets
import sys
from dataclasses import asdict, dataclass, field
from functools import lru_cache

from embedfit.errors import ConfigError, shown
from embedfit.secrets import is_variable
from embedfit.serve.feedback import Agreement

SHORTEST_TOKEN = 16
VARIABLE = "EMBEDFIT_TOKEN"
_PASSED_ON = "EMBEDFIT_SERVE"


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        folder: Run directory, or folder of a searcher.
        form: Form of the model to run; empty for the model itself.
        host: Address to listen at.
        port: Port to listen at; 0 for a free one.
        token: Secret that every request must show; empty if none is needed.
        secret: Secret of this server, from which the tokens of forms are made.
        feedback: File of the feedback, or address of a PostgreSQL; empty to keep none.
        agreement: When a pick becomes an example.
        against: Run directory that is compared with, blindly; empty for none.
        suspects: File of the doubtful labels that people decide on; empty for none.
        answers: Number of answers that the page shows at first, from 1 to 9.
        explore: Share of the searches whose hits are shown in random order, from 0 to 1.
        abstain: Probability under which an answer is none, from 0 to 1; 0 to always answer.
        largest: Maximum number of texts encoded together.
        wait: Maximum seconds to wait for further requests.
        queue: Maximum number of texts that wait.
        texts: Maximum number of texts of a request.
        characters: Maximum length of a text.
        body: Maximum bytes of a request's body.
        bodies: Maximum bytes of all bodies that are being received or worked on.
        patience: Maximum seconds for a client to send its body.
        keep_days: Days after which a search without a pick is deleted.
        traces: What traces of searches hold: ``none``, ``ids`` or ``texts``.
        log: Whether to log method, path, status and time of each request.
    """

    folder: str
    form: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    feedback: str = field(default="", repr=False)
    agreement: Agreement = "once"
    against: str = ""
    suspects: str = ""
    answers: int = 5
    explore: float = 0.0
    abstain: float = 0.0
    largest: int = 32
    wait: float = 0.003
    queue: int = 2048
    texts: int = 512
    characters: int = 200_000
    body: int = 8 * 2**20
    bodies: int = 256 * 2**20
    patience: float = 30.0
    keep_days: float = 90.0
    traces: str = "none"
    log: bool = False

    def pass_on(self) -> None:
        """Put the settings into the environment, for the processes that this one starts."""
        os.environ[_PASSED_ON] = json.dumps(asdict(self))

    @classmethod
    def passed_on(cls) -> Settings:
        """Return the settings that the parent process put into the environment, and remove them from it."""
        return cls(**json.loads(os.environ.pop(_PASSED_ON)))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def log_to_stderr() -> None:
    """Write the log of this process to stderr. Each process of a server calls it."""
    logging.basicConfig(stream=sys.stderr, format="embedfit: %(message)s")
    logging.getLogger("embedfit.serve").setLevel(logging.INFO)


@lru_cache(1024)
def is_loopback(host: str) -> bool:
    """Return whether an address, without a port, is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def token_from(variable: str, host: str) -> str:
    """Return the token that an environment variable holds; an empty text on loopback without one.

    Args:
        variable: Name of the variable.
        host: Address to listen at.

    Raises:
        ConfigError: The token is missing where others can reach the server, or is short. It is never shown.
    """
    if not is_variable(variable):
        raise ConfigError("--token-env: expected the name of an environment variable, not the token; fix: --token-env " + VARIABLE)
    token = os.environ.get(variable, "").strip()
    if not token and is_loopback(host):
        return ""
    if not token:
        raise ConfigError(
            f"--host {shown(host)}: others can reach this address, so a token is needed; fix: set the variable {variable}, such as "
            f'{variable}="$(openssl rand -hex 32)"'
        )
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(f"the variable {variable}: expected at least {SHORTEST_TOKEN} printable ASCII characters")
    return token
