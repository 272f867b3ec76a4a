"""What is off in a run, seen from its latest metrics: each finding has a code, what was seen and what to turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

History = Sequence[Mapping[str, float]]

WINDOW = 5
"""Steps that a condition has to last where a single step would be noise."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One health line: a stable code, what was seen, and the knob that usually mends it."""

    code: str
    seen: str
    knob: str

    def __str__(self) -> str:
        return f"{self.code}: {self.seen}. {self.knob}"


def check(history: History) -> list[Finding]:
    """The findings of the latest step, given the metrics of all steps so far (oldest first); usually none.

    A metric that is absent or NaN raises nothing.
    """
    if not history:
        return []
    findings = (condition(history) for condition in CONDITIONS)
    return [finding for finding in findings if finding is not None]


def _now(history: History, name: str) -> float:
    return history[-1].get(name, math.nan)


def _last(history: History, name: str, count: int = WINDOW) -> list[float]:
    """The latest `count` values, or nothing if one of them is missing."""
    values = [row.get(name, math.nan) for row in history[-count:]]
    return values if len(values) == count and not any(math.isnan(value) for value in values) else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def equal_groups(history: History) -> Finding | None:
    """No group had a signal for `WINDOW` steps: the policy did not learn from them."""
    mixed = _last(history, "group/mixed")
    if not mixed or max(mixed) > 0:
        return None
    return Finding("equal-groups", f"no group had a signal for {WINDOW} steps{_side(history)}", _cure(history))


def no_signal(history: History) -> Finding | None:
    """This step had no group with a signal: its gradient is zero."""
    if _now(history, "group/mixed") > 0 or math.isnan(_now(history, "group/mixed")) or equal_groups(history):
        return None
    return Finding("no-signal", f"no group of this step has a signal{_side(history[-1:])}", _cure(history[-1:]))


def little_signal(history: History) -> Finding | None:
    """At most one group in eight had a signal, over `WINDOW` steps."""
    share = _mean(_last(history, "group/mixed"))
    if not 0 < share <= 1 / 8 or no_signal(history):
        return None
    seen = f"only {share:.0%} of the groups had a signal over {WINDOW} steps{_side(history)}"
    return Finding("little-signal", seen, _cure(history))


def _shares(history: History) -> tuple[float, float]:
    rows = history[-WINDOW:]
    return _mean([row.get("group/all_right", math.nan) for row in rows]), _mean(
        [row.get("group/all_wrong", math.nan) for row in rows]
    )


def _side(history: History) -> str:
    right, wrong = _shares(history)
    if right > 0.5:
        return " (most are all right)"
    return " (most are all wrong)" if wrong > 0.5 else ""


def _cure(history: History) -> str:
    right, _ = _shares(history)
    if right > 0.5:
        return "The problems are too easy: take harder ones, or stop here."
    return "Easier problems, more samples per prompt or a higher temperature bring signal."


def truncation(history: History) -> Finding | None:
    """More than a fifth of the rollouts hit the token budget."""
    share = _now(history, "stop/truncated")
    if not share > 0.2:
        return None
    return Finding(
        "truncation", f"{share:.0%} of the rollouts hit the token budget", "Raise budget.sampling.max_tokens."
    )


def entropy_collapse(history: History) -> Finding | None:
    """The entropy fell below a tenth of its start while less than 0.9 is solved: the policy stopped exploring."""
    first, last = (
        _mean([row.get("entropy/sampled", math.nan) for row in history[:WINDOW]]),
        _mean(_last(history, "entropy/sampled")),
    )
    solved = _mean(_last(history, "reward/correct") or _last(history, "reward/mean"))
    if len(history) <= WINDOW or not last < 0.1 * first or not solved < 0.9:
        return None
    seen = f"entropy fell from {first:.2f} to {last:.3f} nats per token while {solved:.0%} is solved"
    return Finding(
        "entropy-collapse", seen, "A lower learning rate, a higher upper clip or an entropy bonus keeps it up."
    )


def reward_failures(history: History) -> Finding | None:
    """Some rollouts could not be scored."""
    failed = _now(history, "reward/failed")
    if not failed > 0:
        return None
    return Finding(
        "reward-failures",
        f"{failed:.0%} of the rollouts could not be scored",
        "Their reasons stand under `failures` in rollouts/.",
    )


def skipped_steps(history: History) -> Finding | None:
    """The gradient was not finite, so the weights were left as they were."""
    if not _now(history, "grad/skipped") > 0:
        return None
    return Finding(
        "skipped-step", "the gradient was not finite and the step was left out", "Lower budget.optimizer.lr."
    )


def nonfinite(history: History) -> Finding | None:
    """Log-probabilities were NaN or infinite."""
    count = _now(history, "logp/nonfinite")
    if not count > 0:
        return None
    return Finding(
        "nonfinite",
        f"{count:g} log-probabilities are not finite",
        "Lower budget.optimizer.lr; look at the data of the step.",
    )


def mismatch(history: History) -> Finding | None:
    """Sampler and learner disagree about the same tokens under the same weights."""
    gap = _now(history, "kl/sampled_vs_old")
    if not abs(gap) > 0.1:
        return None
    return Finding(
        "mismatch", f"sampler and learner differ by {gap:.2f} nats per token", "Check both engines; add a correction."
    )


def short_step(history: History) -> Finding | None:
    """Sampling again and again did not fill the step."""
    missing = _now(history, "admit/missing")
    if not missing > 0:
        return None
    seen = f"the step has {missing:g} groups less than asked: too few were admitted"
    return Finding("short-step", seen, "Raise max_waves of recipe.admit, or take other problems.")


CONDITIONS: tuple[Callable[[History], Finding | None], ...] = (
    equal_groups,
    no_signal,
    little_signal,
    short_step,
    truncation,
    entropy_collapse,
    reward_failures,
    skipped_steps,
    nonfinite,
    mismatch,
)
