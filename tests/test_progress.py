import io
import os
import re
import sys
import textwrap
import threading
import time

import nbformat
import pytest
from nbclient import NotebookClient

from embedfit import console, progress
from embedfit.progress import duration

FOLDS = ["base model", "tuning, fold 1 of 3", "tuning, fold 2 of 3", "tuning, fold 3 of 3", "report"]


class Stream(io.StringIO):
    """A stderr that can be waited for."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal = terminal
        self.changed = threading.Condition()

    def isatty(self):
        return self.terminal

    def write(self, text):
        with self.changed:
            count = super().write(text)
            self.changed.notify_all()
        return count

    def wait(self, *texts):
        with self.changed:
            assert self.changed.wait_for(lambda: all(text in self.getvalue() for text in texts), timeout=20), self.getvalue()


@pytest.fixture
def stderr(monkeypatch):
    """Put a stream in place of stderr, where progress shows at once.

    Called in the test, as pytest sets its own stderr after the fixtures.
    """

    def put(*, terminal=False):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(progress, "patience", 0)
    monkeypatch.setattr(progress, "_TICK", 0.01)
    return put


def test_a_log_names_the_plan_and_each_step_with_its_place(stderr):
    log = stderr()
    with progress.plan("run", FOLDS) as plan:
        plan.skip("base model", "tuning, fold 1 of 3")
        for name in FOLDS[2:]:
            with plan.step(name):
                log.wait(name)
    assert log.getvalue().splitlines() == [
        "run: 5 steps, 2 of them done earlier",
        "3 of 5: tuning, fold 2 of 3",
        "4 of 5: tuning, fold 3 of 3",
        "5 of 5: report",
    ]


def test_the_plan_tells_the_time_where_every_step_has_one(stderr, monkeypatch):
    log = stderr()
    monkeypatch.setattr(progress, "interval", 0.02)
    with progress.plan("ladder", {"zero-shot": 20, "adapter": 60, "LoRA": 100}) as plan, plan.step("zero-shot"):
        log.wait("left in all")
    assert log.getvalue().startswith("ladder: 3 steps, about 3 minutes\n")
    assert re.search(r"^1 of 3: zero-shot: \d seconds?, about 3 minutes left in all$", log.getvalue(), re.MULTILINE)


def test_a_step_tells_how_long_the_steps_like_it_take(stderr):
    log = stderr()
    with progress.plan("run", FOLDS[1:4]) as plan:
        with plan.step(FOLDS[1]):
            log.wait("1 of 3")
        work = plan._work
        assert work._left_in_all() == pytest.approx(2 * work.seconds[FOLDS[1]])
        with plan.step(FOLDS[2]):
            log.wait("2 of 3")
        assert work._left_in_all() == pytest.approx(sum(work.seconds.values()) / 2)
    assert log.getvalue().startswith("run: 3 steps\n")


def test_a_bar_of_a_step_stands_beside_its_name_at_intervals(stderr, monkeypatch):
    log = stderr()
    monkeypatch.setattr(progress, "interval", 0.02)
    with progress.plan("run", FOLDS) as plan, plan.step("tuning, fold 2 of 3"):
        with progress.bar("tuning", 400) as advance, progress.bar("hidden", 10) as inner:
            advance(120, said="loss 0.4")
            inner(10)
            log.wait("3 of 5: tuning, fold 2 of 3: 120 of 400, about ", ", loss 0.4")
        with progress.bar("encoding texts", 5000):
            log.wait("3 of 5: tuning, fold 2 of 3: encoding texts: 0 of 5,000")
    assert "hidden" not in log.getvalue()


def test_a_bar_goes_on_where_an_earlier_run_stood(stderr, monkeypatch):
    log = stderr()
    monkeypatch.setattr(progress, "interval", 0.02)
    with progress.bar("tuning", 300, done=100) as advance:
        log.wait("tuning: 100 of 300\n")
        advance(50)
        log.wait("tuning: 150 of 300, about ")
    assert "tuning: 0 of" not in log.getvalue()
    task = progress._Task("tuning", 300, done=100, before=100, started=time.monotonic() - 10)
    task.advance(50)
    assert task.left == pytest.approx(30, abs=0.1)  # 50 took 10 seconds: 150 take 30


def test_preparations_before_the_first_of_many_steps_do_not_count_for_the_speed():
    task = progress._Task("tuning", 100, started=time.monotonic() - 60)
    task.advance(1)
    assert task.left is None
    task.started -= 4
    task.advance(2)
    assert task.left == pytest.approx(194, abs=1)  # 2 took 4 seconds: 97 take 194


def test_a_terminal_shows_a_bar_that_goes_away_and_stdout_gets_what_is_its_own(stderr, capsys):
    screen = stderr(terminal=True)
    with progress.plan("run", FOLDS) as plan:
        with plan.step("tuning, fold 1 of 3"), progress.bar("tuning", 400, done=100) as advance:
            print("to stdout")
            screen.wait("2 of 5: tuning, fold 1 of 3", "100 of 400")
            advance(300)
            screen.wait("400 of 400")
        with plan.step("report"):
            console.note("a note")
            screen.wait("5 of 5: report")
    assert capsys.readouterr().out == "to stdout\n"
    assert screen.getvalue().startswith("run: 5 steps\n")
    assert "a note" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the bar's line is erased


@pytest.mark.parametrize("terminal", ["xterm", "dumb", None])
def test_work_of_under_two_seconds_shows_nothing(monkeypatch, terminal):
    stream = Stream(terminal is not None)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", terminal or "xterm")
    with progress.plan("run", FOLDS) as plan, plan.step("report"), progress.bar("writing", 3) as advance:
        advance(3)
    with progress.bar("encoding", 3) as advance:
        advance(3)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_silences_all_of_it(stderr, monkeypatch, terminal):
    log = stderr(terminal=terminal)
    monkeypatch.setattr(console, "quiet", True)
    monkeypatch.setattr(progress, "interval", 0)
    with progress.plan("run", FOLDS) as plan, plan.step("report"), progress.bar("writing", 3) as advance:
        advance(3)
        plan.skip("base model")
    with progress.bar("encoding", 3) as advance:
        advance(3)
    console.note("a note")
    assert log.getvalue() == ""


def test_a_plan_within_a_plan_is_part_of_its_step(stderr):
    log = stderr()
    with progress.plan("curve", ["100 queries", "200 queries"]) as outer, outer.step("200 queries"):
        with progress.plan("run", FOLDS) as inner, inner.step("report"):
            log.wait("2 of 2: 200 queries")
        inner.skip("report")
    assert log.getvalue() == "curve: 2 steps\n2 of 2: 200 queries\n"


def test_steps_have_names_of_their_own_and_are_in_the_plan():
    with pytest.raises(ValueError, match="names each step once"), progress.plan("run", ["a", "a"]):
        pass
    with progress.plan("run", ["a"]) as plan:
        with pytest.raises(ValueError, match="has no step 'b'"), plan.step("b"):
            pass
        with pytest.raises(ValueError, match="has no step 'b'"):
            plan.skip("a", "b")


def test_after_an_error_the_next_work_is_shown(stderr, monkeypatch):
    log = stderr()
    monkeypatch.setattr(progress, "interval", 0)
    with pytest.raises(KeyError), progress.plan("run", FOLDS) as plan, plan.step("report"):
        raise KeyError
    with progress.bar("encoding", 3):
        log.wait("encoding: 0 of 3")


def test_a_stream_that_takes_no_more_ends_the_display_and_not_the_work(stderr, monkeypatch):
    log = stderr()
    monkeypatch.setattr(progress, "interval", 0)
    with progress.plan("run", FOLDS) as plan, plan.step("report"):
        log.wait("run: 5 steps")
        log.close()
    with progress.bar("encoding", 3) as advance:
        advance(3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"),
        (0.6, "1 second"),
        (9.4, "9 seconds"),
        (38, "40 seconds"),
        (55, "1 minute"),
        (180, "3 minutes"),
        (3570, "1 h"),
        (4800, "1 h 20 min"),
    ],
)
def test_durations_are_as_exact_as_an_estimate(seconds, words):
    assert duration(seconds) == words


def test_a_notebook_shows_a_bar_that_stays_without_control_characters():
    code = """
        import threading
        from embedfit import progress

        progress.patience, progress._TICK, shown = 0, 0.01, threading.Event()
        with progress.plan("run", ["base <b>model</b>\\x1b[2J", "tuning, fold 1 of 1"]) as plan:
            plan.skip("base <b>model</b>\\x1b[2J")
            with plan.step("tuning, fold 1 of 1"), progress.bar("tuning", 300, done=100) as advance:
                advance(50, said="<i>\\x1b[1mloss")
                shown.wait(3)
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(code).strip())])
    states = []

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            if "display_data" in message["msg_type"]:
                states.append(message["content"]["data"])
            return super().process_message(message, cell, index)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    Client(notebook, timeout=120).execute(env=environment)
    [output] = notebook.cells[0].outputs
    assert output.data["text/plain"].startswith("run: 2 steps, 1 of them done earlier\n2 steps in ")
    assert '<progress value="2" max="2"' in output.data["text/html"]
    assert any("2 of 2: tuning, fold 1 of 1: 150 of 300" in state["text/plain"] for state in states)
    assert any('<progress value="150" max="300"' in state["text/html"] for state in states)
    assert any("&lt;i&gt;\\u001b[1mloss" in state["text/html"] for state in states)
    assert not [state for state in states if "<i>" in state["text/html"]]
    assert not [text for state in states for text in state.values() if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)]
