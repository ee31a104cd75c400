"""The services of the circle, played on this machine: an LLM, OpenAI, the Hugging Face Hub, an inference endpoint, and LangWatch.

They speak the real protocols over HTTP, so nothing here needs an account or a network. The tests use the same servers. Their answers are
modest: the LLM deals out the bundled transactions, and OpenAI's embeddings count words.
"""

import atexit
import json
import tempfile
import warnings
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from openai_server import completion, hashed, schema_of
from servers import Embeddings, Hub, LangWatch, Server, Storage, running

from embedfit.hosts import key_variable
from embedfit.samples import TRANSACTIONS

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm has no bars for a notebook without ipywidgets


@dataclass
class LLM(Server):
    """An OpenAI-compatible LLM that writes transactions by rote: the bundled ones of the category that it is asked for."""

    written: dict = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self):
        for line in (TRANSACTIONS / "transactions.jsonl").read_text().splitlines():
            record = json.loads(line)
            # Nearly all of "Customer Success & Support Infrastructure" are by that department, which gives the category away.
            record["department"] = record["department"].replace("Customer", "Client").replace("Success", "Care")
            self.written[record["expense_category"]].append(json.dumps(record))

    def answer(self, request):
        body = request.json
        [label] = schema_of(body)["properties"]["expense_category"]["enum"]
        known = self.written[label]
        content = known[hashed(body) % len(known)]
        return 200, {"Content-Type": "application/json"}, completion(body, {"content": content})


@dataclass
class Endpoint(Embeddings):
    """A Hugging Face inference endpoint; it serves a model that was published to the Hub, once it is deployed."""

    folder: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    def deploy(self, hub, name):
        """Serve a model of the Hub. Returns the endpoint's URL."""
        for path, content in hub.repos["model", name]["files"].items():
            file = Path(self.folder.name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return f"{self.address}/{name}"

    @cached_property
    def model(self):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(self.folder.name, device="cpu")

    def vectors(self, texts, dimensions):
        with self.lock:
            return self.model.encode(texts, show_progress_bar=False)


@dataclass
class Services:
    """All of them, running."""

    llm: LLM
    openai: Embeddings
    hub: Hub
    endpoint: Endpoint
    langwatch: LangWatch

    @property
    def secrets(self):
        """The keys and whatever else is for one of them alone, by the variable that holds it."""
        return {
            "LLM_API_KEY": "sk-llm-0123456789",
            "OPENAI_API_KEY": "sk-openai-0123456789",
            "OPENAI_ORG_ID": "org-openai-0123456789",
            "HF_TOKEN": "hf_0123456789",
            key_variable(self.endpoint.address): "hf-endpoint-0123456789",
            "LANGWATCH_API_KEY": "sk-lw-0123456789",
        }

    @property
    def environment(self):
        """What to set so that embedfit talks to them and not to the real ones: keys and addresses."""
        return {
            **self.secrets,
            "OPENAI_BASE_URL": f"{self.openai.address}/v1",
            "HF_ENDPOINT": self.hub.address,
            "HF_HUB_DISABLE_XET": "1",
            "LANGWATCH_ENDPOINT": self.langwatch.address,
        }

    def keys_seen(self):
        """Return which keys each service was sent, and in how many requests anything at all."""
        parts = {**{name: value for name, value in vars(self).items() if isinstance(value, Server)}, "storage": self.hub.storage}
        return {
            name: (len(server.requests), {key for key, value in self.secrets.items() if any(map(_holds(value), server.requests))})
            for name, server in parts.items()
        }


def _holds(secret):
    return lambda request: secret.encode() in request.body or secret in f"{request.path} {request.headers}"


@contextmanager
def running_services():
    """Run all of them, each on a port of its own."""
    with ExitStack() as stack:
        storage = stack.enter_context(running(Storage()))
        servers = [LLM(), Embeddings(), Hub(storage=storage), Endpoint(), LangWatch()]
        yield Services(*[stack.enter_context(running(server)) for server in servers])


def start():
    """Run all of them until this process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_services())
