"""Rollouts of whole groups, in step with the learner: sample, score, admit, refill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from covey.collect.prompts import Issued, Prompts
from covey.collect.rows import reward_names
from covey.collect.scoring import count_failures, score_groups
from covey.metrics import Metric, Metrics, highest, mean, merge, total
from covey.protocols import Reward
from covey.random import key
from covey.stages.admit import Admission
from covey.types import Group, Message, Request, Rollout, RolloutKey, Sample, Sampling, Stop

Draw = Callable[[Sequence[Request], Sampling], list[list[Sample]]]


@dataclass(frozen=True, slots=True)
class Speech:
    """The model's language: messages to prompt ids, response ids to text (the stop token left out) and to thought."""

    render: Callable[[Sequence[Message]], tuple[int, ...]]
    decode: Callable[[Sequence[int]], str]
    think: Callable[[Sequence[int]], str] = lambda tokens: ""


class GroupedCollector:
    """Takes groups of `samples` rollouts per prompt; groups that are not admitted are replaced by fresh prompts.

    The order of groups is the order of prompts, never of completion. When the waves of `admit` are used up the step goes on
    with the groups there are; when none was admitted it goes on with those of the last wave, in which only what is added to
    their equal outcomes (a punishment of length, say) can teach anything.
    """

    def __init__(
        self, prompts: Prompts, sample: Draw, reward: Reward, speech: Speech, *, samples: int, sampling: Sampling,
        admit: Sequence[Admission] = (),
    ) -> None:  # fmt: skip
        self.prompts, self.sample, self.reward, self.speech = prompts, sample, reward, speech
        self.weights: Mapping[str, float] = getattr(reward, "weights", {})
        self.samples, self.sampling, self.admit = samples, sampling, tuple(admit)
        self.dropped: list[str] = []

    async def take(self, count: int) -> tuple[list[Group], Metrics]:
        """`count` admitted groups (fewer when the waves are used up) and what happened on the way."""
        taken: list[Group] = []
        last: list[Group] = []
        issued: list[str] = []
        reports: list[Metrics] = []
        waves = min((part.max_waves for part in self.admit), default=1)
        for wave in range(1, waves + 1):
            factor = max((part.oversample for part in self.admit), default=1.0)
            last = await self._wave(self.prompts.issue(math.ceil((count - len(taken)) * factor)))
            admitted = [group for group in last if all(part.admits(group) for part in self.admit)]
            taken += admitted
            issued += [group.id for group in last]
            reports.append(
                measure(last, self.weights)
                | {"admit/kept": mean(len(admitted), len(last)), "admit/waves": highest(wave)}
            )
            if len(taken) >= count:
                break
        groups = taken[:count] or last[:count]
        trained = {group.id for group in groups}
        self.dropped = [name for name in issued if name not in trained]
        return groups, merge([*reports, {"admit/missing": total(count - len(groups))}])

    async def _wave(self, issued: Sequence[Issued]) -> list[Group]:
        tokens = [self.speech.render(item.prompt.messages) for item in issued]
        requests = [self._request(item, ids) for item, ids in zip(issued, tokens, strict=True)]
        drawn = self.sample(requests, self.sampling)
        groups = [self._group(*parts) for parts in zip(issued, tokens, drawn, strict=True)]
        return await score_groups(self.reward, groups)

    def _request(self, item: Issued, tokens: tuple[int, ...]) -> Request:
        seed = self.prompts.seed
        keys = tuple(key(seed, "sample", item.prompt.id, item.visit, index) for index in range(self.samples))
        return Request(item.id, tokens, keys)

    def _group(self, item: Issued, tokens: tuple[int, ...], samples: Sequence[Sample]) -> Group:
        rollouts = tuple(
            Rollout(
                key=RolloutKey(item.prompt.id, index, item.visit),
                turns=(sample.turn,),
                stop=sample.stop,
                limit=self.sampling.max_tokens,
                text=self.speech.decode(sample.turn.tokens),
                thought=self.speech.think(sample.turn.tokens),
            )
            for index, sample in enumerate(samples)
        )
        return Group(item.id, item.prompt, tokens, rollouts)


def measure(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, Metric]:
    """Rewards and lengths of *all* sampled rollouts, admitted or not: dropping groups must not censor the curve.

    The outcome of a rollout, which decides what is mixed or all right, is the first component that its group has.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    names = reward_names(groups, weights)
    outcomes = [_outcomes(group, names) for group in groups]
    lengths = [rollout.length for rollout in rollouts]
    turns = [turn for r in rollouts for turn in r.turns if turn.sampled_logp is not None]
    sampled = [logp for turn in turns for logp in turn.sampled_logp or ()]
    policy = [logp for turn in turns for logp in turn.policy_logp or turn.sampled_logp or ()]
    finite = [logp for logp in sampled if math.isfinite(logp)]
    left_out = sum(not math.isfinite(a + b) for a, b in zip(sampled, policy, strict=True))  # as in rows
    out = {
        "reward/mean": mean(sum(map(sum, outcomes)), sum(map(len, outcomes))),
        **count_failures(rollouts),
        "group/mixed": mean(sum(len(set(values)) > 1 for values in outcomes), len(groups)),
        "group/all_right": mean(sum(bool(values) and min(values) >= 1 for values in outcomes), len(groups)),
        "group/all_wrong": mean(sum(bool(values) and max(values) <= 0 for values in outcomes), len(groups)),
        "entropy/sampled": mean(-sum(finite), len(finite)),
        "logp/nonfinite": total(left_out),
        "length/mean": mean(sum(lengths), len(lengths)),
        "length/max": highest(max(lengths, default=0)),
        "stop/truncated": mean(sum(rollout.stop == Stop.LENGTH for rollout in rollouts), len(rollouts)),
        "tokens/sampled": total(sum(lengths)),
    }
    for name in names:
        scored = [rollout.rewards[name] for rollout in rollouts if name in rollout.rewards]
        out[f"reward/{name}"] = mean(sum(scored), len(scored))
    return out


def _outcomes(group: Group, names: Sequence[str]) -> list[float]:
    """The values of the first component that the group has, scored or failed; groups of several sources differ in theirs."""
    known = {name for rollout in group.rollouts for name in (*rollout.rewards, *rollout.failures)}
    first = next((name for name in names if name in known), None)
    return [rollout.rewards[first] for rollout in group.rollouts if first in rollout.rewards] if first else []
