"""Combinations that cannot be right, each with a name, the reason and a source. A recipe can waive one by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from covey.errors import ConfigError

if TYPE_CHECKING:
    from covey.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Shape:
    """What a rule may know of a run besides the recipe: the words of its budget."""

    samples_per_prompt: int
    optimizer_steps: int
    truncated_sampling: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A refusal: `broken` says whether the combination is there, `reason` why it cannot be right."""

    name: str
    where: str
    broken: Callable[[Recipe], bool]
    reason: str
    right: str


@dataclass(frozen=True, slots=True)
class RunRule:
    """A refusal that depends on the budget too."""

    name: str
    where: str
    broken: Callable[[Recipe, Shape], bool]
    reason: str
    right: str


def _kl_as_k1(recipe: Recipe) -> bool:
    return any(getattr(part, "estimator", "") == "k1" for part in recipe.penalties)


def _uses_importance(recipe: Recipe) -> bool:
    parts = (recipe.ratio, recipe.surrogate)
    return bool(recipe.corrections) or any(getattr(part, "anchor", "") == "sampled" for part in parts)


def _corrects_twice(recipe: Recipe) -> bool:
    return bool(recipe.corrections) and getattr(recipe.ratio, "anchor", "") == "sampled"


def _lacks_critic(recipe: Recipe) -> bool:
    return recipe.critic is None and "value" in recipe.needs()


def shares_gain(recipe: Recipe) -> bool:
    """True if all tokens of a row carry the gain of the row."""
    grain = getattr(recipe.surrogate, "grain", "ratio")
    return bool((getattr(recipe.ratio, "grain", "token") if grain == "ratio" else grain) == "sequence")


def _advantage_per_token(recipe: Recipe) -> bool:
    """True if the tokens of a row may differ in advantage: where it can be of scores per token, or is shaped so."""
    shaped = any(getattr(part, "per", "row") == "token" for part in recipe.shapers)
    scored = "token" in getattr(recipe.advantage, "reads", ()) or getattr(recipe.mix, "per", "row") == "token"
    return shaped or scored


def _factors_per_token(recipe: Recipe) -> bool:
    return any(getattr(part, "unit", "token") == "token" for part in recipe.corrections)


def _dual_inside_clip(recipe: Recipe) -> bool:
    dual = getattr(recipe.surrogate, "dual", None)
    return dual is not None and dual <= 1 + getattr(recipe.surrogate, "high", 0.0)


def _scales(recipe: Recipe) -> bool:
    """True if the advantage is more than the score less a baseline: times a number, or over a std."""
    advantage, shapers = recipe.advantage, {part.kind for part in recipe.shapers}
    return (
        getattr(advantage, "scale", "none") != "none"
        or getattr(advantage, "baseline", "") == "leave_one_out"
        or advantage.kind == "component_norm"
        or bool(shapers & {"whiten", "sign_weight"})
    )


def _value_per_group(recipe: Recipe) -> bool:
    """True if the surrogate has one value per group, spread over the group's tokens."""
    return bool(getattr(recipe.surrogate, "per_group", False))


RULES = (
    Rule(
        "group_value_weighting",
        "recipe.weighting",
        lambda recipe: _value_per_group(recipe) and recipe.weighting.kind != "group_sum",
        "the surrogate spreads one value per group over the group's tokens: other weights divide it once more",
        "Use group_sum.",
    ),
    Rule(
        "group_value_corrected",
        "recipe.corrections",
        lambda recipe: _value_per_group(recipe) and bool(recipe.corrections),
        "factors per token would only scale a group's value by their mean: they cannot reach the terms inside",
        "Leave them out.",
    ),
    Rule(
        "group_value_of_tokens",
        "recipe.advantage",
        lambda recipe: _value_per_group(recipe) and _advantage_per_token(recipe),
        "a value per group compares whole responses: of an advantage per token it would only see the mean",
        "Use an advantage per row, or surrogate clip.",
    ),
    Rule(
        "residual_of_scaled",
        "recipe.advantage",
        lambda recipe: getattr(recipe.surrogate, "kind", "") == "residual" and _scales(recipe),
        "scaled (by a std, by sign, leaving one out), rewards lose the policy that the residuals vanish at (arXiv 2504.19599)",
        "Use group_norm with baseline mean and scale none, and no shaper that scales.",
    ),
    Rule(
        "value_without_critic",
        "recipe.critic",
        _lacks_critic,
        "absent, but a component reads values, which only a critic learns",
        "Name one: separate or shared.",
    ),
    Rule(
        "critic_unread",
        "recipe.critic",
        lambda recipe: recipe.critic is not None and "value" not in recipe.needs(),
        "nobody reads what the critic learns",
        "Leave it out, or use advantage gae.",
    ),
    Rule(
        "k1_as_loss",
        "recipe.penalties.kl.estimator",
        _kl_as_k1,
        "k1 as a loss has zero gradient in expectation: it regularises nothing (arXiv 2510.01555)",
        "Use k2 or k3_straight_through.",
    ),
    Rule(
        "sequence_ratio_token_mean",
        "recipe.weighting",
        lambda recipe: shares_gain(recipe) and recipe.weighting.kind in ("token_mean", "group_token_mean"),
        "a token mean multiplies each sequence's ratio by its length (arXiv 2507.18071 averages over sequences)",
        "Use rollout_mean.",
    ),
    Rule(
        "geometric_mean_per_token",
        "recipe.surrogate",
        lambda recipe: getattr(recipe.surrogate, "kind", "") == "geometric_mean" and _advantage_per_token(recipe),
        "a geometric mean has one advantage for all tokens of a response (arXiv 2507.20673)",
        "Use an advantage per row, or surrogate clip.",
    ),
    Rule(
        "geometric_mean_corrected_per_token",
        "recipe.corrections",
        lambda recipe: getattr(recipe.surrogate, "kind", "") == "geometric_mean" and _factors_per_token(recipe),
        "factors per token would enter a geometric mean of ratios as an arithmetic one (arXiv 2507.20673)",
        "Use truncated_importance with unit row.",
    ),
    Rule(
        "leave_one_out_with_std",
        "recipe.advantage.scale",
        lambda recipe: (
            getattr(recipe.advantage, "baseline", "") == "leave_one_out"
            and getattr(recipe.advantage, "scale", "none") != "none"
        ),
        "leave-one-out divided by a std is neither unbiased nor normalised",
        "Use scale none, or baseline mean.",
    ),
    Rule(
        "weight_below_one",
        "recipe.surrogate.high",
        lambda recipe: (
            getattr(recipe.surrogate, "kind", "") == "detached_weight" and getattr(recipe.surrogate, "high", 1) < 1
        ),
        "a bound below 1 shrinks the gradient of the very tokens that the policy has just sampled (arXiv 2506.13585)",
        "Use a bound such as 5.",
    ),
    Rule(
        "dual_inside_clip",
        "recipe.surrogate.dual",
        _dual_inside_clip,
        "a dual bound within the clip range takes the gradient of unclipped tokens (arXiv 1912.09729 asks for dual > 1 + high)",
        "Use a bound such as 3.",
    ),
    Rule(
        "corrected_twice",
        "recipe.corrections",
        _corrects_twice,
        "a ratio anchored at the sampler already holds the factor old / sampled",
        "Use anchor old, or no correction.",
    ),
)

GROUPED = ("group_norm", "component_norm", "two_classes")
"""Advantages that compare a rollout with its group."""

RUN_RULES = (
    RunRule(
        "group_of_one",
        "budget.samples_per_prompt",
        lambda recipe, shape: shape.samples_per_prompt < 2 and recipe.advantage.kind in GROUPED,
        "a group of one is its own baseline: every advantage is 0",
        "Use 2 or more.",
    ),
    RunRule(
        "set_of_the_whole_group",
        "recipe.advantage.k",
        lambda recipe, shape: (
            recipe.advantage.kind == "pass_at_k" and getattr(recipe.advantage, "k", 1) >= shape.samples_per_prompt
        ),
        "sets as large as the group have one outcome for all of it: every advantage is 0 (arXiv 2508.10751)",
        "Use a smaller k, or more samples_per_prompt.",
    ),
    RunRule(
        "stale_policy_gradient",
        "recipe.surrogate",
        lambda recipe, shape: shape.optimizer_steps > 1 and getattr(recipe.surrogate, "kind", "") == "policy_gradient",
        "a policy gradient without a ratio is only right for the first optimizer step of a batch",
        "Use surrogate clip with ratio token, or one optimizer step.",
    ),
    RunRule(
        "truncated_importance",
        "budget.sampling.top_p",
        lambda recipe, shape: shape.truncated_sampling and _uses_importance(recipe),
        "with top-p or top-k the sampled distribution is not the learner's: importance weights are biased",
        "Use top_p=1 and top_k=0.",
    ),
)


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be right, unless it waives the rule by name."""
    known = {rule.name for rule in (*RULES, *RUN_RULES)}
    for name in recipe.waivers:
        if name not in known:
            raise ConfigError("recipe.waivers", f"there is no refusal '{name}'", f"Known: {', '.join(sorted(known))}.")
    for rule in RULES:
        if rule.name not in recipe.waivers and rule.broken(recipe):
            raise ConfigError(rule.where, rule.reason, f"{rule.right} (waiver: {rule.name})")


def check_run(recipe: Recipe, shape: Shape) -> None:
    """Refuse a recipe under a budget where it cannot be right, unless it waives the rule by name."""
    for rule in RUN_RULES:
        if rule.name not in recipe.waivers and rule.broken(recipe, shape):
            raise ConfigError(rule.where, rule.reason, f"{rule.right} (waiver: {rule.name})")
