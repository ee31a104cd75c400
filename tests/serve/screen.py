"""What a person does in Chromium, and sees."""

import time

KEYS = {"Enter": 13, "Escape": 27, "/": 191, "m": 77, "n": 78, "s": 83, "u": 85, **{str(number): 48 + number for number in range(10)}}
ANSWERED = "document.querySelectorAll('section .answers button').length > 0"
STATUS = "document.getElementById('status').textContent"


def until(browser, condition):
    deadline = time.monotonic() + 30
    while not browser.value(condition):
        assert time.monotonic() < deadline, browser.value("document.body.innerText")


def type_in(browser, text, box="query"):
    until(browser, f"document.activeElement.id === '{box}'")  # by itself, or by a key
    browser.tell("Input.insertText", text=text)
