"""One server process for all tests that look at a real model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from loop_data import expenses, pick, settings_in
from serve_data import searcher, serving

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.local import LocalEncoder
from embedfit.serve.live import LiveFolder
from embedfit.serve.refreshing import refresh
from embedfit.serve.searching import Served

READERS = Path(os.environ.get("EMBEDFIT_TEST_READERS", Path(sys.prefix) / "readers"))
AXE = READERS / "axe" / "axe_playwright_python" / "axe.min.js"
DOCUMENTS = {
    "travel": "Taxi, train and airport rides",
    "meals": "Restaurant dinners and coffee",
    "hosting": "Cloud servers and storage",
    "rent": "Office rent and desks",
}


@pytest.fixture(scope="session")
def run_folder(tiny_model, tmp_path_factory):
    """A run directory with the searcher of the one-layer model, with prompts."""
    folder = tmp_path_factory.mktemp("served") / "expenses-0123456789"
    encoder = LocalEncoder(tiny_model, query_prompt="query: ", document_prompt="passage: ", precision="fp32")
    data = Dataset({}, {id: Document(id, text) for id, text in DOCUMENTS.items()}, {})
    Served.untrained(encoder, data, "{text}").searcher.save(folder / "searcher")
    return folder


@pytest.fixture(scope="session")
def process(run_folder):
    """The address of `embedfit serve`, the process, and the lines that it printed."""
    command = [sys.executable, "-m", "embedfit", "serve", str(run_folder), "--port", "0", "--log"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = []
    for line in server.stderr:
        lines.append(line)
        if found := re.search(r"at (http://\S+)", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[1], server, lines
    server.terminate()
    server.communicate()


@pytest.fixture(scope="session")
def address(process):
    return process[0]


@pytest.fixture
def client(word_encoder, tmp_path):
    """A client of a server whose model counts words."""
    with serving(searcher(word_encoder), tmp_path) as client:
        yield client


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def sound(browser):
    """Return a function that checks the page which the browser shows: nothing sticks out, and axe-core finds no violation."""
    if not AXE.is_file():
        pytest.skip(f"no {AXE}; 'make test' installs it")
    axe = AXE.read_text()

    def check():
        browser.value(f"if (!window.axe) {{ {axe} }}; null")
        code = "axe.run().then((found) => JSON.stringify(found.violations.map((one) => [one.id, one.nodes.map((node) => node.html)])))"
        assert json.loads(browser.value(code)) == []
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")

    return check


@pytest.fixture(scope="session")
def world(tiny_model, tmp_path_factory):
    """A configuration, its live folder, and the results of a first refresh and of one after 200 picks."""
    folder = tmp_path_factory.mktemp("refresh")
    config = settings_in(folder, tiny_model, 48, split={"folds": 2})
    live = LiveFolder(folder / "runs" / "loop-live")
    first = refresh(config, live)
    pick(live, expenses(200, 1))
    return config, live, first, refresh(config, live)
