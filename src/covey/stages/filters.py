"""Stage `filters`: which rows count in the loss, in statistics, in denominators. Several are combined by AND."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from covey.batch import Batch, Credited, Keep
from covey.metrics import Metrics, mean
from covey.registry import Component, State, component
from covey.stages.masked import compact, divide, moments_by, spread_by, sum_by
from covey.stages.tex import number
from covey.types import STOPS, Stop


@component("filter", "overlong")
class Overlong(Component):
    """Takes truncated responses out of the loss: their reward says nothing of what they would have become.

    `mask`: no loss, but the reward stays in the group's statistics and the row in the denominators; `exclude`: out of the
    statistics too (arXiv 2503.14476 section 3.4; peers differ, so it is an option). A response that ends with its stop token
    exactly at the limit is not truncated.
    """

    mode: Literal["mask", "exclude"] = Field(default="mask", description="what truncated rows are taken out of")
    denominator: Literal["all", "kept"] = Field(
        default="all", description="whether truncated rows still count in denominators"
    )

    def __call__(self, batch: Batch) -> Keep:
        """Keep rows that were not cut off."""
        whole = batch.stop != STOPS.index(Stop.LENGTH)
        yes = torch.ones_like(whole)
        counted = whole if self.denominator == "kept" else yes
        return Keep(loss=whole, statistics=whole if self.mode == "exclude" else yes, denominator=counted)

    def latex(self) -> str:
        """The rows that stay."""
        of = "loss and statistics" if self.mode == "exclude" else "loss"
        of = f"{of} and denominators" if self.denominator == "kept" else of
        return rf"\mathrm{{stop}}_n\ne\mathrm{{length}}\quad\text{{(in the {of})}}"


@component("filter", "varied")
class Varied(Component):
    """Takes groups with all-equal scores out of the loss and, if asked, out of the denominators."""

    tolerance: float = Field(default=0.0, ge=0, description="largest max - min that still counts as all equal")
    denominator: Literal["all", "kept"] = Field(
        default="all", description="whether dropped rows still count in denominators"
    )

    def __call__(self, batch: Batch) -> Keep:
        """Keep rows of groups whose scores differ."""
        index, count = compact(batch.group)
        score = whole_score(batch)
        spread = spread_by(score, batch.keep.statistics & ~score.isnan(), index, count)
        varied = (spread > self.tolerance)[index]
        yes = torch.ones_like(varied)
        return Keep(loss=varied, statistics=yes, denominator=varied if self.denominator == "kept" else yes)

    def latex(self) -> str:
        """The groups that stay."""
        of = "loss and denominators" if self.denominator == "kept" else "loss"
        return rf"\max_{{j\in g(n)}}R_j-\min_{{j\in g(n)}}R_j>{number(self.tolerance)}\quad\text{{(in the {of})}}"


@component("filter", "k_best")
class KBest(Component):
    """Learns from the k best rollouts of each group: the shortest, or those with the most reward per token (arXiv 2508.09726).

    The others leave the statistics, so their advantage is 0; they stay in loss and denominators (eq. 2) and feel the penalties.
    Length counts policy tokens. `efficiency` takes the raw score: of wrong answers with a negative one it keeps the *long* ones,
    which are then punished the most (section 5.4). Ties go to the rollout that was sampled first; k >= G keeps the whole group.
    """

    metric: Literal["shortest", "efficiency"] = Field(
        default="shortest", description="what is best: fewest tokens, or most score per token"
    )
    k: int = Field(default=8, ge=1, description="rollouts that stay in the statistics of their group")
    clamp: bool = Field(default=False, description="efficiency: scores below 0 count as 0; not the paper's")
    denominator: Literal["all", "kept"] = Field(
        default="all", description="whether the others still count in loss and denominators"
    )

    @model_validator(mode="after")
    def _read(self) -> KBest:
        if self.metric == "shortest":
            self.refuse_unread(f"recipe.filters.{self.kind}", "metric=shortest", "clamp")
        return self

    @property
    def smallest(self) -> int:
        """The fewest rollouts that ever stay of a group: in groups that are no larger the filter does nothing."""
        return self.k

    def __call__(self, batch: Batch) -> Keep:
        """Keep the k best of each group in the statistics."""
        return self.keep(batch, {})

    def keep(self, batch: Batch, sizes: Mapping[int, int]) -> Keep:
        """The best `sizes[group]` of each group, k where it is not named."""
        best: set[int] = set()
        for group, members in self.ranked(batch).items():
            best.update(members[: sizes.get(group, self.k)])
        chosen = torch.tensor([rollout in best for rollout in batch.rollout.tolist()], dtype=torch.bool)
        chosen = chosen.to(batch.mask.device)
        counted = torch.ones_like(chosen) if self.denominator == "all" else chosen
        return Keep(loss=counted, statistics=chosen, denominator=counted)

    def ranked(self, batch: Batch) -> dict[int, list[int]]:
        """The scored rollouts of each group by id, best first; groups and ties in the order of ids."""
        rollout, length, score = by_rollout(batch)
        worth = score.clamp(min=0) if self.clamp else score
        value = -length if self.metric == "shortest" else divide(worth, length)
        owner = dict(zip(batch.rollout.tolist(), batch.group.tolist(), strict=True))
        groups: dict[int, list[int]] = {group: [] for group in sorted(set(owner.values()))}
        ids, values = rollout.tolist(), value.tolist()
        for at in sorted(range(len(ids)), key=lambda at: (-values[at], ids[at])):
            groups[owner[ids[at]]].append(ids[at])
        return groups

    def latex(self) -> str:
        """The rows that stay in the statistics."""
        return rf"n\in\mathrm{{top}}_{{{self.size_latex()}}}({self.metric_latex()})"

    def size_latex(self) -> str:
        """How many of a group."""
        return str(self.k)

    def metric_latex(self) -> str:
        """What is ranked."""
        if self.metric == "shortest":
            return "-L_n"
        return r"\max(R_n,0)/L_n" if self.clamp else "R_n/L_n"

    def measure(self, batch: Credited) -> Metrics:
        """Rollouts in the statistics per group, and how long these and all rollouts are."""
        length, chosen = batch.mask.sum(1).double(), batch.keep.statistics
        groups = torch.unique(batch.group).numel()
        kept, everyone = (torch.unique(ids).numel() for ids in (batch.rollout[chosen], batch.rollout))
        return {
            "filter/kept_per_group": mean(kept, groups),
            "filter/kept_length": mean(float(length[chosen].sum()), kept),
            "filter/all_length": mean(float(length.sum()), everyone),
        }


@component("filter", "k_best_by_difficulty")
class KBestByDifficulty(KBest):
    """`k_best` with a k that follows the difficulty of the prompt: hard ones keep more (arXiv 2508.09726 section 3.1).

    A group's mean score is inserted into the sorted list of all means so far, then compared with its quartiles (linear between
    ranks): below the first k is `k_by_quartile[0]`, and so on. Groups come one at a time in the order of their ids. In the first
    `warmup` batches it is `k` for all. The list is exact: the sketch of the paper approximates it.
    """

    k: int = Field(default=8, ge=1, description="rollouts that stay before the quartiles are trusted")
    k_by_quartile: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        default=(8, 8, 6, 4), description="rollouts that stay of a group, from the hardest quarter to the easiest"
    )
    warmup: int = Field(default=5, ge=0, description="rollout batches in which every group keeps k")

    @property
    def smallest(self) -> int:
        """The fewest rollouts that ever stay of a group."""
        return min(self.k, *self.k_by_quartile)

    def initial(self) -> State:
        """No prompt has been met."""
        return {"means": [], "batches": 0}

    def __call__(self, batch: Batch, state: State | None = None) -> tuple[Keep, State]:  # type: ignore[override]
        """The rows that stay, and the state with this batch's means."""
        seen = state or self.initial()
        means, warm = list(seen["means"]), seen["batches"] >= self.warmup
        sizes: dict[int, int] = {}
        for group, value in _mean_scores(batch).items():
            insort(means, value)
            sizes[group] = self.size(value, means) if warm else self.k
        return self.keep(batch, sizes), {"means": means, "batches": seen["batches"] + 1}

    def size(self, value: float, means: Sequence[float]) -> int:
        """k of a group with this mean score."""
        harder = sum(value >= quantile(means, share) for share in (0.25, 0.5, 0.75))
        return self.k_by_quartile[harder]

    def latex(self) -> str:
        """The rows that stay in the statistics, and how many these are."""
        return rf"n\in\mathrm{{top}}_{{k_g}}({self.metric_latex()}),\quad k_g={self.size_latex()}"

    def size_latex(self) -> str:
        """k as a function of the quarter that the group's mean is in."""
        sizes = ",".join(str(k) for k in self.k_by_quartile)
        return rf"({sizes})_{{\mathrm{{quartile}}(\mu_g)}}"


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value below which a share of sorted values lies, linear between the two nearest ranks."""
    place = share * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def whole_score(batch: Batch) -> Float[Tensor, " N"]:
    """The score per row; of a score per component or token the sum over these."""
    score = batch.columns["score"].double()
    return score if score.dim() == 1 else score.sum(1)


def by_rollout(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of the scored rollouts in the statistics, ascending, the policy tokens of each and its score."""
    score = whole_score(batch)
    member = batch.keep.statistics & ~score.isnan()
    ids, index = torch.unique(batch.rollout[member], return_inverse=True)
    length = sum_by(batch.mask[member].sum(1).double(), index, ids.numel())
    every = torch.ones_like(index, dtype=torch.bool)
    return ids, length, moments_by(score[member], every, index, ids.numel(), 0)[0]


def _mean_scores(batch: Batch) -> dict[int, float]:
    """The mean score of each group's rollouts, in the order of ids, without the rounding of a sum's order."""
    rollout, _, score = by_rollout(batch)
    owner = dict(zip(batch.rollout.tolist(), batch.group.tolist(), strict=True))
    values: dict[int, list[float]] = {}
    for at, value in zip(rollout.tolist(), score.tolist(), strict=True):
        values.setdefault(owner[at], []).append(value)
    return {group: fsum(values[group]) / len(values[group]) for group in sorted(values)}
