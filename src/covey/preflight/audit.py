"""Ask a reward what it says of texts whose worth is known: gold answers high; empty, shuffled, copied, stuffed ones low."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from covey.collect.scoring import score_groups
from covey.preflight.data import distinct, gather
from covey.protocols import Reward, Task
from covey.types import Group, Prompt, Rollout, RolloutKey, Stop, Turn

ROWS = 8
REPEATS = 20
SLOW_S = 1.0
EPSILON = 1e-6
EXPLOITED = 0.9
"""A text without the answer that earns this share of what gold answers earn above wrong ones is as good as gold."""

FORMS: Mapping[str, Callable[[str], str]] = {
    "ANSWER": lambda answer: answer,
    "ANSWER.": lambda answer: f"{answer}.",
    "The answer is ANSWER.": lambda answer: f"The answer is {answer}.",
    "\\boxed{ANSWER}": lambda answer: f"\\boxed{{{answer}}}",
    "#### ANSWER": lambda answer: f"#### {answer}",
    "<answer>ANSWER</answer>": lambda answer: f"<answer>{answer}</answer>",
    "<think>...</think>ANSWER": lambda answer: f"<think>\nso\n</think>\n\n{answer}",
    "<think>...</think><answer>ANSWER</answer>": lambda answer: f"<think>\nso\n</think>\n<answer>\n{answer}\n</answer>",
}
"""The ways of writing an answer that rewards commonly ask for."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What a reward said. Numbers are means over rows of the weighted sum of its components.

    `gold` and `wrong` (another row's answer) are by form; `probes` by name: `empty`, `blank`, `prompt` (its copy), `repeated`
    (the answer many times), `options` (all answers at once). A text that could not be scored is absent from the means and
    counted in `failures` by probe with the first reason. `best` is the form in which gold answers stand out most.
    `components` are the values of the first gold answer. `ms_per_row` is the time of one score.
    """

    rows: int
    answered: int
    gold: Mapping[str, float] = field(default_factory=dict)
    wrong: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    best: str = ""
    components: Mapping[str, float] = field(default_factory=dict)
    ms_per_row: float = 0.0

    @property
    def low(self) -> float:
        """What a wrong answer earns in the best form; where all answers are the same, an empty response; else 0."""
        return self.wrong.get(self.best, self.probes.get("empty", 0.0))

    @property
    def margin(self) -> float:
        """How much more a gold answer earns than a wrong one, in the best form; 0 if nothing was scored."""
        return self.gold[self.best] - self.low if self.best else 0.0

    @property
    def reversed(self) -> bool:
        """Whether gold answers earn less than wrong ones in some form, and more in none."""
        gaps = [self.gold[form] - self.wrong[form] for form in self.gold if form in self.wrong]
        return bool(gaps) and max(gaps) <= EPSILON and min(gaps) < -EPSILON

    @property
    def scoring(self) -> tuple[str, ...]:
        """The forms in which gold answers earn (nearly) as much as in the best one, if that is more than wrong ones do."""
        if self.margin <= EPSILON:
            return ()
        return tuple(form for form, value in self.gold.items() if value - self.low > EXPLOITED * self.margin)

    @property
    def constant(self) -> bool:
        """Whether everything that was scored, three texts at least, was scored alike."""
        values = [*self.gold.values(), *self.wrong.values(), *self.probes.values()]
        return len(values) >= 3 and max(values) - min(values) <= EPSILON

    def earns(self, probe: str) -> float | None:
        """What a probe earns as a share of gold's margin: 0 like a wrong answer, 1 like gold; None if that cannot be said."""
        if self.margin <= EPSILON or probe not in self.probes:
            return None
        return (self.probes[probe] - self.low) / self.margin


def audit_reward(
    task: Task,
    *,
    reward: Reward | None = None,
    seed: int = 0,
    rows: int = ROWS,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Audit:
    """Score texts of known worth for the first `rows` different prompts of a task; its own reward unless one is given.

    `encode` makes the token ids of a text, for rewards that count them; without it a token is a character. A reward whose
    gold answers all fail is not asked any further.
    """
    prompts = distinct(gather(task, seed).all, rows)
    asker = _Asker(reward or task.reward, encode or (lambda text: [ord(letter) for letter in text]))
    return asyncio.run(_audit(prompts, asker))


async def _audit(prompts: Sequence[Prompt], asker: _Asker) -> Audit:
    answered = [prompt for prompt in prompts if prompt.answer]
    first = next(iter(FORMS))
    gold = {prompt.id: prompt.answer or "" for prompt in answered}
    await asker.ask(f"gold/{first}", answered, gold)
    if answered and f"gold/{first}" not in asker.means:
        return asker.tell(len(prompts), len(answered))
    wrong = _pair(answered)
    for form, write in FORMS.items():
        if form != first:
            await asker.ask(f"gold/{form}", answered, {name: write(text) for name, text in gold.items()})
        await asker.ask(f"wrong/{form}", answered, {name: write(text) for name, text in wrong.items()})
    for probe, texts in _probes(prompts, answered).items():
        await asker.ask(probe, prompts, texts)
    return asker.tell(len(prompts), len(answered))


def _pair(prompts: Sequence[Prompt]) -> dict[str, str]:
    """For every prompt the answer of the next row that has another one; prompts without such a row are left out."""
    found: dict[str, str] = {}
    for place, prompt in enumerate(prompts):
        following = [*prompts[place + 1 :], *prompts[:place]]
        other = next((row.answer for row in following if row.answer and row.answer != prompt.answer), None)
        if other is not None:
            found[prompt.id] = other
    return found


def _probes(prompts: Sequence[Prompt], answered: Sequence[Prompt]) -> dict[str, dict[str, str]]:
    """Texts that should not earn much, by probe and prompt."""
    options = list(dict.fromkeys(prompt.answer or "" for prompt in answered))
    return {
        "empty": {prompt.id: "" for prompt in prompts},
        "blank": {prompt.id: " \n" for prompt in prompts},
        "prompt": {prompt.id: prompt.messages[-1].content for prompt in prompts if prompt.messages},
        "repeated": {prompt.id: " ".join([prompt.answer or ""] * REPEATS) for prompt in answered},
        "options": {prompt.id: _enclose(prompt.answer or "", options) for prompt in answered if len(options) > 1},
    }


def _enclose(answer: str, options: Sequence[str]) -> str:
    """All answers with the right one in the middle, so that neither the first nor the last is it."""
    others = [option for option in options if option != answer]
    return " ".join([*others[: (len(others) + 1) // 2], answer, *others[(len(others) + 1) // 2 :]])


def group_of(prompt: Prompt, text: str, tokens: Sequence[int]) -> Group:
    """A group of one response that ended by itself."""
    turn = Turn(tuple(tokens), (0.0,) * len(tokens))
    return Group(prompt.id, prompt, (), (Rollout(RolloutKey(prompt.id, 0), (turn,), Stop.END, len(tokens) + 1, text),))


class _Asker:
    """Scores texts by the way a run scores rollouts, and keeps what came of it."""

    def __init__(self, reward: Reward, encode: Callable[[str], Sequence[int]]) -> None:
        self.reward, self.encode = reward, encode
        self.means: dict[str, float] = {}
        self.failures: dict[str, tuple[int, str]] = {}
        self.components: Mapping[str, float] = {}
        self.scored, self.seconds = 0, 0.0

    async def ask(self, name: str, prompts: Sequence[Prompt], texts: Mapping[str, str]) -> None:
        """Score a text per prompt under the name of a probe. Where the first one is not scored for long, the rest is left."""
        asked = [prompt for prompt in prompts if prompt.id in texts]
        start = time.monotonic()
        found = await self._score(asked[:1], texts)
        if not (any(rollout.failures for rollout in found) and time.monotonic() - start > SLOW_S):
            start = time.monotonic() if len(asked) > 1 else start  # the first score may load what it needs
            found += await self._score(asked[1:], texts)
            self.scored += max(len(asked) - 1, 1)
            self.seconds += time.monotonic() - start
        failed = [reason for rollout in found for reason in rollout.failures.values()]
        if failed:
            self.failures[name] = (sum(bool(rollout.failures) for rollout in found), failed[0])
        weights = getattr(self.reward, "weights", {})
        values = [
            sum(weights.get(part, 1.0) * value for part, value in rollout.rewards.items())
            for rollout in found
            if rollout.rewards
        ]
        if values:
            self.means[name] = fmean(values)
            self.components = self.components or next(rollout.rewards for rollout in found if rollout.rewards)

    async def _score(self, prompts: Sequence[Prompt], texts: Mapping[str, str]) -> list[Rollout]:
        groups = [group_of(prompt, texts[prompt.id], self.encode(texts[prompt.id])) for prompt in prompts]
        return [rollout for group in await score_groups(self.reward, groups) for rollout in group.rollouts]

    def tell(self, rows: int, answered: int) -> Audit:
        """All that was found."""
        parts: dict[str, dict[str, float]] = {"gold": {}, "wrong": {}, "": {}}
        for name, value in self.means.items():
            sort, _, form = name.partition("/") if name.startswith(("gold/", "wrong/")) else ("", "", name)
            parts[sort][form] = value
        gold, wrong = parts["gold"], parts["wrong"]
        best = max(gold, key=lambda form: gold[form] - wrong.get(form, gold[form]), default="")
        return Audit(
            rows=rows,
            answered=answered,
            gold=gold,
            wrong=wrong,
            probes=parts[""],
            failures=self.failures,
            best=best,
            components=self.components,
            ms_per_row=1000 * self.seconds / max(self.scored, 1),
        )
