"""The nouns that hold tensors: the rows of a step, what credit says of them, and what a forward pass returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """Which rows count: in the loss, in statistics (group mean, batch std), in denominators (the N of a mean).

    Each filter says which of the three it touches; filters are combined by `&`.
    """

    loss: Bool[Tensor, " N"]
    statistics: Bool[Tensor, " N"]
    denominator: Bool[Tensor, " N"]

    @classmethod
    def all(cls, n: int) -> Keep:
        """Every one of `n` rows counts everywhere."""
        yes = torch.ones(n, dtype=torch.bool)
        return cls(yes, yes, yes)

    def __and__(self, other: Keep) -> Keep:
        return Keep(self.loss & other.loss, self.statistics & other.statistics, self.denominator & other.denominator)

    def rows(self, index: Int[Tensor, " M"]) -> Keep:
        """The same for some rows."""
        return Keep(self.loss[index], self.statistics[index], self.denominator[index])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of a rollout batch: frozen, derived only through `rows(index)` and `with_(...)`.

    `mask[i, t]` says that the policy chose token t of row i; it speaks of *predicting* token t (the shift happens once, in the
    engine). Log-probabilities are 0 where the mask is False. `group` and `rollout` are ids (never positions); the prompt of a
    row is `prompts[group[i]]`. `limit` is the row's token budget, `stop` an index into `covey.types.STOPS`. A reward that could
    not be scored is NaN; `reward_weights` are the weights that the reward itself
    declares. `columns` holds named data per row or token (ref_logp, entropy, tags ...).
    """

    prompts: Mapping[int, tuple[int, ...]]
    tokens: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    sampled_logp: Float[Tensor, "N T"]
    old_logp: Float[Tensor, "N T"]
    turn: Int[Tensor, "N T"]
    version: Int[Tensor, "N T"]
    length: Int[Tensor, " N"]
    group: Int[Tensor, " N"]
    rollout: Int[Tensor, " N"]
    stop: Int[Tensor, " N"]
    limit: Int[Tensor, " N"]
    reward: Float[Tensor, "N K"]
    reward_names: tuple[str, ...]
    reward_weights: tuple[float, ...]
    keep: Keep
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """N, the number of rows."""
        return int(self.tokens.shape[0])

    def rows(self, index: Int[Tensor, " M"]) -> Self:
        """The same data for some rows, in the order of `index`; prompts of absent groups are dropped."""
        present = {int(group) for group in self.group[index]}
        changes: dict[str, Any] = {"prompts": {g: p for g, p in self.prompts.items() if g in present}}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = value[index]
            elif isinstance(value, Keep):
                changes[item.name] = value.rows(index)
            elif isinstance(value, Mapping) and item.name != "prompts":
                changes[item.name] = {name: tensor[index] for name, tensor in value.items()}
        return replace(self, **changes)

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Credited(Batch):
    """A batch after credit: what an objective may be called on.

    `advantage` is what a token is worth, `weight` how much its gain counts in the step's loss: the whole normalisation, formed
    once over the optimizer step, with filters and corrections in it. `penalty_weight` holds the weight of each penalty's cost.
    """

    advantage: Float[Tensor, "N T"]
    weight: Float[Tensor, "N T"]
    penalty_weight: Mapping[str, Float[Tensor, "N T"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Live:
    """What the learner's forward returns, with gradient: `logp` always, other outputs on request (`entropy`, ...)."""

    logp: Float[Tensor, "N T"]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All live outputs by name."""
        return {"logp": self.logp, **self.outputs}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Live:
        """The inverse of `tensors`."""
        return cls(tensors["logp"], {name: value for name, value in tensors.items() if name != "logp"})
