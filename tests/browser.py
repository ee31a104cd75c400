"""Chromium without a window, told what to do over its DevTools protocol."""

import json
import re
import shutil
import subprocess
import urllib.request

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of a Chromium."""

    def __init__(self, folder):
        connect = pytest.importorskip("websockets.sync.client").connect
        options = [
            "--headless",
            "--hide-scrollbars",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--remote-debugging-port=0",
        ]
        self.process = subprocess.Popen(
            [CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        address = next(found[1] for line in self.process.stderr if (found := re.search(r"listening on ws://([^/]+)", line)))
        with urllib.request.urlopen(f"http://{address}/json") as answer:
            page = next(page for page in json.load(answer) if page["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self.calls, self.events = 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method, **parameters):
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv(timeout=60))).get("id") != self.calls:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def until(self, event):
        while not any(seen["method"] == event for seen in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=60)))

    def open(self, path, *, width=1280, dark=False, script=True):
        self.tell("Emulation.setScriptExecutionDisabled", value=not script)
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.tell("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        self.until("Page.loadEventFired")
        return self

    def value(self, code):
        """Return the value of an expression, or what a promise resolves to."""
        answer = self.tell("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text="\r" if code == 13 else "")

    def click(self, selector):
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def write(self, text):
        self.value("document.getElementById('words').focus()")
        self.tell("Input.insertText", text=text)

    def choose(self, id, value):
        self.value(
            f"{{ const box = document.getElementById({id!r}); box.value = {json.dumps(value)}; box.dispatchEvent(new Event('change')) }}"
        )

    def count(self):
        """Return what the page says of how many queries there are, and how many rows it shows."""
        return self.value("document.getElementById('count').textContent"), self.value(
            "document.querySelectorAll('#queries tbody tr').length"
        )

    def column(self, number):
        return self.value(f"[...document.querySelectorAll('#queries tbody tr')].map((row) => row.cells[{number}].innerText)")

    def complaints(self):
        self.value("1")
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in said]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
