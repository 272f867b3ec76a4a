"""What an audit of a reward means, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from covey.preflight.audit import EPSILON, EXPLOITED, FORMS, Audit
from covey.preflight.finding import Finding

if TYPE_CHECKING:
    from covey.config import RunConfig

TOUCHED = 0.1
"""A text without the answer that earns this share of gold's margin is worth a word."""
SLOW_S = 10.0
"""Seconds of scoring per step that are worth a word."""
TEXTS = {
    "empty": "an empty response",
    "blank": "a blank response",
    "prompt": "a copy of the prompt",
    "repeated": "the answer written twenty times",
    "options": "a list of all answers",
}
OWN = "Fine if it wants a form of its own; then score a response of that form in its tests."
LOOK = "Read how it takes the answer from `completion`, and put this case into its tests."


def judge(audit: Audit, name: str, config: RunConfig) -> Iterator[Finding]:
    """Findings about a reward, from what it said of texts of known worth."""
    first = f"gold/{next(iter(FORMS))}"
    if audit.answered and not audit.gold:
        _, reason = audit.failures.get(first, (0, "nothing came back"))
        yield Finding(
            "reward", "bad", f"{name} cannot score gold answers: {reason}", "Mend it: python reward.py runs its tests."
        )
        return
    yield _head(audit, name)
    if not audit.constant:
        yield from _exploits(audit)
    yield from _failures(audit)
    rollouts = config.budget.prompts_per_step * config.budget.samples_per_prompt
    seconds = rollouts * audit.ms_per_row / 1000
    if seconds > SLOW_S:
        found = f"scoring {rollouts} rollouts one after another takes about {seconds:.0f} s a step"
        yield Finding("reward", "warn", found, f"scoring.workers={2 * config.scoring.workers}")


def _head(audit: Audit, name: str) -> Finding:
    """Whether the reward tells right from wrong."""
    if audit.constant:
        value = next(iter((*audit.gold.values(), *audit.probes.values())))
        if value == 0:
            return Finding(
                "reward", "warn", f"{name} says 0 to gold answers in {len(audit.gold)} forms as to wrong ones", OWN
            )
        found = f"{name} says {value:.2f} whatever the response: there is nothing to learn"
        return Finding("reward", "bad", found, "Does it read `completion`?")
    if not audit.answered:
        told = ", ".join(f"{TEXTS[probe]} {value:.2f}" for probe, value in audit.probes.items())
        return Finding(
            "reward", "ok", f"{name}: there are no gold answers to ask; {told}; {audit.ms_per_row:.1f} ms a row"
        )
    seen = [f"{form} {value:.2f}" for form, value in audit.gold.items()]
    if audit.reversed:
        form = next(form for form in audit.wrong if audit.gold.get(form, 0.0) < audit.wrong[form] - EPSILON)
        found = f"{name} gives gold answers {audit.gold[form]:.2f} and wrong ones {audit.wrong[form]:.2f}"
        return Finding("reward", "bad", f"{found}: the sign is the wrong way round", "Higher has to be better.")
    if audit.margin <= EPSILON:
        found = f"{name} gives gold answers no more than wrong ones: {', '.join(seen)}"
        return Finding("reward", "warn", found, OWN)
    forms = ", ".join(audit.scoring[:4]) + (" ..." if len(audit.scoring) > 4 else "")
    wrong = "" if audit.wrong else "; all answers are the same, so wrong ones were not asked"
    low = f", wrong ones {audit.low:.2f}" if audit.wrong else ""
    empty = f", empty {audit.probes['empty']:.2f}" if "empty" in audit.probes else ""
    line = f"{name}  gold answers {audit.gold[audit.best]:.2f} (as {forms}){low}{empty}{wrong}; {audit.ms_per_row:.1f} ms a row"
    return Finding("reward", "ok" if audit.wrong else "warn", line)


def _exploits(audit: Audit) -> Iterator[Finding]:
    """Texts without the answer, or with all of them, that earn what an answer should earn."""
    for probe in audit.probes:
        share = audit.earns(probe)
        if share is None or share <= TOUCHED:
            continue
        value, text = audit.probes[probe], TEXTS[probe]
        gold = audit.gold[audit.best]
        stuffed = probe in ("repeated", "options")
        if share > EXPLOITED:
            found = f"{text} earns {value:.2f}, a gold answer {gold:.2f}"
            yield Finding("reward", "warn" if stuffed else "bad", found, LOOK)
        elif not stuffed:
            yield Finding("reward", "warn", f"{text} earns {value:.2f}, a wrong answer {audit.low:.2f}", LOOK)


def _failures(audit: Audit) -> Iterator[Finding]:
    """Texts that could not be scored: a policy writes all of these."""
    for name, (count, reason) in audit.failures.items():
        sort, _, form = name.partition("/")
        text = TEXTS.get(name) or f"{'a gold' if sort == 'gold' else 'a wrong'} answer as {form}"
        yield Finding(
            "reward", "warn", f"{text} could not be scored in {count} rows: {reason}",
            "Such responses are left out of learning; return a number if they have a worth.",
        )  # fmt: skip
        return  # one shows how; the others are mostly the same
