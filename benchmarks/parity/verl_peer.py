"""verl's own `core_algos`: policy losses under each aggregation that they heed, and advantage estimators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig, PolicyLossConfig

from benchmarks.parity.data import COMPONENTS, Case
from benchmarks.parity.ours import Found, words

MODES: dict[str, Any] = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "rollout_mean",
    "seq-mean-token-sum": "rollout_sum",
    "seq-mean-token-sum-norm": "constant",
}
"""verl's name of an aggregation -> covey's weighting. `token-sum` has none: its gradient grows with the batch."""

MASK = {"kind": "divergence_mask", "divergence": "kl", "anchor": "old"}

LOSSES: tuple[tuple[str, str, tuple[Any, ...], dict[str, Any], bool], ...] = (
    ("vanilla", "grpo@verl", (), {}, True),
    ("vanilla", "grpo@verl", (0.1, 0.28, 1.5), {"surrogate": {"kind": "clip", "low": 0.1, "high": 0.28, "dual": 1.5}}, True),
    ("gspo", "gspo@verl", (), {}, True),
    ("gspo", "gspo@verl", (0.05, 0.08), {"surrogate.low": 0.05, "surrogate.high": 0.08}, True),
    ("cispo", "cispo@verl", (), {}, True),
    ("cispo", "cispo@verl", (1.0, 4.0), {"surrogate.low": 0.0, "surrogate.high": 5.0}, True),
    ("sapo", "sapo@verl", (), {}, False),
    ("geo_mean", "gmpo@verl", (), {}, False),
    ("geo_mean", "gmpo@verl", (0.4, 0.4), {"surrogate.low": 0.4, "surrogate.high": 0.4}, False),
    ("dppo_tv", "dppo@verl", (), {}, True),
    ("dppo_kl", "dppo@verl", (0.02, 0.03, 20.0), {"surrogate": {**MASK, "low": 0.02, "high": 0.03, "cap": 20.0}}, True),
)  # fmt: skip
"""(loss mode, our preset, verl's clip_ratio_low, _high and _c, our changes, whether it heeds the aggregation)."""

BOUNDS = ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c")


def actor(**options: Any) -> ActorConfig:
    """verl's options of the actor; the fields that it demands say nothing of the loss."""
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)


def batch_info(case: Case) -> dict[str, Any]:
    """The counts of the whole optimizer step, which verl's engine passes down to every micro-batch."""
    return {
        "dp_size": 1,
        "batch_num_tokens": case.tokens,
        "global_batch_size": case.size,
        "loss_scale_factor": case.limit,
    }


def loss(
    name: str, case: Case, mode: str, *, config: ActorConfig, per_token: Tensor | None = None
) -> tuple[float, Tensor]:
    """A registered policy loss and its gradient."""
    logp, mask = case.logp.clone().requires_grad_(), case.mask.double()
    given = case.advantage[:, None] * mask if per_token is None else per_token
    value, _ = core_algos.get_policy_loss_fn(name)(
        old_log_prob=case.old_logp,
        log_prob=logp,
        advantages=given,
        response_mask=mask,
        loss_agg_mode=mode,
        config=config,
    )
    (gradient,) = torch.autograd.grad(value, logp)
    return float(value.detach()), gradient


def losses(case: Case) -> Iterator[Found]:
    """Every shared loss."""
    for name, preset, bounds, changes, heeds in LOSSES:
        options = dict(zip(BOUNDS, bounds, strict=False))
        for mode in MODES if heeds else ("its own",):
            config = actor(global_batch_info=batch_info(case), **options)
            value, gradient = loss(name, case, mode, config=config)
            made = {**changes, "weighting": MODES[mode]} if heeds else changes
            yield Found("loss", name, mode, preset, gradient, value, made, note=words(options))
    yield from per_token(case)
    yield from covariances(case)
    yield from penalties(case)
    yield value_loss(case)


def per_token(case: Case) -> Iterator[Found]:
    """Advantages that differ from token to token, as with a critic."""
    config = actor(global_batch_info=batch_info(case))
    pairs = {
        "vanilla": "ppo@verl",
        "gspo": "gspo@verl",
        "cispo": "cispo@verl",
        "sapo": "sapo@verl",
        "dppo_tv": "dppo@verl",
    }
    for name, preset in pairs.items():
        value, gradient = loss(name, case, "token-mean", config=config, per_token=case.token_advantage)
        mode = "its own" if name == "sapo" else "token-mean"
        yield Found("loss", name, mode, preset, gradient, value, note="an advantage per token", tokenwise=True)


def covariances(case: Case) -> Iterator[Found]:
    """The two that pick tokens by covariance; verl draws at random, so all candidates are taken here."""
    for name, (options, changes) in COVARIANCES.items():
        for mode, weighting in MODES.items():
            config = actor(global_batch_info=batch_info(case), policy_loss=PolicyLossConfig(**options))
            value, gradient = loss(name, case, mode, config=config)
            made = {**changes, "weighting": weighting}
            yield Found("loss", name, mode, f"{name}@verl", gradient, value, made, note=words(options))


COVARIANCES: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "clip_cov": (
        {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 0.6},
        {"surrogate.share": 1.0, "surrogate.floor": 0.1, "surrogate.ceiling": 0.6},
    ),
    "kl_cov": (
        {"kl_cov_ratio": 0.1, "ppo_kl_coef": 0.5},
        {"surrogate.share": 0.1, "surrogate.coef": 0.5},
    ),
}
"""Loss mode -> verl's options, our changes."""


def value_loss(case: Case) -> Found:
    """The critic's clipped loss with verl's default bound."""
    value = case.new_value.clone().requires_grad_()
    loss, _ = core_algos.compute_value_loss(value, case.returns, case.value, case.mask.double(), 0.5)
    (gradient,) = torch.autograd.grad(loss, value)
    return Found(
        "critic", "compute_value_loss", "", "ppo@verl", gradient, float(loss.detach()), note="cliprange_value=0.5"
    )


KLS = {"k2": "k2", "k3": "k3", "k3+": "k3_straight_through"}
"""verl's kl_loss_type -> covey's estimator."""


def penalties(case: Case) -> Iterator[Found]:
    """The KL in the loss, which verl aggregates by the mode of the policy's loss: here beside advantages of 0."""
    for name, estimator in KLS.items():
        for mode, weighting in MODES.items():
            logp = case.logp.clone().requires_grad_()
            mask, info = case.mask.double(), batch_info(case)
            cost = core_algos.agg_loss(core_algos.kl_penalty(logp, case.ref_logp, name), mask, mode, **info)
            policy, gradient = loss("vanilla", case, mode, config=actor(global_batch_info=info))
            (more,) = torch.autograd.grad(0.1 * cost, logp)
            total = policy + 0.1 * float(cost.detach())
            penalty = {"kind": "kl", "coef": 0.1, "estimator": estimator, "weighting": weighting}
            changes = {"weighting": weighting, "penalties": [penalty]}
            yield Found("loss", f"vanilla + kl_penalty {name}", mode, "grpo@verl", gradient + more, total, changes)


ROUGH = 2e-6
"""verl takes `grpo_vectorized` and the components of `gdpo` in float32, whatever it is given."""


def token_rewards(case: Case, reward: Tensor | None = None) -> Tensor:
    """The score of each row on its last token, as verl's trainer passes it."""
    last = case.mask.shape[1] - 1 - case.mask.flip(1).long().argmax(1)
    out = torch.zeros(case.mask.shape, dtype=torch.float64)
    out[torch.arange(case.size), last] = case.reward.sum(1) if reward is None else reward
    return out


def estimate(name: str, case: Case, rewards: Tensor | None = None, **options: Any) -> Tensor:
    """A registered advantage estimator."""
    call = core_algos.get_adv_estimator_fn(name)
    given = token_rewards(case) if rewards is None else rewards
    common = {"token_level_rewards": given.clone(), "response_mask": case.mask.double()}
    if name == "gae":
        return call(**common, values=case.value, gamma=options["gamma"], lam=options["lam"])[0]
    if name != "reinforce_plus_plus":
        common["index"] = np.array(case.group.tolist())
    return call(**common, **options)[0]


def kl_rewards(case: Case, coef: float) -> Tensor:
    """verl's `apply_kl_penalty`: the KL to the reference taken from every token's reward."""
    cost = core_algos.kl_penalty(case.old_logp, case.ref_logp, "kl") * case.mask
    return token_rewards(case) - coef * cost


def components(case: Case) -> dict[str, Any]:
    """What verl's `gdpo` reads: the reward's components by name, and where a response ends."""
    last = case.mask.shape[1] - case.mask.flip(1).long().argmax(1)
    whole = torch.arange(case.mask.shape[1])[None] < last[:, None]
    return {
        "config": AlgoConfig(gdpo_reward_keys=list(COMPONENTS[: case.reward.shape[1]])),
        "non_tensor_batch": {
            name: case.reward[:, k].numpy() for k, name in enumerate(COMPONENTS[: case.reward.shape[1]])
        },
        "batch": {
            "prompts": torch.ones(case.size, 1),
            "attention_mask": torch.cat([torch.ones(case.size, 1), whole], 1).long(),
        },
    }


def advantages(case: Case) -> Iterator[Found]:
    """Every shared estimator."""

    def found(name: str, preset: str, tensor: Tensor, note: str = "", **rest: Any) -> Found:
        return Found("advantage", name, "", preset, tensor, note=note, **rest)

    config = AlgoConfig(gamma=1.0, norm_adv_by_std_in_grpo=True)
    yield found("grpo", "grpo@verl", estimate("grpo", case))
    plain = {"advantage": {"kind": "group_norm", "scale": "none"}}
    without = estimate("grpo", case, norm_adv_by_std_in_grpo=False)
    yield found("grpo", "grpo@verl", without, "norm_adv_by_std_in_grpo=False: the Dr.GRPO form", changes=plain)
    yield found("grpo_vectorized", "grpo@verl", estimate("grpo_vectorized", case), "float32 inside", limit=ROUGH)
    yield found("rloo", "rloo@verl", estimate("rloo", case))
    yield found("rloo_vectorized", "rloo@verl", estimate("rloo_vectorized", case))
    yield found("reinforce_plus_plus", "reinforce_plus_plus@verl", estimate("reinforce_plus_plus", case, config=config))
    with_kl = estimate("reinforce_plus_plus", case, kl_rewards(case, 0.1), config=config)
    yield found(
        "reinforce_plus_plus",
        "reinforce_plus_plus@verl",
        with_kl,
        "use_kl_in_reward, kl_coef=0.1",
        changes={"mix": {"kind": "token_kl", "coef": 0.1}},
    )
    base = estimate("reinforce_plus_plus_baseline", case, config=config)
    decoupled = estimate("gdpo", case, **components(case))
    yield found("gdpo", "gdpo@verl", decoupled, "float32 inside", limit=ROUGH)
    yield found("reinforce_plus_plus_baseline", "reinforce_plus_plus_baseline@verl", base)
    yield found("gae", "ppo@verl", estimate("gae", case, gamma=1.0, lam=1.0), "gamma=1, lam=1")
    changes = {"advantage.lam": 0.9, "advantage.gamma": 0.97}
    yield found("gae", "ppo@verl", estimate("gae", case, gamma=0.97, lam=0.9), "gamma=0.97, lam=0.9", changes=changes)
