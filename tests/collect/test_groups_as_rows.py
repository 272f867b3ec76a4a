"""Groups as rows: what is padded, masked, counted and named."""

from __future__ import annotations

import math

import torch

from covey.collect.rows import rows
from covey.types import STOPS, Group, Message, Prompt, Rollout, RolloutKey, Stop, Turn


def rollout(index: int, *turns: Turn, stop: Stop = Stop.END, **rewards: float) -> Rollout:
    return Rollout(RolloutKey("p", index), turns, stop, limit=9, rewards=rewards)


def policy(*logps: float, **extra: object) -> Turn:
    return Turn(tuple(range(10, 10 + len(logps))), logps, versions=((len(logps), 3),), **extra)  # type: ignore[arg-type]


def group(name: str, *rollouts: Rollout) -> Group:
    return Group(name, Prompt(name, (Message("user", "x"),), "y", "t"), (1, 2, 3), rollouts)


def test_rows_pad_and_mask_ragged_responses() -> None:
    batch = rows([group("a", rollout(0, policy(-1.0, -2.0), good=1.0), rollout(1, policy(-0.5), good=0.0))], {})
    assert batch.tokens.tolist() == [[10, 11], [10, 0]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.sampled_logp.tolist() == [[-1.0, -2.0], [-0.5, 0.0]]
    assert batch.length.tolist() == [2, 1]
    assert batch.version.tolist() == [[3, 3], [3, 0]]
    assert batch.reward.tolist() == [[1.0], [0.0]]
    assert batch.prompts == {0: (1, 2, 3)}


def test_environment_turns_are_rows_but_never_masked_in() -> None:
    env = Turn((7, 8), None, by="env")
    batch = rows([group("a", rollout(0, policy(-1.0), env, policy(-2.0, -3.0), good=1.0))], {})
    assert batch.tokens.tolist() == [[10, 7, 8, 10, 11]]
    assert batch.mask.tolist() == [[True, False, False, True, True]]
    assert batch.turn.tolist() == [[0, 1, 1, 2, 2]]


def test_a_failed_reward_is_nan_and_its_component_keeps_its_name() -> None:
    failed = Rollout(RolloutKey("p", 1), (policy(-1.0),), Stop.END, 9, failures={"good": "timeout"})
    batch = rows([group("a", rollout(0, policy(-1.0), good=0.5, form=-1.0), failed)], {"good": 1.0, "form": 0.0})
    assert batch.reward_names == ("good", "form")
    assert batch.reward_weights == (1.0, 0.0)
    assert batch.reward[0].tolist() == [0.5, -1.0]
    assert batch.reward[1].isnan().all()


def test_tokens_outside_the_support_leave_the_mask() -> None:
    batch = rows([group("a", rollout(0, policy(-1.0, -math.inf, -2.0), good=1.0))], {})
    assert batch.mask.tolist() == [[True, False, True]]
    assert batch.sampled_logp.isfinite().all()


def test_old_logp_is_the_untruncated_one_where_both_are_known() -> None:
    turn = policy(-1.0, -1.5, policy_logp=(-1.25, -1.75))
    batch = rows([group("a", rollout(0, turn, good=1.0))], {})
    assert batch.sampled_logp.tolist() == [[-1.0, -1.5]]
    assert batch.old_logp.tolist() == [[-1.25, -1.75]]


def test_rows_keep_group_ids_and_stops_under_selection() -> None:
    a = group("a", rollout(0, policy(-1.0), good=1.0), rollout(1, policy(-1.0), stop=Stop.LENGTH, good=0.0))
    b = group("b", rollout(0, policy(-1.0), good=1.0))
    batch = rows([a, b], {})
    assert [STOPS[at] for at in batch.stop.tolist()] == [Stop.END, Stop.LENGTH, Stop.END]
    part = batch.rows(torch.tensor([2, 0]))
    assert part.group.tolist() == [1, 0]
    assert part.rollout.tolist() == [2, 0]
    assert set(part.prompts) == {0, 1}
    assert set(batch.rows(torch.tensor([2])).prompts) == {1}


def test_the_order_of_components_is_the_reward_s_whatever_failed_first() -> None:
    failed = Rollout(
        RolloutKey("p", 0), (policy(-1.0),), Stop.END, 9, rewards={"form": 0.0}, failures={"good": "timeout"}
    )
    batch = rows(
        [group("a", failed, rollout(1, policy(-1.0), good=1.0, form=0.0))], {"good": 1.0, "form": 0.0, "other": 1.0}
    )
    assert batch.reward_names == ("good", "form")
