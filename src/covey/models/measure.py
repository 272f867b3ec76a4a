"""What an embedded model can do: its accuracy on the held-out problems of the tasks that it was prepared for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from covey.evaluate.evaluate import Plan, SetResult, evaluate
from covey.tasks.arithmetic import Arithmetic
from covey.tasks.compose import Compose
from covey.tasks.countdown import Countdown
from covey.types import Message, Request, Sample, Sampling, Stop, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from covey.protocols import Task

TASKS: dict[str, Task] = {"compose": Compose(), "arithmetic": Arithmetic(), "countdown": Countdown()}
SAMPLES = 8
MAX_TOKENS = 48
Figures = dict[str, dict[str, float]]
"""By set, `compose/L2`: accuracy, its standard error, the share of mixed groups of 8, and how many problems there were."""


def measure(model: Any, tokenizer: Any, *, sets: Sequence[str] | None = None, problems: int | None = None) -> Figures:
    """Sample every held-out problem 8 times at temperature 1 and count; `sets` (`compose/L2`) leaves the others out.

    Problems and noise belong to seed 0, so two models are compared on the same draws.
    """
    sampler = PlainSampler(model)
    sampling = Sampling(max_tokens=MAX_TOKENS, stop_ids=(tokenizer.eos_token_id,))
    figures: Figures = {}
    for name, task in TASKS.items():
        wanted = None if sets is None else tuple(s.partition("/")[2] for s in sets if s.startswith(f"{name}/"))
        if wanted == ():
            continue
        found = evaluate(
            sampler,
            task,
            Plan(seed=0, samples=SAMPLES, problems=problems, sets=wanted),
            sampling=sampling,
            render=lambda messages: render(tokenizer, messages),
            decode=lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        )
        figures |= {f"{name}/{key}": summarise(result) for key, result in found.sets.items()}
    return figures


def summarise(result: SetResult) -> dict[str, float]:
    """The figures of one set, rounded to what a card shows."""
    accuracy = result.accuracy
    numbers = {"accuracy": accuracy.mean, "se": accuracy.se, "mixed": result.mixed}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "problems": result.problems}


def render(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """The prompt tokens of a chat, up to where the assistant begins."""
    chat = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class PlainSampler:
    """The shortest sampler that is right: prompts of equal length together, a key-value cache, one race per token.

    The token drawn is `argmax(logits + Gumbel noise)`, the noise a function of (noise key, token index) alone.
    """

    model: Any

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """Continue every request once per noise key, at temperature 1 without truncation."""
        import torch

        out: list[list[Sample]] = [[] for _ in requests]
        by_length: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            by_length.setdefault(len(request.tokens), []).append(place)
        with torch.no_grad():
            for places in by_length.values():
                rows = self._continue([requests[place] for place in places], sampling)
                for place in places:
                    out[place] = [next(rows) for _ in requests[place].noise_keys]
        return out

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Nothing to do: the model's own weights are used."""

    def _continue(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        import torch
        from transformers import DynamicCache

        from covey.engines.noise import key_tensor, noise

        keys = key_tensor([key for request in requests for key in request.noise_keys])
        copies = torch.tensor([len(request.noise_keys) for request in requests])
        cache = DynamicCache()
        ids = torch.tensor([request.tokens for request in requests])
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        cache.batch_select_indices(torch.arange(len(requests)).repeat_interleave(copies))
        logits = logits.repeat_interleave(copies, 0)
        tokens: list[list[int]] = [[] for _ in range(len(keys))]
        alive = torch.arange(len(keys))
        for index in range(sampling.max_tokens):
            race = noise(keys[alive], index, logits.shape[-1])
            drawn = (logits.double() - race.log()).argmax(-1)
            for row, token in zip(alive.tolist(), drawn.tolist(), strict=True):
                tokens[row].append(token)
            going = torch.isin(drawn, torch.tensor(sampling.stop_ids)).logical_not().nonzero()[:, 0]
            if not len(going):
                break
            alive = alive[going]
            cache.batch_select_indices(going)
            ids = drawn[going][:, None]
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        return (_finish(row, sampling.stop_ids) for row in tokens)


def _finish(tokens: Sequence[int], stop_ids: Sequence[int]) -> Sample:
    ended = tokens[-1] in stop_ids
    return Sample(Turn(tuple(tokens), None), Stop.END if ended else Stop.LENGTH)
