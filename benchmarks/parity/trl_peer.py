"""TRL's own trainers: `_compute_loss` and `_generate_and_score_completions` on an object that has only what they read."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from benchmarks.parity.data import COMPONENTS, Case
from benchmarks.parity.ours import Found, words

CONFIGS = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig, GMPOTrainer: GMPOConfig}


def default(config: type, name: str) -> Any:
    """The default of an option, read from TRL's own configuration."""
    return config.__dataclass_fields__[name].default


class Alone:
    """An accelerator of one process."""

    device = torch.device("cpu")
    num_processes, process_index, sync_gradients = 1, 0, True

    def reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        """The sum over one process."""
        return value

    gather = gather_for_metrics = reduce


def trainer(
    kind: type, case: Case, *, accumulation: int = 1, per_generation: int = 1, **options: Any
) -> SimpleNamespace:
    """What the methods read of a trainer: options, by default TRL's own, and one process that accumulates nothing."""
    config = CONFIGS[kind]

    def option(name: str) -> Any:
        return options.get(name, default(config, name))

    logps = iter(options.pop("logps", ()))
    epsilon = option("epsilon")
    kept = {name: option(name) for name in config.__dataclass_fields__ if name in OPTIONS}
    args = SimpleNamespace(**kept, steps_per_generation=per_generation, gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=case.size, gradient_checkpointing_kwargs=None)  # fmt: skip
    return SimpleNamespace(
        **{name: value for name, value in kept.items() if name not in ("epsilon", "epsilon_high")},
        args=args,
        epsilon_low=epsilon,
        epsilon_high=epsilon if option("epsilon_high") is None else option("epsilon_high"),
        accelerator=Alone(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        ref_model="reference",
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=accumulation,
        max_completion_length=case.limit,
        get_gamma_weights=getattr(kind, "get_gamma_weights", None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (next(logps), torch.zeros(case.mask.shape), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        **scoring(case, kind is RLOOTrainer),
    )  # fmt: skip


OPTIONS = (
    "epsilon", "epsilon_high", "delta", "beta", "loss_type", "importance_sampling_level", "use_bias_correction_kl",
    "sapo_temperature_pos", "sapo_temperature_neg", "top_entropy_quantile", "off_policy_mask_threshold", "use_vllm",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_clip_max", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg",
    "num_iterations", "mask_truncated_completions", "scale_rewards", "multi_objective_aggregation",
    "normalize_advantages", "reward_clip_range",
)  # fmt: skip
"""The options that the mathematics reads."""


def scoring(case: Case, short: bool) -> dict[str, Any]:
    """What scoring reads besides: prompts, responses and rewards are given, nothing is generated."""
    lengths = (case.mask.shape[1] - case.mask.flip(1).long().argmax(1)).tolist()
    prompts, responses = [[1, 2]] * case.size, [[3] * (length - 1) + [END] for length in lengths]
    holes = [row[:length] for row, length in zip(case.mask.long().tolist(), lengths, strict=True)]
    generated = (prompts, responses, prompts) if short else (prompts, responses, holes, prompts, None, {}, None, None)
    return {
        "_generate": lambda _: generated,
        "num_generations": int((case.group == case.group[0]).sum()),
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "chat_template_kwargs": {},
        "log_multimodal": False,
        "pad_to_multiple_of": None,
        "_is_vlm": False,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "processing_class": None,
        "eos_token_ids": [END],
        "reward_funcs": list(COMPONENTS[: case.reward.shape[1]]),
        "reward_func_names": list(COMPONENTS[: case.reward.shape[1]]),
        "reward_weights": torch.ones(case.reward.shape[1]),
        "_calculate_rewards": lambda *_: case.reward.clone(),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_logs": defaultdict(lambda: deque()) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
    }


END = 9
"""The stop token."""


def loss(kind: type, case: Case, *, accumulation: int = 1, per_generation: int = 1, items: int | None = None,
         weights: Tensor | None = None, **options: Any) -> tuple[float, Tensor]:  # fmt: skip
    """The trainer's loss and its gradient by logp."""
    logp = case.logp.clone().requires_grad_()
    light = trainer(kind, case, accumulation=accumulation, per_generation=per_generation, logps=[logp], **options)
    value = kind._compute_loss(light, light.model, inputs(case, items, weights))
    (gradient,) = torch.autograd.grad(value, logp)
    return float(value.detach()), gradient


def measured(kind: type, case: Case, name: str, **options: Any) -> float:
    """A metric that the trainer's loss logs."""
    light = trainer(kind, case, logps=[case.logp], **options)
    kind._compute_loss(light, light.model, inputs(case))
    return float(light._metrics["train"][name][0])


def inputs(case: Case, items: int | None = None, weights: Tensor | None = None) -> dict[str, Any]:
    """What the loss is given."""
    mask, prompt = (case.mask & ~case.cut[:, None]).long(), torch.ones(case.size, 2, dtype=torch.long)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": case.advantage,
        "importance_sampling_ratio": weights,
        "old_per_token_logps": case.old_logp,
        "old_logps": (case.old_logp * mask).sum(1),
        "ref_per_token_logps": case.ref_logp,
        "num_items_in_batch": torch.tensor(float(mask.sum() if items is None else items)),
    }


LOSS_TYPES = {
    "dapo": ("grpo@trl", {}),
    "grpo": ("grpo@trl", {"weighting": "rollout_mean"}),
    "bnpo": ("grpo@trl", {"weighting": "token_mean"}),
    "dr_grpo": ("dr_grpo@trl", {}),
    "luspo": ("grpo@trl", {"weighting": "rollout_sum"}),
    "cispo": ("cispo@trl", {}),
    "sapo": ("sapo@trl", {}),
}
"""loss_type -> our preset and changes."""

SEQUENCE = {
    "dapo": {},
    "grpo": {"weighting": "rollout_mean"},
    "bnpo": {"weighting": "token_mean"},
    "dr_grpo": {"weighting": "constant"},
    "luspo": {"weighting": "rollout_sum"},
}
"""loss_type under importance_sampling_level=sequence -> changes of gspo@trl."""


def losses(case: Case, cut: Case) -> Iterator[Found]:
    """Every shared loss; of `cut` the truncated responses are masked, as mask_truncated_completions does before the loss."""

    def found(
        call: str, mode: str, preset: str, changes: dict[str, Any], kind: type = GRPOTrainer, **options: Any
    ) -> Found:
        value, gradient = loss(kind, case, **options)
        rest = {k: v for k, v in options.items() if k not in ("loss_type", "importance_sampling_level")}
        return Found("loss", call, mode, preset, gradient, value, changes, note=words(rest))

    for name, (preset, changes) in LOSS_TYPES.items():
        yield found("GRPOTrainer", name, preset, changes, loss_type=name)
    for name, changes in SEQUENCE.items():
        options = {"loss_type": name, "importance_sampling_level": "sequence"}
        yield found("GRPOTrainer, sequence", name, "gspo@trl", changes, **options)
    bounds = {"surrogate.low": 0.1, "surrogate.high": 0.28}
    yield found("GRPOTrainer", "dapo", "grpo@trl", bounds, epsilon=0.1, epsilon_high=0.28)
    yield found("GRPOTrainer", "dapo", "grpo@trl", {"surrogate.dual": 1.5}, delta=1.5)
    yield found("GRPOTrainer", "cispo", "cispo@trl", {"surrogate.high": 5.0}, loss_type="cispo", epsilon_high=5.0)
    soft = {"ratio": "sequence_sum", "surrogate": "gamma_weight"}
    yield found("GRPOTrainer", "vespo", "grpo@trl", soft, loss_type="vespo")
    for corrected, estimator in ((True, "k3_importance"), (False, "k3")):
        for name, weighting in (("dapo", "token_mean"), ("grpo", "rollout_mean"), ("dr_grpo", "constant")):
            penalty = {"kind": "kl", "coef": 0.04, "estimator": estimator, "weighting": weighting}
            options = {"loss_type": name, "beta": 0.04, "use_bias_correction_kl": corrected}
            yield found("GRPOTrainer", name, "grpo@trl", {"weighting": weighting, "penalties": [penalty]}, **options)
    yield found("RLOOTrainer", "its own", "rloo@trl", {}, RLOOTrainer)
    yield found("GMPOTrainer", "its own", "gmpo@trl", {}, GMPOTrainer)
    value, gradient = loss(GRPOTrainer, cut, epsilon_high=0.28)
    note = "epsilon_high=0.28, mask_truncated_completions"
    yield Found("loss", "GRPOTrainer", "dapo", "dapo@trl", gradient, value, where="cut", note=note)


def estimate(kind: type, case: Case, **options: Any) -> Tensor:
    """The advantages that the trainer's scoring gives, one per row, on the row's tokens."""
    light = trainer(kind, case, logps=[case.old_logp, case.ref_logp], **options)
    output = kind._generate_and_score_completions(light, [{"prompt": "?"}] * case.size)
    return output["advantages"][:, None] * case.mask


def advantages(case: Case, solid: Case) -> Iterator[Found]:
    """Every shared estimator; RLOOTrainer knows no tokens of others inside a response, so it gets the solid batch."""

    def found(mode: str, preset: str, tensor: Tensor, changes: dict[str, Any] | None = None) -> Found:
        return Found("advantage", "GRPOTrainer", mode, preset, tensor, changes=changes or {})

    def loo(mode: str, changes: dict[str, Any], **options: Any) -> Found:
        tensor = estimate(RLOOTrainer, solid, **options)
        return Found("advantage", "RLOOTrainer", mode, "rloo@trl", tensor, changes=changes, where="solid")

    for scale in ("group", "batch", "none"):
        changes = {"advantage": {"kind": "group_norm", "scale": scale, **({} if scale == "none" else {"eps": 1e-4})}}
        yield found(
            f"scale_rewards={scale}", "grpo@trl", estimate(GRPOTrainer, case, beta=0.0, scale_rewards=scale), changes
        )
    decoupled = estimate(GRPOTrainer, case, beta=0.0, multi_objective_aggregation="normalize_then_sum")
    yield found("normalize_then_sum", "gdpo@trl", decoupled)
    yield loo("beta=0.05", {})
    yield loo("beta=0", {"mix": "weighted_sum"}, beta=0.0)
