"""What a run shows while it runs: a header, one line per step, samples now and then, and what is off."""

from __future__ import annotations

import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from covey.observe.completions import completions, signal
from covey.observe.health import Finding
from covey.observe.line import Field, bar, count, duration, fields, fit
from covey.observe.plain import clean
from covey.types import Group

Outcome = Literal["done", "stopped early", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What the header says: `first` steps were done before."""

    recipe: str
    model: str
    task: str
    folder: Path
    steps: int
    prompts: int
    samples: int
    first: int = 0
    parameters: int = 0
    trained: int = 0
    device: str = "cpu"
    threads: int = 1
    stop_ids: tuple[int, ...] = ()
    command: str = "covey train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How often something is shown, in steps: lines where there is no terminal, completions.

    `rows` is the length of the completions table; `completions` None shows none.
    """

    plain: int = 10
    completions: int | None = 20
    rows: int = 4


class Console:
    """Shows a run. `quiet` shows nothing; without a terminal there is one plain line every few steps and no table.

    Use it as a context manager or call `close`: the live line has to give the terminal back.
    """

    def __init__(
        self,
        terminal: Terminal | None = None,
        *,
        quiet: bool = False,
        rhythm: Rhythm | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.terminal = terminal or Terminal(highlight=False)
        self.quiet, self.rhythm, self._clock = quiet, rhythm or Rhythm(), clock
        self._info: RunInfo | None = None
        self._live: Live | None = None
        self._first: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=20)
        self._before: Mapping[str, float] | None = None
        self._mark = clock()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ascii_only(self) -> bool:
        """The terminal's encoding has no characters beyond ASCII."""
        return self.terminal.options.ascii_only

    def start(self, info: RunInfo) -> None:
        """Show the header: recipe, batch, model, machine, estimate, folder."""
        self._info, self._mark = info, self._clock()
        part = f", {count(info.trained)} trained" if 0 < info.trained < info.parameters else ""
        size = f" ({count(info.parameters)} parameters{part})" if info.parameters else ""
        sign = "x" if self.ascii_only else "×"
        threads = f"{info.threads} thread{'s' if info.threads != 1 else ''}"
        facts = [
            f"{info.prompts} prompts {sign} {info.samples} samples",
            f"{info.model}{size}",
            f"{info.device}, {threads}",
            f"{info.steps} step{'s' if info.steps != 1 else ''}"
            + (f", going on at {info.first}" if info.first else ""),
        ]
        if info.stop_ids:
            facts.append(f"stops at token {', '.join(map(str, info.stop_ids))}")
        head = f"{info.command}: {info.recipe} on {info.task}"
        self._print(Text(clean(" | ".join([head, *facts, str(info.folder)]), ascii_only=self.ascii_only), style="bold"))

    def note(self, text: str) -> None:
        """Show what was found at the start and is worth knowing."""
        self._print(Text(f"note  {clean(text, ascii_only=self.ascii_only)}", style="yellow"))

    def step(
        self,
        n: int,
        values: Mapping[str, float],
        groups: Sequence[Group] | None = None,
        advantages: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Show step `n` (counted from 1) by its metrics, and completions when it is their turn."""
        self._take_time(values)
        self._first = self._first or dict(values)
        if self.quiet:
            return
        self._show_line(n, values, signal(groups) if groups else None)
        every = self.rhythm.completions
        if groups and every and self.terminal.is_terminal and n % every == 0:
            self._show_completions(n, groups, advantages or {})

    def health(self, findings: Sequence[Finding]) -> None:
        """Show what is off, and where it is explained."""
        for finding in findings:
            self._print(Text(f"health  {finding} See `covey explain {finding.code}`.", style="yellow"))

    def evaluation(self, record: Mapping[str, float], step: int) -> None:
        """Show an evaluation after `step` steps: accuracy since the first one, its 95 % interval, then every set."""
        self._mark = self._clock()
        before, self._before = self._before, self._before or dict(record)
        if not any(name.startswith("eval/") for name in record):
            if before is None:
                self._print(
                    Text("eval  no problems are held out: set task.held_share or task.held_data", style="green")
                )
            return
        self._print(
            Text(f"eval  after step {step}: {describe(record, before, ascii_only=self.ascii_only)}", style="green")
        )

    def finish(self, *, step: int, outcome: Outcome = "done", chart: str = "", notes: Sequence[str] = ()) -> None:
        """Show the end: the learning curve, where things are, what else is to know, and the commands that come next."""
        self.close()
        if self._info is None:
            return
        folder = clean(str(self._info.folder), ascii_only=self.ascii_only)
        word = shlex.quote(folder)
        if chart:
            self._print(Text(chart))
        for note in notes:
            self._print(Text(clean(note, ascii_only=self.ascii_only)))
        if outcome in ("done", "stopped early"):
            early = "stopped early, " if outcome == "stopped early" else ""
            self._print(Text(f"{early}saved {folder}/model after {step} steps", style="bold"))
            commands = [f"covey show {word}", f"covey eval {word}"]
        else:
            told = "interrupted" if outcome == "interrupted" else "stopped by an error"
            saved = any((self._info.folder / "checkpoints").glob("step-*"))
            where = f"the state is in {folder}/checkpoints" if saved else "nothing was saved before"
            self._print(Text(f"{told} after {step} steps; {where}", style="bold yellow"))
            commands = [*([f"covey train --resume {word}"] if saved else []), f"covey show {word}"]
        self._print(Text("next: " + "   |   ".join(commands)))

    def close(self) -> None:
        """Give the terminal back; the last live line stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, what: object) -> None:
        if not self.quiet:
            self.terminal.print(what, soft_wrap=isinstance(what, Text), highlight=False)

    def _take_time(self, values: Mapping[str, float]) -> None:
        now = self._clock()
        self._times.append(values.get("time/step_s", now - self._mark))
        self._mark = now

    def _pieces(self, n: int, values: Mapping[str, float], groups: tuple[int, int] | None) -> list[Field]:
        seconds = math.fsum(self._times) / len(self._times)
        steps = self._info.steps if self._info else n
        shown = f"step {n:>{len(str(steps))}}/{steps}"
        pieces = [Field(shown, -2, "cyan")]
        if self.terminal.is_terminal:
            pieces.append(Field(bar(n, steps, ascii_only=self.ascii_only), 8, "cyan"))
        pieces += fields(values, first=self._first, signal=groups, seconds=seconds)
        left = f"{duration(seconds * (steps - n))} left" if n < steps else "last step"
        return [*pieces, Field(left, 1)]

    def _show_line(self, n: int, values: Mapping[str, float], groups: tuple[int, int] | None) -> None:
        pieces, info = self._pieces(n, values, groups), self._info
        if not self.terminal.is_terminal:
            if n % self.rhythm.plain == 0 or n == 1 or (info and n in (info.steps, info.first + 1)):
                self._print(Text("  ".join(piece.text for piece in pieces)))
            return
        line = Text("  ").join(Text(piece.text, style=piece.style) for piece in fit(pieces, self.terminal.width - 1))
        if self._live is None:
            self._live = Live(line, console=self.terminal, auto_refresh=False)
            self._live.start(refresh=True)
        self._live.update(line, refresh=True)

    def _show_completions(self, n: int, groups: Sequence[Group], advantages: Mapping[str, Sequence[float]]) -> None:
        table = completions(
            groups,
            advantages,
            title=f"samples of step {n}",
            rows=self.rhythm.rows,
            width=self.terminal.width,
            ascii_only=self.ascii_only,
        )
        self._print(table)


def describe(record: Mapping[str, float], before: Mapping[str, float] | None, *, ascii_only: bool = False) -> str:
    """An evaluation on one line: `accuracy 0.31 -> 0.83 (200 problems, 95% interval 0.79 to 0.87)`, then sets."""
    arrow = "->" if ascii_only else "→"
    parts = []
    if "eval/accuracy" in record:
        was = f"{before['eval/accuracy']:.2f} {arrow} " if before and "eval/accuracy" in before else ""
        low, high = record.get("eval/low", math.nan), record.get("eval/high", math.nan)
        span = "no interval" if math.isnan(low + high) else f"95% interval {low:.2f} to {high:.2f}"
        count = record.get("eval/problems", math.nan)
        problems = f"{count:.0f} problem{'' if count == 1 else 's'}"
        parts.append(f"accuracy {was}{record['eval/accuracy']:.2f} ({problems}, {span})")
    sets = {
        name.removeprefix("eval/accuracy_"): value
        for name, value in record.items()
        if name.startswith("eval/accuracy_")
    }
    parts += [f"{clean(name)} {value:.2f}" for name, value in sets.items()]
    return "  ".join(parts)
