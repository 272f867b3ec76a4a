"""A run: model + task + recipe + budget + engines, in a folder that tells all about it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey import saving
from covey.assembly import Parts
from covey.best import Best
from covey.callbacks import Callbacks
from covey.canary import Canary
from covey.collect.scoring import FailureRate
from covey.config import RunConfig
from covey.errors import DivergedError
from covey.evaluate.evaluate import Evaluation, Plan, evaluate
from covey.interrupt import Interrupt
from covey.metrics import Metrics, values
from covey.observe.console import Console, Outcome, RunInfo
from covey.observe.health import Watch
from covey.observe.show import write_curve
from covey.observe.sinks import JsonlSink, RunSink
from covey.observe.trackers import Trackers
from covey.rewards.pool import advance
from covey.types import Group, Sampling

if TYPE_CHECKING:
    from covey.collect.grouped import GroupedCollector
    from covey.gradient import GradientImprover

SKIPS_IN_A_ROW = 3
"""Steps with a non-finite gradient, one after another, after which a run stops."""


class Run:
    """A run in its folder: `run.yaml`, `metrics.jsonl`, `timings.jsonl`, `rollouts/`, `checkpoints/`, `model/`.

    Made by `start` or `covey.train`. `step` counts finished steps, `evaluated` is the step of the last evaluation,
    `interrupted` says that a signal ended it before its budget, `stopped` why `stop` did, and `best` which evaluation
    was the best (None if nobody asks).
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        parts: Parts,
        console: Console,
        *,
        callbacks: Callbacks | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.config, self.folder, self.parts, self.console = config, folder, parts, console
        self.callbacks, self.trackers = callbacks or Callbacks(), trackers or Trackers()
        self.step = 0
        self.interrupt = Interrupt()
        self.interrupted = False
        self.stopped = ""
        asked = config.budget.best
        self.best = Best(metric=asked.metric, mode=asked.mode, min_change=asked.min_change) if asked else None
        self.evaluated = -1
        self.sink = RunSink(folder)
        self.watch = Watch()
        self.ledger = JsonlSink(folder / "ledger.jsonl")
        self._resumed = False
        self._skips = 0
        self._failures = FailureRate(config.scoring.max_failed)
        self._mark = time.monotonic()

    @property
    def collector(self) -> GroupedCollector:
        """Turns prompts into groups."""
        return self.parts.collector

    @property
    def improver(self) -> GradientImprover:
        """Turns groups into a better policy."""
        return self.parts.improver

    @property
    def prompts_per_step(self) -> int:
        """Groups of a step."""
        return self.config.budget.prompts_per_step

    @property
    def model(self) -> Path:
        """The trained model: an ordinary transformers folder."""
        return self.folder / "model"

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl` so far."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    async def begin(self) -> None:
        """Show the header, give the sampler the weights, and measure where the policy stands."""
        budget, parts = self.config.budget, self.parts
        self.console.start(
            RunInfo(
                recipe=self.config.recipe.name,
                model=self.config.model.path,
                task=self.config.task.kind,
                folder=self.folder,
                steps=budget.steps,
                prompts=budget.prompts_per_step,
                samples=budget.samples_per_prompt,
                first=self.step,
                parameters=parts.parameters,
                trained=parts.trained,
                threads=parts.threads,
                stop_ids=parts.sampling.stop_ids,
            )
        )
        saving.forget_end(self)
        self.canary.prove(self.step)
        self.callbacks.on_train_begin(self)
        self.callbacks.raise_failure()
        if not self._resumed:
            self.evaluate()
        self._stop_if_no_better()
        self._mark = time.monotonic()

    def remaining(self) -> Iterator[int]:
        """The steps that are left, until the budget ends or something asks to stop."""
        while self.step < self.config.budget.steps and not self._leaving:
            advance(self.parts.task.reward, step=self.step, steps=self.config.budget.steps)
            self.callbacks.on_step_begin(self)
            if not self._leaving:
                yield self.step
        self.interrupted = self.interrupt.asked and self.step < self.config.budget.steps and not self.stopped

    @property
    def _leaving(self) -> bool:
        return self.interrupt.asked or bool(self.stopped) or self.callbacks.failure is not None

    def stop(self, reason: str) -> None:
        """End the run after the step at hand like one that is done, with a model; resuming it goes on."""
        self.stopped = self.stopped or " ".join(reason.split()) or "asked to stop"

    def publish(self, version: int) -> None:
        """Give the samplers the learner's weights, and stop the run if they did not arrive."""
        self.canary.publish(version)

    @cached_property
    def canary(self) -> Canary:
        """Checks that the samplers speak with the learner's weights."""
        parts, budget = self.parts, self.config.budget
        return Canary(
            cluster=parts.cluster,
            tokens=parts.speech.render(parts.task.train(budget.seed, 0).messages),
            temperature=budget.sampling.temperature,
            dtype=self.config.model.dtype,
            max_tokens=parts.sampling.max_tokens,
        )

    def report(
        self, step: int, groups: Sequence[Group], metrics: Metrics, advantages: Mapping[str, Sequence[float]]
    ) -> None:
        """Write and show a finished step, before anything else can fail; stop a run that learns nothing any more."""
        self.step = step + 1
        now = time.monotonic()
        numbers = values(metrics)
        clocks = {"time/step_s": now - self._mark, "memory/peak_mb": _peak_mb()}
        self._write("step", {"step": self.step, **numbers, **clocks})
        self.sink.write_rollouts(self.step, groups, advantages)
        trained, dropped = [group.id for group in groups], self.collector.dropped
        self.ledger.append(
            {"step": self.step, "cursor": self.collector.prompts.cursor, "trained": trained, "dropped": dropped}
        )
        self.console.step(self.step, {**numbers, **clocks}, groups, advantages)
        findings = self.watch.step(self.step, numbers, groups)
        self.sink.write_findings(self.step, findings)
        self.console.health(findings)
        self.callbacks.on_log(self, {"step": self.step, **numbers, **clocks})
        self._stop_if_diverged(numbers)
        self._failures.note(self.step, metrics, groups)

    def settle(self) -> None:
        """Evaluate and save when it is their turn."""
        budget = self.config.budget
        self.callbacks.on_step_end(self)
        turn = budget.eval_every and self.step % budget.eval_every == 0
        if turn and self.evaluated < self.step < budget.steps:
            self.evaluate()
        if budget.checkpoint_every and self.step % budget.checkpoint_every == 0 and self.step < budget.steps:
            self.save()
        self._mark = time.monotonic()

    async def end(self) -> None:
        """Evaluate unless interrupted, save, write the model folder and the learning curve."""
        failed = self.callbacks.failure is not None
        if not self.interrupted and not failed and self.evaluated < self.step:
            self.evaluate()
        self.save()
        self.callbacks.raise_failure()
        if not self.interrupted:
            saving.write_model(self, self.model)
        early = self.stopped if self.step < self.config.budget.steps else ""
        outcome: Outcome = "interrupted" if self.interrupted else "stopped early" if early else "done"
        saving.write_end(self, outcome, early)
        best = "" if self.best is None else f"best {self.best}"
        notes = [note for note in (best, early) if note]
        self.console.finish(step=self.step, outcome=outcome, chart=write_curve(self.folder), notes=notes)
        self.callbacks.on_train_end(self)
        self.callbacks.raise_failure()

    def evaluate(self) -> Evaluation:
        """Ask the held-out problems at temperature 1 and write what came of it."""
        budget, parts = self.config.budget, self.parts
        plan = Plan(seed=budget.seed, samples=budget.eval_samples, problems=budget.eval_problems)
        sampling = Sampling(
            max_tokens=parts.sampling.max_tokens, stop_ids=parts.sampling.stop_ids, stop=parts.sampling.stop
        )
        found = evaluate(
            parts.cluster,  # type: ignore[arg-type]
            parts.task,
            plan,
            sampling=sampling,
            render=parts.speech.render,
            decode=parts.speech.decode,
            think=parts.speech.think,
        )
        self.evaluated = self.step
        record = found.record()
        self._write("evaluation", {"step": self.step, **record})
        self.console.evaluation(record, self.step)
        self._remember_best(record)
        self.callbacks.on_evaluate(self, record)
        return found

    def _remember_best(self, record: Mapping[str, float]) -> None:
        """Keep the model of the best evaluation in `best/`, and stop when better ones no longer come."""
        if self.best is None:
            return
        self.best = self.best.after(record, self.step)
        if self.best.step == self.step:
            saving.write_best(self, self.best)
        self._stop_if_no_better()

    def _stop_if_no_better(self) -> None:
        """A resumed run asks too: killed after its last evaluation it has nothing left to do, with more patience it has."""
        asked = self.config.budget.best
        if asked and self.best and self.best.spent(asked.patience):
            many = "s" if self.best.since > 1 else ""
            self.stop(f"no better {asked.metric} in {self.best.since} evaluation{many}")

    def save(self) -> Path:
        """Save everything that is state; returns the checkpoint's folder."""
        folder = saving.save(self)
        self.callbacks.on_save(self, folder)
        return folder

    def restore(self) -> None:
        """Go on from the newest whole checkpoint of the folder; later rows of the logs are cut off."""
        saving.restore(self)
        self._resumed = True

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Write a record down, then tell the trackers; what they complain of is no reason to stop."""
        self.sink.write(kind, record)
        self.trackers.write(kind, record)
        for complaint in self.trackers.complaints():
            self.console.note(complaint)

    def close(self) -> None:
        """Let go of the trackers, the files and the terminal."""
        self.console.close()
        self.trackers.close()
        for complaint in self.trackers.complaints():
            self.console.note(complaint)
        self.sink.close()
        self.ledger.close()

    def _stop_if_diverged(self, numbers: Mapping[str, float]) -> None:
        self._skips = self._skips + 1 if numbers.get("grad/skipped", 0) else 0
        if self._skips >= SKIPS_IN_A_ROW:
            raise DivergedError(
                f"step {self.step}",
                f"the gradient was not finite in {SKIPS_IN_A_ROW} steps in a row",
                f"Lower budget.optimizer.lr; the last checkpoint is in {self.folder / 'checkpoints'}.",
            )


def _peak_mb() -> float:
    """The process's largest memory so far, by Linux's own mark: rusage also counts what a parent held before it started us."""
    status = Path("/proc/self/status")
    marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")] if status.is_file() else []
    if marks:
        return int(marks[0].split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
