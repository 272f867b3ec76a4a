"""Reward functions in the shapes that TRL documents and with the signatures of its rewards module; they know nothing of covey."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from collections.abc import Callable


def accuracy_reward(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs,
) -> list[float | None]:
    """Compares the boxed answer; None where the solution holds none. Conversational."""
    rewards: list[float | None] = []
    for completion, gold in zip(completions, solution, strict=True):
        wanted, found = (re.search(r"\\boxed\{(.*?)\}", text) for text in (gold, completion[0]["content"]))
        rewards.append(None if wanted is None else float(found is not None and found[1] == wanted[1]))
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("judged", [reward is not None for reward in rewards])
    return rewards


def reasoning_accuracy_reward(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs,
) -> list[float | None]:
    """Compares what follows the thoughts; thoughts without an end are worth 0."""
    rewards: list[float | None] = []
    for completion, gold in zip(completions, solution, strict=True):
        parts = [completion[0]["content"].split(mark) for mark in reasoning_delimiters or ["</think>"]]
        answers = [part[-1] for part in parts if len(part) > 1]
        rewards.append(float(answers[0].strip() == gold) if answers else 0.0)
    return rewards


def think_format_reward(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    """Thoughts between tags, once, at the start. Conversational."""
    pattern = re.compile(r"^<think>(?!.*<think>).*?</think>.*$", re.DOTALL)
    return [1.0 if pattern.match(completion[0]["content"]) else 0.0 for completion in completions]


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Callable:
    """A closure over token counts."""

    def soft_overlong_punishment_reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
        free = max_completion_len - soft_punish_cache
        return [max(-1.0, min(0.0, (free - len(ids)) / soft_punish_cache)) for ids in completion_ids]

    return soft_overlong_punishment_reward


class RepetitionPenalty:
    """A callable object with a name of its own, as get_repetition_penalty_reward returns."""

    __name__ = "repetition_penalty_reward"

    def __init__(self, ngram_size: int = 2, max_penalty: float = -1.0) -> None:
        self.ngram_size, self.max_penalty = ngram_size, max_penalty

    def __call__(self, completion_ids: list[list[int]], **kwargs) -> list[float]:
        rewards = []
        for ids in completion_ids:
            grams = list(zip(*[ids[at:] for at in range(self.ngram_size)], strict=False))
            rewards.append((1 - len(set(grams)) / len(grams)) * self.max_penalty if grams else 0.0)
        return rewards


def length_reward(completions, **kwargs):
    """The shortest form: plain texts and keywords."""
    return [float(len(completion)) for completion in completions]


def reward_from_reference(prompts, completions, ground_truth, **kwargs):
    """A column of the data set by its name."""
    assert len(prompts) == len(completions) == len(ground_truth)
    return [float(gold in completion) for completion, gold in zip(completions, ground_truth, strict=True)]


def curriculum_reward(prompts, completions, completion_ids=None, trainer_state=None, log_metric=None, **kwargs):
    """Reads how far the run is, and logs a number."""
    rewards = [float(trainer_state.global_step < trainer_state.max_steps) for _ in completions]
    if log_metric:
        log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
    return rewards


async def slow_service_reward(prompts, completions, **kwargs):
    """Asynchronous, with a call for each completion at once."""

    async def ask(completion: str) -> float:
        await asyncio.sleep(0.01)
        return 1.0 if completion else 0.0

    return await asyncio.gather(*(ask(completion) for completion in completions))


def maths_only(prompts, completions, *, task, **kwargs):
    """One of several functions: None for rows that are not its business. Keyword-only."""
    return [
        float("4" in completion) if kind == "maths" else None
        for completion, kind in zip(completions, task, strict=True)
    ]


def scaled(completions, scale, **kwargs):
    """Meant for functools.partial."""
    return [scale * len(completion) for completion in completions]


tripled = functools.partial(scaled, scale=3)


def only_completions(completions):
    """Takes nothing else, and is in the main thread of its process."""
    assert threading.current_thread() is threading.main_thread()
    return [1 for _ in completions]


soft_overlong = get_soft_overlong_punishment(6, 4)
repetition_penalty = RepetitionPenalty()
