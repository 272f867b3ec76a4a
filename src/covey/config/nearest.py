"""The key that was meant: the nearest real key to one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

ELSEWHERE = {
    "method": "recipe",
    "algorithm": "recipe",
    "loss_type": "recipe",
    "group_size": "budget.samples_per_prompt",
    "num_generations": "budget.samples_per_prompt",
    "rollouts_per_prompt": "budget.samples_per_prompt",
    "learning_rate": "budget.optimizer.lr",
    "max_steps": "budget.steps",
    "num_iterations": "budget.passes_per_batch",
    "ppo_epochs": "budget.passes_per_batch",
    "batch_size": "budget.prompts_per_step",
    "train_batch_size": "budget.prompts_per_step",
    "micro_batch_size": "engines.tokens_per_slice",
    "max_completion_length": "budget.sampling.max_tokens",
    "max_new_tokens": "budget.sampling.max_tokens",
    "save_steps": "budget.checkpoint_every",
    "eval_steps": "budget.eval_every",
    "save_total_limit": "budget.checkpoint_keep",
    "beta": "recipe.penalties.kl.coef",
    "kl_coef": "recipe.penalties.kl.coef",
    "epsilon": "recipe.surrogate.low",
    "epsilon_low": "recipe.surrogate.low",
    "epsilon_high": "recipe.surrogate.high",
    "clip_ratio": "recipe.surrogate.low",
    "clip_ratio_low": "recipe.surrogate.low",
    "clip_ratio_high": "recipe.surrogate.high",
    "model_name_or_path": "model.path",
    "dataset": "data",
    "reward_funcs": "reward",
    "output_dir": "--out",
    "resume_from_checkpoint": "--resume",
    "load_best_model_at_end": "budget.best",
    "metric_for_best_model": "budget.best.metric",
    "greater_is_better": "budget.best.mode",
    "early_stopping_patience": "budget.best.patience",
    "early_stopping_threshold": "budget.best.min_change",
    "log_completions": "report.completions_every",
    "logging_steps": "report.completions_every",
    "run_name": "name",
    "project_name": "report.project",
    "experiment_name": "report.project",
    "logger": "report.to",
    "model_init_kwargs": "model.dtype",
    "train_dataset": "data",
    "train_files": "data",
    "eval_dataset": "task.held_data",
    "val_files": "task.held_data",
    "prompt_key": "task.prompt_column",
    "per_device_train_batch_size": "budget.prompts_per_step",
    "gradient_accumulation_steps": "engines.tokens_per_slice",
    "steps_per_generation": "budget.optimizer_steps_per_pass",
    "num_train_epochs": "budget.steps",
    "total_training_steps": "budget.steps",
    "total_epochs": "budget.steps",
    "max_tokens": "budget.sampling.max_tokens",
    "max_response_length": "budget.sampling.max_tokens",
    "delta": "recipe.surrogate.dual",
    "clip_ratio_c": "recipe.surrogate.dual",
    "scale_rewards": "recipe.advantage.scale",
    "importance_sampling_level": "recipe.ratio",
    "loss_agg_mode": "recipe.weighting",
    "mask_truncated_completions": "recipe.filters",
    "adv_estimator": "recipe",
    "kl_loss_coef": "recipe.penalties.kl.coef",
    "lr_scheduler_type": "budget.optimizer.schedule",
    "grad_clip": "budget.optimizer.max_grad_norm",
    "sync_ref_model": "recipe.reference",
    "ref_model_mixup_alpha": "recipe.reference.mix",
    "ref_model_sync_steps": "recipe.reference.every",
    "peft_config": "model.lora",
    "lora_rank": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "target_modules": "model.lora.targets",
    "save_freq": "budget.checkpoint_every",
    "test_freq": "budget.eval_every",
}
"""What a setting is called in other libraries -> what it is called here."""

FURTHEST = 3
"""More slips than these are another word."""


def suggest(name: str, options: Iterable[str], otherwise: str = "See `covey config schema`.") -> str:
    """A sentence with the key that was meant, or `otherwise` where none is near.

    In this order: the name it has here of a setting known from elsewhere, a key that ends in `name`, the same of its last part
    (`budget.learning_rate`), the fewest typing slips
    (insertion, deletion, replacement, swap of neighbours) over the whole key or over its last part.
    """
    known = list(options)
    if name in ELSEWHERE:
        return f"It is called '{ELSEWHERE[name]}' here."
    endings = [option for option in known if option.endswith(f".{name}")]
    if endings:
        return f"Did you mean '{min(endings, key=lambda option: (option.count('.'), option))}'?"
    tail = name.rpartition(".")[2]
    if tail in ELSEWHERE and ELSEWHERE[tail] != name:
        return f"It is called '{ELSEWHERE[tail]}' here."
    near = [option for option in known if _gap(name, option) <= FURTHEST]
    best = min(near, key=lambda option: (_slips_to(name, option), -_common(name, option), len(option)), default=None)
    if best is not None and _slips_to(name, best) <= min(FURTHEST, (len(name) + 1) // 2):
        return f"Did you mean '{best}'?"
    foreign = min(ELSEWHERE, key=lambda other: slips(name, other))
    if slips(name, foreign) <= 2 < len(name) - 2:
        return f"Did you mean '{ELSEWHERE[foreign]}', known elsewhere as '{foreign}'?"
    return otherwise


def slips(a: str, b: str) -> int:
    """How many typing slips turn `a` into `b`: insert, delete, replace, swap neighbours (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def _slips_to(name: str, option: str) -> int:
    whole = slips(name, option)
    tail = option.rpartition(".")[2]
    # A bare last part costs one slip more, so that a whole key wins where both are as near.
    return whole if "." in name or tail == option else min(whole, slips(name, tail) + 1)


def _gap(name: str, option: str) -> int:
    """A lower bound of the slips, from the lengths alone."""
    return min(abs(len(name) - len(option)), abs(len(name) - len(option.rpartition(".")[2])))


def _common(name: str, option: str) -> int:
    same = 0
    for a, b in zip(name, option, strict=False):
        if a != b:
            break
        same += 1
    return same
