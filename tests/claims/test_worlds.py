"""The small worlds that claims are checked in: their exact numbers against samples, and how a run in them goes."""

from __future__ import annotations

import math

import pytest
import torch

from covey import recipes
from covey.recipes.claims.learn import Plan, area, at_level, collect, forward, learn, reached, sample
from covey.recipes.claims.scores import two_rewards
from covey.recipes.claims.worlds import Addition, Filler, Lessons, Phrases

torch.set_num_threads(1)
MANY = 4000
"""Samples per prompt."""


def stir(world: Phrases | Filler | Addition | Lessons, seed: int) -> None:
    """Another policy than that of the start."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in world.parameters:
            parameter += 0.4 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)


@pytest.mark.parametrize("make", [Phrases, Filler, Addition])
def test_facts_are_what_samples_say(make: type[Phrases | Filler | Addition]) -> None:
    world, draw = (make(3, aware=False) if make is Filler else make(3)), torch.Generator().manual_seed(4)
    stir(world, 5)
    prompt = torch.arange(world.prompts).repeat_interleave(MANY * 8 // world.prompts)
    tokens, mask = world.sample(prompt, draw)
    score = world.reward(prompt, tokens, mask.sum(1), draw)[:, 0]
    facts = world.facts()
    assert float(score.mean()) == pytest.approx(facts["success"], abs=4 * 0.5 / len(prompt) ** 0.5)
    if isinstance(world, Filler):
        length, error = mask.sum(1).double(), float(mask.sum(1).double().std()) / len(prompt) ** 0.5
        assert float(length.mean()) == pytest.approx(facts["length"], abs=4 * error)
        right = score > 0
        assert float(length[right].mean()) == pytest.approx(facts["right length"], abs=8 * error)
        words = mask & (tokens != world.stop)
        assert 0 < facts["filler"] < 1
        assert float((tokens[words] == 1).double().mean()) == pytest.approx(
            facts["filler"], abs=0.05
        )  # words, not prompts
    else:
        logp = world.logits(prompt, tokens).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        assert -float(logp.detach().mean()) == pytest.approx(facts["entropy"], abs=0.02)


def test_pass_at_4_is_that_of_each_prompt() -> None:
    """With the same chance at every place of one prompt: 1 - (1 - p)^4 by hand."""
    world = Phrases(0)
    with torch.no_grad():
        world.parameters[0].zero_()
    facts = world.facts()
    assert facts["success"] == pytest.approx(1 / 8)
    assert facts["pass4"] == pytest.approx(1 - (7 / 8) ** 4)
    assert facts["entropy"] == pytest.approx(math.log(6))


def test_a_response_ends_with_its_first_stop_token() -> None:
    world = Filler(0)
    batch = sample(world, Plan(), torch.Generator().manual_seed(0))
    for tokens, mask, stop in zip(batch.tokens.tolist(), batch.mask.tolist(), batch.stop.tolist(), strict=True):
        length = tokens.index(2) + 1 if 2 in tokens else 48
        assert mask == [at < length for at in range(48)]
        assert stop == (0 if 2 in tokens else 1)


def test_held_out_lessons_are_not_trained() -> None:
    plan = Plan(batches=3)
    batch, _ = collect(recipes.get("grpo"), Lessons(0), plan, torch.Generator().manual_seed(0))
    assert batch is not None
    assert {prompt for (prompt,) in batch.prompts.values()} == set(range(8))


def test_a_refill_holds_admitted_groups_of_several_waves() -> None:
    """All tokens that were drawn count as sampled; groups keep their prompt and the logp that they were drawn with."""
    world, plan = Phrases(1), Plan(prompts=8, samples=4)
    batch, drawn = collect(recipes.get("dapo"), world, plan, torch.Generator().manual_seed(2))
    assert batch is not None
    assert drawn > int(batch.mask.sum())
    assert len(batch.prompts) <= 8
    for group in batch.prompts:
        assert 0 < float(batch.reward[batch.group == group].mean()) < 1
    again = forward(world, batch, ()).logp
    assert torch.allclose(again, batch.old_logp, atol=1e-12)


def test_a_run_is_a_function_of_its_seed_and_ends_at_its_goal() -> None:
    plan = Plan(batches=12, samples=4, until=0.3)
    first = learn(recipes.get("grpo"), Phrases, plan, 7)
    learn.cache_clear()
    assert learn(recipes.get("grpo"), Phrases, plan, 7) == first
    assert first[-1]["success"] >= 0.3 > first[-2]["success"]
    assert area(first[1:], "clip/high") > 0  # four passes: the clip acts
    assert learn(recipes.get("grpo"), Phrases, plan, 8) != first


def test_two_rewards_start_where_they_should() -> None:
    facts = two_rewards(0).facts()
    assert (facts["form"], facts["right"], facts["least"]) == pytest.approx((0.9, 0.05, 0.05))


def test_levels_are_read_between_batches() -> None:
    curve = tuple(
        {"success": s, "entropy": e, "sampled": 10.0 * at} for at, (s, e) in enumerate([(0, 2), (0.4, 1), (0.8, 0)])
    )
    assert reached(curve, 0.6) == pytest.approx(1.5)
    assert reached(curve, 0.6, by="sampled") == pytest.approx(15)
    assert at_level(curve, "entropy", 0.6) == pytest.approx(0.5)
    assert math.isnan(reached(curve, 0.9))
    assert math.isnan(at_level(curve, "entropy", 0.9))
    assert area(curve) == pytest.approx(0.4)
