"""OpenRLHF's own `PolicyLoss` and `compute_advantages_and_returns`, loaded from their files.

The package imports deepspeed, flash-attn and a launcher of Ray actors on the way; those are stand-ins here that nothing calls.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.data import Case
from benchmarks.parity.ours import Found

ROUGH = 2e-6
"""OpenRLHF takes KL and batch statistics in float32, whatever it is given."""


def _load() -> tuple[Any, ...]:
    """The modules that hold the mathematics, without running the packages' own start-up."""
    spec = find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("openrlhf is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("", ".models", ".trainer", ".trainer.ppo_utils", ".utils", ".trainer.ray"):
        package = ModuleType(f"openrlhf{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    for name, content in (("deepspeed", {}), ("openrlhf.trainer.ray.launcher", {"RayActorGroup": object})):
        stand_in = ModuleType(name)
        vars(stand_in).update(content)
        sys.modules[name] = stand_in
    made = tuple(import_module(f"openrlhf.{name}") for name in MODULES)
    del sys.modules["deepspeed"]  # others ask whether it is installed
    return made


UTILS = "trainer.ppo_utils"
MODULES = ("models.loss", f"{UTILS}.experience_maker", f"{UTILS}.experience", f"{UTILS}.length_penalty")
LOSS, MAKER, EXPERIENCE, PENALTY = _load()


def loss(case: Case, per_token: Tensor | None = None, **options: Any) -> tuple[float, Tensor]:
    """`PolicyLoss` and its gradient."""
    logp, mask = case.logp.clone().requires_grad_(), case.mask.double()
    given = case.advantage[:, None] * mask if per_token is None else per_token
    info = {"batch_num_tokens": float(case.tokens), "global_batch_size": float(case.size)}
    value = LOSS.PolicyLoss(**options)(logp, case.old_logp, given, action_mask=mask, **info)[0]
    (gradient,) = torch.autograd.grad(value, logp)
    return float(value.detach()), gradient


def losses(case: Case) -> Iterator[Found]:
    """Every shared loss."""

    def found(call: str, preset: str, changes: dict[str, Any], **options: Any) -> Found:
        value, gradient = loss(case, **options)
        mode = "token-mean" if options.get("token_level_loss", True) and call == "ppo" else "seq-mean-token-mean"
        return Found(
            "loss", call, mode, preset, gradient, value, changes, note=", ".join(f"{k}={v}" for k, v in options.items())
        )

    yield found("ppo", "grpo@openrlhf", {})
    yield found("ppo", "grpo@openrlhf", {"weighting": "rollout_mean"}, token_level_loss=False)
    yield found("ppo", "grpo@openrlhf", {"surrogate.dual": 1.5}, dual_clip=1.5)
    bounds = {"surrogate.low": 0.1, "surrogate.high": 0.28}
    yield found("ppo", "grpo@openrlhf", bounds, clip_eps_low=0.1, clip_eps_high=0.28)
    yield found("gspo", "gspo@openrlhf", {}, policy_loss_type="gspo")
    value = case.new_value.clone().requires_grad_()
    critic = LOSS.ValueLoss(0.5)(value, case.value, case.returns, action_mask=case.mask.double())
    (gradient,) = torch.autograd.grad(critic, value)
    yield Found("critic", "ValueLoss", "", "ppo@openrlhf", gradient, float(critic.detach()), note="clip_eps=0.5")


def estimate(name: str, case: Case, coef: float = 0.0, **options: Any) -> Tensor:
    """The advantages of an estimator, with the KL (k1) of OpenRLHF's own function taken from every token's reward."""
    kl = MAKER.compute_approx_kl(case.old_logp, case.ref_logp, kl_estimator="k1").double()
    samples = int((case.group == case.group[0]).sum())
    switches = {"estimator": name, "gamma": 1.0, "lambd": 1.0, "no_std_norm": False, **options}
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=samples),
        algo=SimpleNamespace(advantage=SimpleNamespace(**switches)),
        reward=SimpleNamespace(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None),
    )
    light = SimpleNamespace(
        strategy=SimpleNamespace(args=args), kl_ctl=SimpleNamespace(value=coef), advantage_estimator=name
    )
    for method in ("get_cumulative_returns", "get_advantages_and_returns"):
        setattr(light, method, getattr(MAKER.RemoteExperienceMaker, method).__get__(light))
    experience = EXPERIENCE.Experience(
        rewards=case.reward.sum(1),
        kl=kl,
        action_mask=case.mask,
        values=case.value,
        index=list(range(case.size)),
        info={},
    )
    (made,) = MAKER.RemoteExperienceMaker.compute_advantages_and_returns(light, [experience])
    return made.advantages.double()


def advantages(case: Case) -> Iterator[Found]:
    """Every shared estimator, without and with the KL that OpenRLHF has on by default (0.01)."""

    def found(name: str, preset: str, coef: float, changes: dict[str, Any], limit: float) -> Found:
        return Found(
            "advantage", name, "", preset, estimate(name, case, coef), changes=changes, limit=limit, note=f"kl {coef:g}"
        )

    for name, preset in (("group_norm", "grpo@openrlhf"), ("dr_grpo", "dr_grpo@openrlhf"), ("rloo", "rloo@openrlhf")):
        yield found(name, preset, 0.0, {"shapers": ()}, 1e-9)
        yield found(name, preset, 0.01, {}, ROUGH)
    yield found("reinforce", "reinforce_plus_plus@openrlhf", 0.01, {}, ROUGH)
    yield found("reinforce_baseline", "reinforce_plus_plus_baseline@openrlhf", 0.01, {}, ROUGH)
    yield found("gae", "ppo@openrlhf", 0.01, {}, ROUGH)
