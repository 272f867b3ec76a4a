"""Optimizer steps of any recipe on recorded rollouts of a tiny model, by one process or as one rank of several.

As a script: `recipe_steps.py FOLDER`, with the root of the checkout in PYTHONPATH; rank 0 writes gradient, weights, states and
metrics of every case to FOLDER.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import make_model, make_requests
from torch import Tensor, nn

from covey import recipes
from covey.batch import Batch
from covey.collect.rows import rows
from covey.columns import Values, providers
from covey.columns.noise import keys, uniform
from covey.engines.cluster import Cluster
from covey.engines.critic import build_critic, build_policy
from covey.engines.learner import OptimizerOptions, SlicedScorer
from covey.engines.sampler import HFSampler
from covey.engines.scorer import Scorer
from covey.engines.world import World
from covey.gradient import GradientImprover, Schedule
from covey.metrics import values
from covey.recipes import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import couples, objective, outputs
from covey.types import Group, Prompt, Rollout, RolloutKey, Sampling, Stop
from tests.stages.coupled import GroupCoupled, coupled

TEMPERATURE = 0.8
STEPS = 5
BUDGET = 120
"""Tokens per slice: some groups together."""


def list_recipes() -> dict[str, Recipe]:
    """Every registered recipe, two with coupled surrogates and the adaptive penalty, and the other kind of critic."""
    tests = {"coupled by step": coupled(), "coupled by group": coupled(GroupCoupled())}
    tests["ppo with a shared trunk"] = recipes.get("ppo").but(critic="shared")
    tests["pass_k_training"] = recipes.get("pass_k_training").but(**{"advantage.k": 2})  # sets of 4 need larger groups
    return {name: recipes.get(name) for name in recipes.names()} | tests


CASES = [
    (dtype, name)
    for dtype in ("float64", "float32")
    for name in list_recipes()
    if dtype == "float64" or "@" not in name
]
"""Presets are other options of the same parts: once, in the precision that leaves no doubt."""


def make_policy() -> nn.Module:
    """The tiny Qwen3 with weights nearer to those of trained models: float32 rounds a gradient to some 5e-7 here."""
    model = make_model("qwen3")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(0.3)
    return model


@cache
def record() -> tuple[Group, ...]:
    """Groups that a tiny model sampled: mixed and equal outcomes, a response that could not be scored, truncated ones."""
    sampler = HFSampler(make_policy())
    requests = make_requests(7, 4, longest=12)
    sampling = Sampling(TEMPERATURE, max_tokens=20, stop_ids=tuple(range(2, 12)))
    groups = []
    for at, (request, samples) in enumerate(zip(requests, sampler.sample(requests, sampling), strict=True)):
        rollouts = [
            Rollout(
                RolloutKey(request.id, index),
                (sample.turn,),
                sample.stop,
                sampling.max_tokens,
                rewards={"correct": float((sum(sample.turn.tokens) + index) % 2 or at == 3)},
            )
            for index, sample in enumerate(samples[: 4 - at % 2])
        ]
        if at == 1:
            rollouts[0] = rollouts[0].with_(rewards={}, failures={"correct": "cannot be scored"})
        groups.append(Group(request.id, Prompt(request.id, (), None, "test"), request.tokens, tuple(rollouts)))
    stops = {rollout.stop for group in groups for rollout in group.rollouts}
    assert stops == {Stop.END, Stop.LENGTH}
    return tuple(groups)


def make_cluster(
    recipe: Recipe, dtype: torch.dtype, world: World, *, budget: int = BUDGET, **options: float
) -> Cluster:
    """A learner that has moved away from the policy that sampled, and its frozen reference."""

    def moved(seed: int) -> nn.Module:
        model = make_policy()
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=draw))
        return model.to(dtype)

    learner = build_policy(
        recipe.critic,
        moved(1),
        world=world,
        tokens_per_slice=budget,
        optimizer=OptimizerOptions(max_grad_norm=math.inf, **options),
    )
    cluster = Cluster(
        world=world,
        learner=learner,
        sampler=None,
        objective=lambda live, rows, states: objective(recipe, live, rows, states),
        references={"reference": SlicedScorer(Scorer(moved(2)), world=world, tokens_per_slice=budget)},
        critic=build_critic(recipe.critic, learner, moved(3)),
    )
    if recipe.critic is not None:  # a head of zeros would send nothing back into the trunk
        head = 0.1 * torch.randn(make_policy().config.hidden_size, generator=torch.Generator().manual_seed(4))
        cluster.trained["critic"].learner.load_weights([("head.weight", head)])
    return cluster


def values_of(recipe: Recipe, cluster: Cluster) -> dict[str, Values]:
    """The trained columns of a recipe."""
    return {} if recipe.critic is None else {"value": Values(cluster, joint=recipe.joint_critic is not None)}


def find_gradient(recipe: Recipe, cluster: Cluster, batch: Batch) -> dict[str, Tensor]:
    """The gradient of one optimizer step on all rows, up to a factor: the optimizer's first moment after it."""
    credited, states, _ = credit(recipe, batch, initial_states(recipe))
    step = weigh(recipe, credited)
    for column in values_of(recipe, cluster).values():
        column.fit(step, 0.0, alone=False)
    cluster.update(
        step,
        couples=couples(recipe),
        outputs=outputs(recipe),
        temperature=TEMPERATURE,
        lr=0.0,
        states=states,
    )
    found = {f"{model}/{name}": value for model in ("policy", "critic") for name, value in moments(cluster, model)}
    return {name: value for name, value in found.items() if name.endswith("/exp_avg")}


def moments(cluster: Cluster, model: str) -> list[tuple[str, Tensor]]:
    """The optimizer's state of a model; of one that nobody trains there is none."""
    return list(cluster.optimizer_state(model).items())


def make_batch(recipe: Recipe, cluster: Cluster) -> Batch:
    """The recorded rollouts as rows, with every column that a recipe may need."""
    batch = rows(record(), {}, torch.float64)
    noise = uniform(keys(record(), 0), batch.tokens.shape[1])
    columns = {"noise": noise, "ref_logp": cluster.forward(batch, (), TEMPERATURE, "reference").logp}
    for column in values_of(recipe, cluster).values():
        columns |= column.provide(batch)
    return batch.with_(columns=columns)


def improve(recipe: Recipe, cluster: Cluster) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Five optimizer steps of whole groups on the recorded rollouts: weights, states and metrics after them."""
    columns = providers(recipe.needs(), cluster.forward, TEMPERATURE, values_of(recipe, cluster))
    schedule = Schedule(passes=1, steps_per_pass=STEPS, seed=0, temperature=TEMPERATURE, lr=lambda step: 1e-2)
    improver = GradientImprover(recipe, cluster, columns, schedule, {})
    update = improver.improve(record(), 0)
    assert improver.optimizer_steps == STEPS
    own = {f"critic/{name}": tensor for name, tensor in cluster.critic_weights().items()}
    weights = {name: tensor.detach().clone() for name, tensor in {**cluster.weights(), **own}.items()}
    return weights, {"states": improver.states, "metrics": values(update.metrics)}


def run(world: World, folder: Path) -> None:
    """One rank's part in all cases, in one process group."""
    close, world.close = world.close, lambda: None
    for at, (dtype, name) in enumerate(CASES):
        recipe = list_recipes()[name]
        first, second = (make_cluster(recipe, getattr(torch, dtype), world) for _ in range(2))
        if not world.leads:
            first.serve()
            second.serve()
            continue
        save_file(find_gradient(recipe, first, make_batch(recipe, first)), folder / f"{at}-gradient.safetensors")
        first.stop()
        weights, told = improve(recipe, second)
        save_file(weights, folder / f"{at}-weights.safetensors")
        (folder / f"{at}.json").write_text(json.dumps(told))
        second.stop()
    close()


def main(arguments: Sequence[str]) -> int:
    """Run one rank."""
    torch.set_num_threads(1)
    run(World.from_environment(timeout_s=60.0), Path(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
