"""Noise as a column: the numbers of the one counter-based generator, by rollout and token, wherever these stand."""

from __future__ import annotations

import torch

from covey.batch import Batch
from covey.collect.rows import rows
from covey.columns import providers
from covey.columns.noise import keys, uniform
from covey.random import Draws
from covey.types import Group, Prompt, Rollout, RolloutKey, Stop, Turn


def group(prompt: str, visit: int = 0) -> Group:
    """Three responses of one prompt."""
    turn = Turn((1, 2), (-1.0, -1.0))
    rollouts = tuple(Rollout(RolloutKey(prompt, i, visit), (turn,), Stop.END, 4, rewards={"r": 1.0}) for i in range(3))
    return Group(f"{prompt}#{visit}", Prompt(prompt, (), None, "test"), (1,), rollouts)


def noise(groups: list[Group], seed: int = 0) -> torch.Tensor:
    """The column as a run makes it."""
    batch: Batch = rows(groups, {}).with_(columns={"key": keys(groups, seed)})
    (column,) = providers(("noise",), lambda *_: None, 1.0)
    return column.provide(batch)["noise"]


def test_it_is_the_sequence_of_the_key() -> None:
    draws = Draws(3, "noise", "p", 1, 2, "None", "None")
    found = uniform(keys([group("p", visit=1)], 3)[2:], 5)
    assert found[0].tolist() == [draws.uniform() for _ in range(5)]


def test_it_belongs_to_the_rollout_and_not_to_its_place() -> None:
    first, second = group("p"), group("q")
    there, back = noise([first, second]), noise([second, first])
    assert torch.equal(there[:3], back[3:])
    assert torch.equal(there[3:], back[:3])
    assert torch.equal(uniform(keys([first], 0), 9)[:, :2], there[:3])


def test_seed_prompt_visit_sample_and_token_all_matter() -> None:
    found = [noise([group("p")]), noise([group("p")], seed=1), noise([group("q")]), noise([group("p", visit=1)])]
    values = torch.cat(found).flatten()
    assert values.unique().numel() == values.numel()
    assert bool(((values >= 0) & (values < 1)).all())


def test_it_is_uniform() -> None:
    found = uniform(torch.arange(400), 50).flatten()
    assert abs(float(found.mean()) - 0.5) < 0.01
    assert abs(float(found.var()) - 1 / 12) < 0.002
    shares = torch.histc(found, 10, 0, 1) / found.numel()
    assert float((shares - 0.1).abs().max()) < 0.01
