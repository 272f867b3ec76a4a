"""A language of two tokens: four prompts, one right answer each; the policy is a table. Seconds to learn, exact to judge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from covey.batch import Batch, Live
from covey.collect.rows import rows
from covey.errors import ConfigError
from covey.recipes.recipe import Recipe
from covey.recipes.rules import Shape, check_run
from covey.registry import State
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import advance, objective, outputs
from covey.types import Group, Prompt, Rollout, RolloutKey, Stop, Turn

PROMPTS, WORDS, LENGTH = 4, 3, 2
SAMPLES, VISITS = 8, 3


class Toy:
    """Groups, forward and exact success of a tabular policy."""

    def __init__(self, seed: int) -> None:
        self.draw, self.noise = (torch.Generator().manual_seed(seed + at) for at in (0, 10_000))
        self.table = torch.zeros(PROMPTS, LENGTH, WORDS, dtype=torch.float64, requires_grad=True)
        self.values = torch.zeros(PROMPTS, LENGTH, dtype=torch.float64, requires_grad=True)

    def answer(self, prompt: int) -> tuple[int, ...]:
        """What is right: another word at each place."""
        return tuple((prompt + at) % WORDS for at in range(LENGTH))

    def success(self) -> float:
        """The exact probability of the right answer, the mean over prompts."""
        p = self.table.detach().softmax(-1)
        parts = [torch.stack([p[i, t, word] for t, word in enumerate(self.answer(i))]).prod() for i in range(PROMPTS)]
        return float(torch.stack(parts).mean())

    def groups(self) -> list[Group]:
        """A rollout batch: each prompt a few times."""
        return [self.group(prompt, visit) for visit in range(VISITS) for prompt in range(PROMPTS)]

    def group(self, prompt: int, visit: int) -> Group:
        """All samples of one prompt."""
        logp = self.table.detach()[prompt].log_softmax(-1)
        drawn = torch.multinomial(logp.exp(), SAMPLES, replacement=True, generator=self.draw).T
        rollouts = []
        for index, tokens in enumerate(drawn.tolist()):
            own = tuple(float(logp[t, word]) for t, word in enumerate(tokens))
            right = float(tuple(tokens) == self.answer(prompt))
            key = RolloutKey(f"p{prompt}", index, visit)
            turn = Turn(tuple(tokens), own)
            # A budget far above the length: what a recipe says of long answers is proven elsewhere.
            rollouts.append(Rollout(key, (turn,), Stop.END, 4 * LENGTH, rewards={"right": right}))
        return Group(f"p{prompt}#{visit}", Prompt(f"p{prompt}", (), None, "toy"), (prompt,), tuple(rollouts))

    def forward(self, batch: Batch, table: Tensor) -> Live:
        """logp, entropy and value of every token."""
        prompt = torch.tensor([batch.prompts[int(group)][0] for group in batch.group])
        logp = table[prompt].log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        found = {"entropy": entropy, "value": self.values[prompt]}
        return Live(logp.gather(-1, batch.tokens[..., None]).squeeze(-1), found)

    def columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """What recipes may need; the reference is the policy at the start."""
        noise = torch.rand(batch.mask.shape, generator=self.noise, dtype=torch.float64)
        first = self.forward(batch, torch.zeros_like(self.table))
        return {"noise": noise, "ref_logp": first.logp.detach(), "value": first.outputs["value"].detach().clone()}


def passes(recipe: Recipe) -> int:
    """Two optimizer steps per batch where the recipe can take them: only then does a ratio act."""
    try:
        check_run(recipe, Shape(SAMPLES, 2, truncated_sampling=False))
    except ConfigError:
        return 1
    return 2


def learn(recipe: Recipe, *, seed: int = 0, steps: int = 40, lr: float = 0.1, sign: float = 1.0) -> float:
    """Success after some steps; `sign` -1 turns the gradient around."""
    toy, states = Toy(seed), dict[str, State](initial_states(recipe))
    optimizer = torch.optim.Adam([toy.table, toy.values], lr=lr)
    for _ in range(steps):
        groups = [group for group in toy.groups() if all(part.admits(group) for part in recipe.admit)]
        if not groups:
            continue
        batch = rows(groups, {}, torch.float64)
        credited, states, _ = credit(recipe, batch.with_(columns=dict(toy.columns(batch))), states)
        step = weigh(recipe, credited)
        for _ in range(passes(recipe)):
            live = toy.forward(step, toy.table)
            wanted = {name: live.outputs[name] for name in outputs(recipe)}
            loss, metrics = objective(recipe, Live(live.logp, wanted), step, states)
            optimizer.zero_grad()
            (sign * loss).backward()
            if recipe.critic is not None and recipe.joint_critic is None:
                recipe.critic.loss(live, step)[0].backward()
            optimizer.step()
            states = advance(recipe, states, metrics)
    return toy.success()
