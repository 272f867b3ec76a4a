"""A recipe's mathematics for those who keep their own trainer: `advantage` once per rollout batch, `loss` per step.

Plain functions of tensors: nothing is remembered, nothing is looked up, no combination is refused. Credit and weights are formed
in float64 on the CPU, as in a run; the loss is on the device and in the precision of `logp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Keep, Live
from covey.errors import ConfigError
from covey.recipes.recipe import Recipe
from covey.stages.credit import call, credit, initial_states, weigh
from covey.stages.masked import broadcast, masked
from covey.stages.objective import objective
from covey.types import STOPS, Stop

AnyBatch = TypeVar("AnyBatch", bound=Batch)


def loss(
    recipe: str | Recipe,
    *,
    logp: Float[Tensor, "N T"],
    old_logp: Float[Tensor, "N T"],
    advantage: Float[Tensor, "N T"] | Float[Tensor, " N"],
    mask: Shaped[Tensor, "N T"],
    group: Int[Tensor, " N"] | None = None,
    ref_logp: Float[Tensor, "N T"] | None = None,
    entropy: Float[Tensor, "N T"] | None = None,
    sampled_logp: Float[Tensor, "N T"] | None = None,
    max_tokens: int | None = None,
    columns: Mapping[str, Tensor] | None = None,
    outputs: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, ""]:
    """The loss of one optimizer step: the recipe's ratio, surrogate, penalties and weighting on the tensors given.

    Differentiable in `logp`, `entropy` and `outputs`. Row n is one response, position t speaks of predicting its token t; where
    `mask` is False or 0 nothing is read; a token whose `old_logp` or `sampled_logp` is not finite leaves the mask, as in a run.
    Pass all rows of an optimizer step: means are over what is given.

    Absent: `group` means that all rows answer one prompt, `sampled_logp` that the sampler was the old policy, and `max_tokens`,
    the token budget by which some weightings divide, is T. `columns` are further tensors per token that a component reads
    (`value`, `returns`, `noise`), `outputs` further live ones (`value`). A component with state is as at its first step.

    A tensor that the recipe reads and that is not there is a ConfigError that names it.
    """
    chosen = _recipe(recipe)
    _match(
        "loss", mask.shape, logp=logp, entropy=entropy, old_logp=old_logp, sampled_logp=sampled_logp, ref_logp=ref_logp
    )
    _match("loss", mask.shape[: advantage.dim()], advantage=advantage)
    _match("loss", mask.shape[:1], group=group)
    made = {**(columns or {}), **({} if ref_logp is None else {"ref_logp": ref_logp})}
    sampled = old_logp if sampled_logp is None else sampled_logp
    batch = _rows(mask, old_logp, sampled, group, max_tokens).with_(columns=_detached(made))
    given = advantage.detach().cpu().double()
    worth = broadcast(given, batch.mask) if given.dim() == 1 else masked(given, batch.mask)
    factor = broadcast(torch.ones(batch.size, dtype=torch.float64), batch.mask)
    states = initial_states(chosen)
    with _naming("loss", chosen):
        for part in chosen.corrections:
            factor = factor * call(part, states, batch)
        columns = {**batch.columns, "correction": factor}
        credited = Credited(**{**vars(batch), "columns": columns}, advantage=worth, weight=torch.zeros_like(factor))
        step = _move(weigh(chosen, credited), logp.device)
        live = {**(outputs or {}), **({} if entropy is None else {"entropy": entropy})}
        return objective(chosen, Live(logp, live), step, states)[0].to(logp.dtype)


def advantage(
    recipe: str | Recipe,
    *,
    reward: Float[Tensor, " N"] | Float[Tensor, "N K"],
    group: Int[Tensor, " N"],
    mask: Shaped[Tensor, "N T"],
    values: Float[Tensor, "N T"] | None = None,
    old_logp: Float[Tensor, "N T"] | None = None,
    ref_logp: Float[Tensor, "N T"] | None = None,
    truncated: Bool[Tensor, " N"] | None = None,
    max_tokens: int | None = None,
    names: Sequence[str] | None = None,
    columns: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "N T"]:
    """What each token is worth: the recipe's mix, filters, advantage and shapers over one rollout batch.

    Rows that a filter takes out of the loss get 0; they stay in the denominators of `loss` unless the caller unmasks them, and
    under a surrogate with one value per group (a residual) they stay in their group too: unmask them there. The same dtype and
    device as `reward`; no gradient. A reward that could not be scored is NaN or infinite: its row gets 0.

    `reward` [N K] has components, called `names` and weighing 1 each unless the recipe weighs them. `values` are a critic's,
    `old_logp` and `ref_logp` what a KL in the reward compares, `truncated` rows that ended at the token budget, `max_tokens` that
    budget (T if absent). A component with state is as at its first step. A tensor that the recipe reads and that is not there
    is a ConfigError that names it.
    """
    chosen = _recipe(recipe)
    _match("advantage", mask.shape, values=values, old_logp=old_logp, ref_logp=ref_logp)
    _match("advantage", (len(mask), *reward.shape[1:2]), reward=reward)
    _match("advantage", mask.shape[:1], group=group, truncated=truncated)
    named = {"ref_logp": ref_logp, "value": values}
    made = {**(columns or {}), **{name: tensor for name, tensor in named.items() if tensor is not None}}
    logp = torch.zeros(mask.shape, dtype=torch.float64) if old_logp is None else old_logp
    per_part = (reward[:, None] if reward.dim() == 1 else reward).detach().cpu().double()
    per_part = torch.where(per_part.isfinite(), per_part, torch.nan)
    parts = tuple(names or ("reward",) * (per_part.shape[1] == 1) or (f"reward{k}" for k in range(per_part.shape[1])))
    stop = torch.full((len(reward),), STOPS.index(Stop.END))
    if truncated is not None:
        stop = torch.where(truncated.cpu(), STOPS.index(Stop.LENGTH), stop)
    batch = _rows(mask, logp, logp, group, max_tokens).with_(
        reward=per_part, reward_names=parts, reward_weights=(1.0,) * len(parts), stop=stop, columns=_detached(made)
    )
    with _naming("advantage", chosen), torch.no_grad():
        credited, _, _ = credit(chosen, batch, initial_states(chosen))
    return masked(credited.advantage, credited.mask & credited.keep.loss[:, None]).to(reward)


def _recipe(recipe: str | Recipe) -> Recipe:
    return recipes.get(recipe) if isinstance(recipe, str) else recipe


def _match(where: str, shape: tuple[int, ...], **tensors: Tensor | None) -> None:
    """Refuse shapes that broadcasting would take for something else, such as [N 1] for [N T]."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            found, right = f"'{name}' has the shape {list(tensor.shape)}", f"As `mask` is it has to be {list(shape)}."
            raise ConfigError(f"covey.functional.{where}", found, right)


def _rows(mask: Tensor, old: Tensor, sampled: Tensor, group: Tensor | None, max_tokens: int | None) -> Batch:
    """The rows as credit knows them, on the CPU; every row is a rollout of its own."""
    n, width = mask.shape
    old, sampled = old.detach().cpu(), sampled.detach().cpu()
    mask = mask.detach().cpu().bool() & old.isfinite() & sampled.isfinite()
    owner = torch.zeros(n, dtype=torch.long) if group is None else group.detach().cpu().long()
    blank = torch.zeros((n, width), dtype=torch.long)
    return Batch(
        prompts=dict.fromkeys(owner.tolist(), ()),
        tokens=blank,
        mask=mask,
        sampled_logp=masked(sampled, mask),
        old_logp=masked(old, mask),
        turn=blank,
        version=blank,
        length=torch.full((n,), width),
        group=owner,
        rollout=torch.arange(n),
        stop=torch.full((n,), STOPS.index(Stop.END)),
        limit=torch.full((n,), width if max_tokens is None else max_tokens),
        reward=torch.zeros((n, 1), dtype=torch.float64),
        reward_names=("reward",),
        reward_weights=(1.0,),
        keep=Keep.all(n),
    )


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _move(step: AnyBatch, device: torch.device) -> AnyBatch:
    """The same rows on a device."""
    moved: dict[str, Any] = {}
    for item in fields(step):
        value = getattr(step, item.name)
        if isinstance(value, Tensor):
            moved[item.name] = value.to(device)
        elif isinstance(value, Keep):
            moved[item.name] = Keep(*(getattr(value, part.name).to(device) for part in fields(value)))
        elif isinstance(value, Mapping) and item.name != "prompts":
            moved[item.name] = {name: tensor.to(device) for name, tensor in value.items()}
    return step.with_(**moved)


@contextmanager
def _naming(function: str, recipe: Recipe) -> Iterator[None]:
    """Turns a column or output that is not there into one line that names it."""
    known = {*recipe.needs(), *(name for part in recipe.components() for name in part.live), "returns"}
    try:
        yield
    except KeyError as error:
        if error.args[0] not in known:
            raise
        found = f"recipe '{recipe.name}' reads '{error.args[0]}', which was not given"
        right = "Give the tensor, or a recipe that does without: recipe.but(...)."
        raise ConfigError(f"covey.functional.{function}", found, right) from None
