"""How far some work is: the steps of its plan, a bar, and the time left.

Progress goes to stderr: one bar on a terminal, a line every ten seconds elsewhere, and a bar of its own in a notebook. Work of under
two seconds shows nothing.
"""

from __future__ import annotations

import contextlib
import functools
import html
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedfit import console

patience = 2.0
"""Seconds that work may take before anything is shown of it."""

interval = 10.0
"""Seconds between two lines of progress where there is no terminal."""

_TICK = 0.2  # seconds between two looks at the work


@contextlib.contextmanager
def plan(title: str, steps: Sequence[str] | Mapping[str, float]) -> Iterator[Plan]:
    """Announce the steps of a piece of work, then show which one is under way.

    The first line reads "run: 7 steps, about 3 minutes", and each step "3 of 7: tuning, fold 2 of 5". The time is given only where it
    is known: for steps with expected seconds, and for steps like one that is done ("tuning, fold 1 of 5" tells how long "tuning, fold
    2 of 5" takes, as they are the same up to the first comma).

        with progress.plan("run", ["base model", "tuning, fold 1 of 2", "tuning, fold 2 of 2", "report"]) as plan:
            with plan.step("base model"):
                ...

    A plan within a plan shows nothing: its work is part of the outer plan's step.

    Args:
        title: Name of the work, such as "run".
        steps: Names of the steps in their order, each once; a mapping adds the expected seconds of each.

    Raises:
        ValueError: A name occurs twice.
    """
    names = list(steps)
    if len(set(names)) < len(names):
        raise ValueError(f"a plan names each step once: {names}")
    expected = dict(steps) if isinstance(steps, Mapping) else {}
    with _opened(title, tuple(names), expected) as work:
        yield Plan(tuple(names), work)


@dataclass(frozen=True)
class Plan:
    """The steps of a piece of work (see `plan`).

    Attributes:
        steps: Names of the steps, in their order.
    """

    steps: tuple[str, ...]
    _work: _Work | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show one step while the body runs. A `bar` in the body stands beside the step's name.

        Raises:
            ValueError: The plan has no step of this name.
        """
        self._check(name)
        if self._work is None:
            yield
            return
        self._work.step = task = _Task(name)
        try:
            yield
            self._work.seconds[name] = task.elapsed
        finally:
            self._work.step = None

    def skip(self, *names: str) -> None:
        """Mark steps that need no work, as an earlier run has done them. They keep their places, and no time is expected for them.

        Raises:
            ValueError: The plan has no step of this name.
        """
        for name in names:
            self._check(name)
        if self._work:
            self._work.skipped.update(names)

    def _check(self, name: str) -> None:
        if name not in self.steps:
            raise ValueError(f"the plan has no step {name!r}; its steps are {list(self.steps)}")


@contextlib.contextmanager
def bar(description: str, total: float, done: float = 0) -> Iterator[Callable[..., None]]:
    """Show how far some work is, in a step of a plan or on its own.

    Within work that has a bar already, nothing is shown.

    Args:
        description: Name of the work, such as "encoding documents".
        total: Number of units in all.
        done: Number of units that an earlier run has done. The bar starts there, and they do not count for the speed.

    Returns:
        A function ``advance(units, said="")``. It moves the bar, and shows what is said beside it.
    """
    with contextlib.ExitStack() as stack:
        task = _Task(description, total, done, done)
        work = _current
        if total and work is None:
            if own := stack.enter_context(_opened(description)):
                own.bar = task
        elif total and work and work.bar is None:
            work.bar = task
            stack.callback(setattr, work, "bar", None)

        def advance(units: float, said: object = "") -> None:
            task.advance(units)
            task.said = str(said) or task.said

        yield advance


@dataclass
class _Task:
    """A step, or a bar."""

    name: str
    total: float = 0  # units in all; 0 for a step
    done: float = 0  # units
    before: float = 0  # units that were done at the start
    said: str = ""  # beside the bar
    started: float = field(default_factory=time.monotonic)
    first: tuple[float, float] | None = None  # seconds and units after the first advance

    def advance(self, units: float) -> None:
        self.done += units
        self.first = self.first or (self.elapsed, self.done)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Seconds left at the speed since the first advance, which may include preparations; None while nothing else is known.

        A first advance of a tenth of the work or more is believed.
        """
        if self.first is None:
            return None
        seconds, done = self.first
        if self.done > done:
            speed = (self.done - done) / max(self.elapsed - seconds, 1e-9)
        elif done - self.before >= self.total / 10:
            speed = (done - self.before) / max(self.elapsed, 1e-9)
        else:
            return None
        return max(0, self.total - self.done) / speed


class _Work:
    """The work under way: its plan, its step and its bar. A thread shows it, as the work itself may be silent for long."""

    def __init__(self, title: str, steps: tuple[str, ...] = (), expected: Mapping[str, float] | None = None) -> None:
        self.title, self.steps, self.expected = title, steps, dict(expected or {})
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.skipped: set[str] = set()
        self.step: _Task | None = None
        self.bar: _Task | None = None
        self._surface = _surface()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="embedfit progress", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        # A stream that is closed or full ends the display, not the work.
        with contextlib.suppress(OSError, ValueError):
            while not self._over.wait(_TICK):
                self._show()

    def _show(self) -> None:
        if time.monotonic() - self.started >= patience:
            self._surface.show(self._view())

    def _view(self) -> _View:
        step, bar = self.step, self.bar  # read once, as the work goes on meanwhile
        done, total = self._counts(bar)
        headline = self.headline if self.steps else ""
        return _View(
            console.printable(headline),
            console.printable(self._label(step, bar)),
            console.printable(self._state(step, bar)),
            done,
            total,
            step,
            bar,
        )

    def close(self) -> None:
        """Show how far the work came, and stop."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError, ValueError):
            self._show()
            self._surface.close(console.printable(self._ending()))

    @functools.cached_property
    def headline(self) -> str:
        """The plan in one line: "run: 7 steps, about 3 minutes"."""
        count, left = len(self.steps), self._left_in_all()
        earlier = f", {len(self.skipped)} of them done earlier" if self.skipped else ""
        return f"{self.title}: {count} step{'s' * (count != 1)}{earlier}" + (f", about {duration(left)}" if left else "")

    def _label(self, step: _Task | None, bar: _Task | None) -> str:
        """Return what is under way: "3 of 7: tuning, fold 2 of 5"."""
        if step is None:
            return bar.name if bar else self.title
        label = f"{self.steps.index(step.name) + 1} of {len(self.steps)}: {step.name}"
        return label if bar is None or step.name.startswith(bar.name) else f"{label}: {bar.name}"

    def _state(self, step: _Task | None, bar: _Task | None) -> str:
        """Return how far it is: "120 of 400, about 40 seconds left"."""
        parts = []
        if bar:
            parts += [f"{bar.done:,.0f} of {bar.total:,.0f}", *([f"about {duration(bar.left)} left"] if bar.left else [])]
        elif step and step.elapsed >= patience:
            parts.append(duration(step.elapsed))
        in_all = self._left_in_all(step) if self.seconds or self.expected else None
        if in_all:
            parts.append(f"about {duration(in_all)} left in all")
        return ", ".join([*parts, *([bar.said] if bar and bar.said else [])])

    def _counts(self, bar: _Task | None) -> tuple[float, float]:
        """Return the units done and in all: the bar's, or else steps."""
        return (bar.done, bar.total) if bar else (len(self.skipped | set(self.seconds)), len(self.steps))

    def _ending(self) -> str:
        """Return how far it came: "7 steps in 3 minutes"."""
        done, total = self._counts(self.bar)
        spent = duration(time.monotonic() - self.started)
        if not self.steps:
            return f"{self.title}: {done:,.0f} of {total:,.0f} in {spent}"
        return f"{total} step{'s' * (total != 1)} in {spent}" if done == total else f"stopped after {done} of {total} steps"

    def _left_in_all(self, step: _Task | None = None) -> float | None:
        """Return the seconds that the steps still need; None where one is unknown."""
        total, measured = 0.0, self.seconds.copy()
        for name in self.steps:
            if name in self.skipped or name in measured:
                continue
            alike = [seconds for other, seconds in measured.items() if other.partition(",")[0] == name.partition(",")[0]]
            seconds = sum(alike) / len(alike) if alike else self.expected.get(name, -1)
            if seconds < 0:
                return None
            total += max(0, seconds - step.elapsed) if step and step.name == name else seconds
        return total


def duration(seconds: float) -> str:
    """Return a duration in words, as exact as an estimate deserves: "40 seconds", "3 minutes", "1 h 20 min"."""
    if seconds < 55:
        whole = round(seconds) if seconds < 10 else round(seconds / 5) * 5
        return f"{whole} second{'s' * (whole != 1)}"
    minutes = max(1, round(seconds / 60))
    hours, over = divmod(minutes, 60)
    return f"{hours} h" + (f" {over} min" if over else "") if hours else f"{minutes} minute{'s' * (minutes != 1)}"


_current: _Work | None = None
_lock = threading.Lock()


@contextlib.contextmanager
def _opened(title: str, steps: tuple[str, ...] = (), expected: Mapping[str, float] | None = None) -> Iterator[_Work | None]:
    """Give the display to some work. Yields None if it is quiet, or other work has the display."""
    global _current
    with _lock:
        work = None
        if not console.quiet and _current is None:
            work = _current = _Work(title, steps, expected)
    try:
        yield work
    finally:
        if work:
            _current = None
            work.close()


@dataclass(frozen=True)
class _View:
    """Work as it stands at a moment, in printable texts."""

    headline: str  # the plan in one line; empty without a plan
    label: str  # what is under way, with its place in the plan
    state: str  # how far it is; may be empty
    done: float  # units of the bar, or else steps
    total: float
    step: _Task | None
    bar: _Task | None

    @property
    def line(self) -> str:
        return f"{self.label}: {self.state}" if self.state else self.label


def _surface() -> _Lines | _Terminal | _Notebook:
    """Return where progress is shown: in the notebook, if there is one, on the terminal, or else in lines."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        return _Notebook()
    return _Terminal() if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else _Lines()


class _Lines:
    """A log: the plan, each step that takes more than a moment, and how far it is at intervals."""

    def __init__(self) -> None:
        self._announced = False
        self._step: _Task | None = None
        self._last = time.monotonic()

    def show(self, view: _View) -> None:
        step = view.step
        if view.headline and not self._announced:
            self._write(view.headline, None)
            self._announced = True
        if time.monotonic() - self._last >= interval and (step or view.bar):
            self._write(view.line, step)
        elif step and step is not self._step and step.elapsed >= patience:
            self._write(view.label, step)

    def _write(self, line: str, step: _Task | None) -> None:
        console.echo(line, err=True)
        self._last, self._step = time.monotonic(), step

    def close(self, ending: str) -> None:
        pass


class _Terminal:
    """The plan as a line, and a bar that goes away when the work is done."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._row: Any = None
        self._task: _Task | None = None

    def show(self, view: _View) -> None:
        if self._bar is None:
            if view.headline:
                console.echo(view.headline, err=True)
            self._start()
        task = view.bar or view.step
        if self._row is None or task is not self._task:
            if self._row is not None:
                self._bar.remove_task(self._row)
            self._task = task
            self._row = self._bar.add_task("", total=view.total if view.bar else None, state="")  # of a step, only that it goes on
        self._bar.update(self._row, description=view.label, completed=view.done, state=view.state, refresh=True)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a file or a pipe gets what is written to it
        )
        self._bar.start()

    def close(self, ending: str) -> None:
        if self._bar is not None:
            self._bar.stop()


class _Notebook:
    """A bar of HTML in the cell's output, which needs no widgets. It stays there, with the time that the work took."""

    def __init__(self) -> None:
        self._view: _View | None = None
        self._bundle: dict[str, str] = {}
        self._display: Any = None

    def show(self, view: _View) -> None:
        self._view = view
        self._put(view, view.line)

    def close(self, ending: str) -> None:
        if self._view is not None:
            self._put(self._view, ending)

    def _put(self, view: _View, line: str) -> None:
        from IPython import display

        lines = list(filter(None, (view.headline, line)))
        bar = f'<progress value="{view.done:g}" max="{view.total:g}" style="width: 16em"></progress>'
        bundle = {"text/plain": "\n".join(lines), "text/html": f"<div>{'<br>'.join(map(html.escape, lines))}<br>{bar}</div>"}
        if self._display is None:
            handle: Any = display.DisplayHandle
            self._display = handle()
            self._display.display(bundle, raw=True)
        elif bundle != self._bundle:
            self._display.update(bundle, raw=True)
        self._bundle = bundle
