"""The one table of metric names: `stage/quantity`, with unit, meaning and the name that other dashboards use."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """One metric: its name (a pattern where it holds `*`), unit, meaning, and TRL's name for it if there is one."""

    name: str
    unit: str
    meaning: str
    trl: str = ""


TABLE: tuple[Name, ...] = (
    Name("step", "steps", "finished steps of the run", "step"),
    Name(
        "reward/mean",
        "reward",
        "mean outcome (first reward component) of all scored rollouts, admitted or not",
        "reward",
    ),
    Name("reward/*", "reward", "mean of one reward component", "rewards/*/mean"),
    Name("reward/failed", "share", "rollouts that could not be scored"),
    Name(
        "reward/failed_*",
        "rollouts",
        "those of them by type: timeout, crash, memory, exception, length, nonfinite, type, size, none, other",
    ),
    Name("group/mixed", "share", "groups whose rewards differ: the ones with a signal"),
    Name("group/all_right", "share", "groups in which every rollout is right"),
    Name("group/all_wrong", "share", "groups in which no rollout is right"),
    Name("admit/kept", "share", "sampled groups that were admitted"),
    Name("admit/waves", "waves", "how often prompts were sampled to fill the step"),
    Name("admit/missing", "groups", "groups that the step trains with less than asked"),
    Name("keep/loss", "share", "rows that count in the loss after the filters"),
    Name("filter/kept_per_group", "rollouts", "rollouts per group that the k best leave in the statistics"),
    Name("filter/kept_length", "tokens", "mean length of these"),
    Name("filter/all_length", "tokens", "mean length of all rollouts of the step, before them"),
    Name("group/equal_*", "share", "groups in which one reward component is the same for all"),
    Name("group/pass_at_k", "share", "chance that a set of k rollouts of a group holds a right one, k the recipe's"),
    Name(
        "kl/in_score",
        "nats per token",
        "divergence from the reference as estimated in the score, before its coefficient",
    ),
    Name("filter/*", "share", "rows that one filter takes out of the loss, the statistics or the denominators"),
    Name("shaper/*", "advantage", "mean size of one shaper's change of the advantage over policy tokens"),
    Name("correction/*", "factor", "mean distance of one correction's factor from 1 over policy tokens"),
    Name("shaping/*", "reward", "mean over rows of one term that is added to the score"),
    Name("state/*", "", "state of a credit stage after the step: a number, or how many items a list holds"),
    Name("advantage/zero_frac", "share", "policy tokens whose advantage is exactly zero", "frac_reward_zero_std"),
    Name("advantage/abs", "advantage", "mean size of the advantage over policy tokens"),
    Name(
        "critic/loss",
        "",
        "the critic's loss per token: half the squared error, of the clipped value where that is larger",
    ),
    Name("critic/clipped", "share", "tokens whose gradient the critic's clip removed"),
    Name(
        "critic/explained_variance",
        "share",
        "how much of the returns the critic foresaw: 1 - Var(returns - values) / Var(returns)",
    ),
    Name("critic/value_mean", "reward", "mean of the critic's values, before it learns from the step"),
    Name("critic/return_mean", "reward", "mean of what the critic learns: advantage plus value, per token"),
    Name("ratio/mean", "ratio", "mean importance ratio, learner over sampler at the start of the step"),
    Name("ratio/max", "ratio", "largest importance ratio"),
    Name("ratio/abs_log", "nats", "mean size of the log-ratio: what a clip band has to be compared with"),
    Name("ratio/out_of_band", "share", "tokens whose ratio is outside of the surrogate's band, clipped or not"),
    Name("ratio/divergence", "", "mean divergence per token that a divergence mask compares with its thresholds"),
    Name("ratio/clamped", "share", "log-ratios cut to the range that exp can take"),
    Name("clip/low", "share", "tokens clipped at the lower bound", "clip_ratio/low_mean"),
    Name("clip/high", "share", "tokens clipped at the upper bound", "clip_ratio/high_mean"),
    Name("clip/dual", "share", "tokens with a negative advantage whose ratio is above the dual bound"),
    Name("clip/weight_low", "share", "tokens whose detached weight was raised to its lower bound"),
    Name("clip/weight_high", "share", "tokens whose detached weight was cut to its upper bound"),
    Name(
        "clip/weight_high_negative", "share", "those of them with a negative advantage: pushes down that were bounded"
    ),
    Name("weight/mean", "weight", "mean detached weight: 1 at the first optimizer step of a batch"),
    Name("gate/mean", "share", "how much of the ratio's gradient a soft gate lets through: 1 at ratio 1"),
    Name("kl/sampled_vs_old", "nats per token", "learner against sampler, at the start of the step"),
    Name("kl/sampled_vs_policy", "nats per token", "policy against sampler, over the optimizer steps of the batch"),
    Name("penalty/kl", "nats per token", "cost of the KL penalty, before its coefficient", "kl"),
    Name("penalty/kl_clamped", "share", "tokens whose log-ratio in the KL penalty was cut, which takes their gradient"),
    Name("penalty/*", "", "cost of one penalty per token, before its coefficient"),
    Name("constraint/divergence", "nats per token", "divergence of an optimizer step that the constraint measures"),
    Name("constraint/active", "share", "optimizer steps whose divergence was beyond the constraint's limit"),
    Name("constraint/multiplier", "nats per token", "multiplier of the constraint, before its coefficient"),
    Name("constraint/clamped", "share", "tokens whose log-ratio in the constraint was cut, which takes their gradient"),
    Name("residual/mse", "reward^2", "mean squared distance of centred implicit from centred actual rewards"),
    Name("residual/implicit_var", "reward^2", "variance of implicit rewards in their group"),
    Name("residual/actual_var", "reward^2", "variance of actual rewards in their group"),
    Name("residual/cov", "reward^2", "covariance of implicit and actual rewards in their group"),
    Name(
        "residual/clamped", "share", "tokens whose log-ratio in the implicit reward was cut, which takes their gradient"
    ),
    Name("contrast/margin", "score", "mean score of good responses less that of bad ones, in groups with both"),
    Name("contrast/both", "share", "groups with good and bad responses: the ones with a signal"),
    Name("contrast/hardest", "share", "weight of the bad response that counts most, in groups with both"),
    Name("covariance/mean", "nats", "mean covariance of advantage and log-probability: positive while entropy falls"),
    Name("covariance/top", "nats", "mean covariance of the 0.02 % of tokens where it is largest"),
    Name("covariance/dropped", "share", "tokens that lost their gradient for their covariance"),
    Name("covariance/held", "share", "tokens that are held near the old policy for their covariance"),
    Name("covariance/moved", "nats", "mean absolute log-ratio of held tokens"),
    Name("logp/mean", "nats per token", "mean log-probability of the sampled tokens under the policy"),
    Name(
        "entropy/sampled",
        "nats per token",
        "mean of -logp over the sampled tokens: unbiased for the sampler's entropy",
        "entropy",
    ),
    Name(
        "entropy/mean", "nats per token", "entropy of the policy over the whole vocabulary, where a recipe asks for it"
    ),
    Name("entropy/coef", "", "coefficient of the entropy bonus that was applied"),
    Name("grad/norm", "", "norm of the gradient before clipping", "grad_norm"),
    Name("grad/norm_critic", "", "norm of the critic's gradient before clipping"),
    Name("grad/skipped", "steps", "optimizer steps left out because their gradient was not finite"),
    Name("length/mean", "tokens", "mean length of a response", "completions/mean_length"),
    Name("length/max", "tokens", "longest response", "completions/max_length"),
    Name("stop/truncated", "share", "rollouts that hit the token budget", "completions/clipped_ratio"),
    Name("logp/nonfinite", "tokens", "log-probabilities that are not finite"),
    Name(
        "loss/value", "", "the loss that is optimised: of a whole optimizer step, mean over those of the step", "loss"
    ),
    Name("tokens/sampled", "tokens", "tokens sampled for this step"),
    Name("tokens/trained", "tokens", "tokens of this step that carry weight in the loss"),
    Name("lr", "", "learning rate", "learning_rate"),
    Name("sft/*", "", "supervised warm start: loss in nats per token, accuracy of tokens, tokens"),
    Name("eval/accuracy*", "share", "mean over problems of the share of right samples"),
    Name("eval/se*", "share", "standard error of the accuracy over problems"),
    Name("eval/low*", "share", "lower end of the 95 % interval of the accuracy"),
    Name("eval/high*", "share", "upper end of the 95 % interval of the accuracy"),
    Name("eval/pass@*", "share", "unbiased pass@k, and its standard error (_se)"),
    Name("eval/pass^*", "share", "chance that all k samples are right, and its standard error (_se)"),
    Name(
        "eval/maj@*",
        "share",
        "chance that the most frequent answer of k samples is right, and its standard error (_se)",
    ),
    Name("eval/mixed*", "share", "problems with right and wrong samples"),
    Name("eval/truncated*", "share", "samples that hit the token budget"),
    Name("eval/failed*", "share", "samples that could not be scored; they count as wrong"),
    Name("eval/length*", "tokens", "mean length of a sample"),
    Name("eval/class_*", "share", "samples of one failure class of the task"),
    Name("eval/problems*", "problems", "problems asked"),
    Name("eval/samples*", "samples", "samples drawn"),
    Name("time/step_s", "s", "wall clock of a step"),
    Name("time/*", "s", "wall clock of one part of a step"),
    Name("memory/*", "MB", "memory of the process or of a device"),
)

CLOCKS = ("time/", "memory/")
"""Prefixes of what differs from run to run on the same seed: written to `timings.jsonl`, never to `metrics.jsonl`."""


def describe(name: str) -> Name | None:
    """The entry of the table for a metric: its exact name, else the longest pattern that fits; None if unknown."""
    fits = [entry for entry in TABLE if fnmatch.fnmatchcase(name, entry.name)]
    return max(fits, key=lambda entry: (entry.name == name, len(entry.name)), default=None)


def unknown(names: Iterable[str]) -> list[str]:
    """The names that the table does not have."""
    return [name for name in names if describe(name) is None]


def split_clocks(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The deterministic numbers, and clocks and memory."""
    clocks = {name: value for name, value in values.items() if name.startswith(CLOCKS)}
    return {name: value for name, value in values.items() if name not in clocks}, clocks


def trl_names(values: Mapping[str, float]) -> dict[str, float]:
    """The same numbers under TRL's names, for dashboards made for it; numbers that TRL has no name for are left out."""
    renamed = {}
    for name, value in values.items():
        entry = describe(name)
        if entry is None or not entry.trl:
            continue
        stem = entry.name.removesuffix("*")
        renamed[entry.trl.replace("*", name.removeprefix(stem))] = value
    return renamed


def markdown() -> str:
    """The table for the documentation."""
    rows = [f"| `{e.name}` | {e.unit} | {e.meaning} | {f'`{e.trl}`' if e.trl else ''} |" for e in TABLE]
    return "\n".join(["| name | unit | meaning | TRL |", "|---|---|---|---|", *rows]) + "\n"
