"""A recipe is a value: compared, dumped, read back, hashed, changed by dotted keys; and what cannot be right is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from covey import recipes
from covey.errors import ConfigError
from covey.recipes.recipe import MANY, STAGES, Recipe
from covey.recipes.rules import RULES, RUN_RULES, Shape, check_run
from covey.registry import Component, component
from covey.stages.advantages import BatchBaseline, GroupNorm
from covey.stages.corrections import TruncatedImportance
from covey.stages.coupled import Contrast, Residual
from covey.stages.detached import DetachedWeight
from covey.stages.filters import Overlong, Varied
from covey.stages.mix import Shaping, SoftOverlong, WeightedSum
from covey.stages.objective import couples, outputs
from covey.stages.penalties import Entropy, Kl
from covey.stages.ratios import SequenceRatio, TokenRatio
from covey.stages.surrogates import Clip, PolicyGradient
from covey.stages.weighting import Constant, RolloutMean, RolloutSum, TokenMean
from tests.recipes import golden
from tests.stages.contract import all_recipes, component_recipes

OURS = ["cispo", "dapo", "dppo", "dr_grpo", "gmpo", "grpo", "gspo", "gspo_token", "reinforce", "sapo"]
NAMES = recipes.names()
GRPO = recipes.get("grpo")


def refused(**changes: Any) -> str:
    """The line with which changes of grpo are refused."""
    with pytest.raises(ConfigError) as caught:
        GRPO.but(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The list


def test_the_list_is_complete_and_sorted() -> None:
    assert set(OURS) <= set(NAMES)
    assert sorted(NAMES) == NAMES
    assert recipes.DEFAULT in NAMES
    for name in NAMES:
        assert recipes.get(name).name == name


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe: there is no recipe 'grop'. Did you mean 'grpo'\?"):
        recipes.get("grop")
    with pytest.raises(ConfigError, match="there is no recipe"):
        recipes.describe("grop")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_described_by_its_own_file(name: str) -> None:
    """Paper and formula; and never those of another file that imports the recipe to change it."""
    text = recipes.describe(name)
    assert re.search(r"(^|  )A'?(_[kt])? (=|as) ", text, re.MULTILINE)
    assert "loss = " in text
    if name in OURS:
        assert text == (import_module(f"covey.recipes.{name}").__doc__ or "").strip()
    assert sum(recipes.describe(other) == text for other in NAMES) == 1


# What the methods are


def test_reinforce() -> None:
    """Williams 1992: batch mean as baseline, no ratio, the sum of a response's tokens."""
    expected = Recipe(
        name="reinforce",
        mix=WeightedSum(),
        advantage=BatchBaseline(),
        weighting=RolloutSum(),
        surrogate=PolicyGradient(),
    )
    assert recipes.get("reinforce") == expected


def test_grpo() -> None:
    """arXiv 2402.03300: group mean and std (ddof 1), clip 0.2, mean over responses of token means, 0.04 k3 to the reference."""
    expected = Recipe(
        name="grpo",
        mix=WeightedSum(),
        advantage=GroupNorm(baseline="mean", scale="group", ddof=1, eps=1e-6),
        weighting=RolloutMean(),
        ratio=TokenRatio(),
        surrogate=Clip(low=0.2, high=0.2),
        penalties=(Kl(coef=0.04, estimator="k3", to="reference", weighting=RolloutMean()),),
    )
    assert expected == GRPO


def test_dr_grpo() -> None:
    """arXiv 2503.20783: no std, the token budget as divisor, no KL."""
    found = recipes.get("dr_grpo")
    assert found == GRPO.but(name="dr_grpo", advantage=GroupNorm(scale="none"), weighting=Constant(), penalties=())


def test_dapo() -> None:
    """arXiv 2503.14476: every part of it."""
    found = recipes.get("dapo")
    assert [part.kind for part in found.admit] == ["informative"]
    assert found.mix == WeightedSum(shaping=(SoftOverlong(cache_share=0.2, factor=1.0),))
    assert found.filters == (Overlong(mode="mask"),)
    assert found.surrogate == Clip(low=0.2, high=0.28)
    assert found.weighting == TokenMean()
    assert found.penalties == ()
    assert found.advantage == GRPO.advantage


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_dump_is_the_golden_file(recipe: Recipe) -> None:
    """A change of a default changes every run: it has to be seen. Write with `python -m tests.recipes.golden`."""
    path = golden.FOLDER / f"{recipe.name}.yaml"
    if recipe.name not in OURS and not path.exists():
        pytest.skip("installed by another package")
    assert path.read_text(encoding="utf-8") == golden.text(recipe)


# A value


@pytest.mark.parametrize("recipe", [*all_recipes(), *component_recipes().values()], ids=lambda recipe: recipe.name)
def test_round_trips(recipe: Recipe) -> None:
    for text in (yaml.safe_dump(recipe.plain()), json.dumps(recipe.plain())):
        again = Recipe.of(yaml.safe_load(text))
        assert again == recipe
        assert again.digest == recipe.digest
        assert hash(again) == hash(recipe)


def test_digests_tell_methods_apart_and_not_names() -> None:
    papers = [recipe for recipe in all_recipes() if "@" not in recipe.name]  # a peer may run just what the paper says
    assert len({recipe.digest for recipe in papers}) == len(papers)
    assert GRPO.but(name="mine").digest == GRPO.digest
    assert GRPO.but(**{"surrogate.low": 0.1}).digest != GRPO.digest
    assert GRPO.but(**{"surrogate.low": 0.1}).but(**{"surrogate.low": 0.2}).digest == GRPO.digest
    assert GRPO.but(**{"penalties.kl.coef": 1}).digest == GRPO.but(**{"penalties.kl.coef": 1.0}).digest


def test_digests_are_the_same_in_every_process() -> None:
    code = "from covey import recipes; print(recipes.get('dapo').digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == recipes.get("dapo").digest


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError):
        GRPO.name = "other"
    with pytest.raises(ValidationError):
        GRPO.surrogate.low = 0.5


def test_components_run_in_the_order_of_the_stages() -> None:
    stages = list(STAGES.values())
    for recipe in all_recipes():
        order = [stages.index(part.stage) for part in recipe.components()]
        assert order == sorted(order)


def test_what_a_recipe_asks_for() -> None:
    assert GRPO.needs() == ("ref_logp",)
    assert recipes.get("dr_grpo").needs() == ()
    assert GRPO.but(**{"penalties.kl.to": "old"}).needs() == ()
    assert outputs(GRPO) == ()
    assert outputs(GRPO.but(penalties=("entropy",))) == ("entropy",)
    assert couples(GRPO) == "row"


@component("shaping", "test_needy")
class _Needy(Shaping):
    """A term of the score that needs a column."""

    needs = ("ref_logp", "tags")

    def __call__(self, batch: Any) -> Any:
        return batch.columns["tags"]


def test_a_component_inside_a_component_is_asked_too() -> None:
    assert recipes.get("dr_grpo").but(mix=WeightedSum(shaping=(_Needy(),))).needs() == ("ref_logp", "tags")


# Changes


def test_but_takes_values_kinds_and_plain_data() -> None:
    for weighting in (TokenMean(), "token_mean", {"kind": "token_mean"}):
        assert GRPO.but(weighting=weighting).weighting == TokenMean()
    assert GRPO.but(filters="overlong").filters == (Overlong(),)
    assert GRPO.but(filters=["overlong", Varied()]).filters == (Overlong(), Varied())
    assert GRPO.but(filters={"kind": "overlong", "mode": "exclude"}).filters == (Overlong(mode="exclude"),)
    assert GRPO.but(penalties=()).penalties == ()
    assert GRPO.but() == GRPO


def test_but_follows_dots() -> None:
    assert GRPO.but(**{"surrogate.high": 0.3}).surrogate == Clip(low=0.2, high=0.3)
    assert GRPO.but(**{"penalties.kl.coef": 0.1}).penalties[0].coef == 0.1
    assert GRPO.but(**{"penalties.kl.weighting": "token_mean"}).penalties[0].weighting == TokenMean()
    assert GRPO.but(**{"penalties.kl.weighting.unit": "row"}).penalties[0].weighting == RolloutMean(unit="row")
    dapo = recipes.get("dapo").but(**{"mix.shaping.soft_overlong.factor": 0.5, "admit.informative.max_waves": 3})
    assert dapo.mix.shaping == (SoftOverlong(factor=0.5),)
    assert dapo.admit[0].max_waves == 3


def test_but_reaches_into_open_mappings() -> None:
    mixed = GRPO.but(**{"mix.weights.format": 0.2}).but(**{"mix.weights.length": 0.1})
    assert mixed.mix.weights == {"format": 0.2, "length": 0.1}


def test_but_changes_the_whole_before_its_parts() -> None:
    changed = GRPO.but(**{"surrogate.low": 0.1, "surrogate": Clip(low=0.3, high=0.4)})
    assert changed.surrogate == Clip(low=0.1, high=0.4)
    assert GRPO.but(**{"penalties.entropy.coef": 0.01, "penalties": ("kl", "entropy")}).penalties[1] == Entropy(
        coef=0.01
    )


def test_but_leaves_the_original_alone() -> None:
    before = GRPO.plain()
    GRPO.but(**{"surrogate.low": 0.1, "penalties.kl.coef": 0.5, "mix.weights.a": 1.0})
    assert GRPO.plain() == before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"surrogate.hgih": 1}, "recipe.surrogate.hgih: clip has no field 'hgih'. Did you mean 'high'?"),
        ({"surogate": "clip"}, "recipe.surogate: Recipe has no field 'surogate'. Did you mean 'surrogate'?"),
        (
            {"name": "x", "surogate": "clip"},
            "recipe.surogate: Recipe has no field 'surogate'. Did you mean 'surrogate'?",
        ),
        ({"weighting": "token_men"}, "recipe.weighting: there is no weighting 'token_men'. Did you mean 'token_mean'?"),
        ({"penalties": "kll"}, "recipe.penalties.kll: there is no penalty 'kll'. Did you mean 'kl'?"),
        ({"penalties.entropy.coef": 1}, "recipe.penalties.entropy: no member of kind 'entropy'. Known: kl."),
        ({"penalties.kl.coef": -1}, "recipe.penalties.kl.coef: got -1. Input should be greater than 0."),
        (
            {"surrogate.low": "much"},
            "recipe.surrogate.low: got 'much'. Input should be a valid number, unable to parse",
        ),
        ({"surrogate.low.x": 1}, "recipe.surrogate.low.x: low has no fields"),
        ({"name.x": 1}, "recipe.name.x: name has no fields"),
        ({"weighting": Clip()}, "recipe.weighting: Clip is a surrogate, not a weighting"),
        ({"weighting": 3}, "recipe.weighting: 3 is no weighting. Give a kind: "),
        ({"penalties": ("kl", "kl")}, "recipe.penalties: a kind occurs twice. Members are addressed by kind"),
        ({"mix.shaping": "soft"}, "recipe.mix.shaping: there is no shaping 'soft'."),
        (
            {"advantage.scale": "grp"},
            "recipe.advantage.scale: got 'grp'. Input should be 'none', 'group', 'batch', 'batch_centered' or 'mean'.",
        ),
        ({"advantage.scale": "none", "advantage.eps": 1e-3}, "recipe.advantage.eps: nobody reads it with scale=none."),
        ({"waivers": ("k1",)}, "recipe.waivers: there is no refusal 'k1'. Known: "),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], line: str) -> None:
    assert refused(**changes).startswith(line)


def test_a_dump_with_a_hole_is_refused() -> None:
    data = GRPO.plain()
    del data["mix"]
    with pytest.raises(ConfigError, match=r"^recipe.mix: absent. Recipe needs it.$"):
        Recipe.of(data)


# Refusals


BROKEN: dict[str, dict[str, Any]] = {
    "value_without_critic": {"advantage": "gae"},
    "critic_unread": {"critic": "separate"},
    "k1_as_loss": {"penalties.kl.estimator": "k1"},
    "sequence_ratio_token_mean": {"ratio": SequenceRatio(), "weighting": "token_mean"},
    "geometric_mean_per_token": {"surrogate": "geometric_mean", "advantage": "gae", "critic": "separate"},
    "geometric_mean_corrected_per_token": {"surrogate": "geometric_mean", "corrections": (TruncatedImportance(),)},
    "leave_one_out_with_std": {"advantage.baseline": "leave_one_out"},
    "dual_inside_clip": {"surrogate.dual": 1.1},
    "group_value_weighting": {"surrogate": Contrast(), "ratio": None},
    "group_value_of_tokens": {
        "surrogate": Contrast(),
        "ratio": None,
        "weighting": "group_sum",
        "advantage": "gae",
        "critic": "separate",
    },
    "group_value_corrected": {
        "surrogate": Contrast(),
        "ratio": None,
        "weighting": "group_sum",
        "corrections": (TruncatedImportance(),),
    },
    "residual_of_scaled": {"surrogate": Residual(), "ratio": None, "weighting": "group_sum"},
    "weight_below_one": {"surrogate": DetachedWeight(high=0.5)},
    "corrected_twice": {"ratio.anchor": "sampled", "corrections": (TruncatedImportance(),)},
}
"""A change of grpo that breaks each rule."""

GOOD = Shape(samples_per_prompt=8, optimizer_steps=1, truncated_sampling=False)
CASES: dict[str, tuple[Recipe, Shape]] = {
    "group_of_one": (GRPO, Shape(1, 1, False)),
    "set_of_the_whole_group": (recipes.get("pass_k_training"), Shape(4, 1, False)),
    "stale_policy_gradient": (recipes.get("reinforce"), Shape(8, 2, False)),
    "truncated_importance": (GRPO.but(corrections="truncated_importance"), Shape(8, 1, True)),
}
"""A recipe and a budget that break each rule of runs."""


def test_every_rule_is_proven_below() -> None:
    assert set(BROKEN) == {rule.name for rule in RULES}
    assert set(CASES) == {rule.name for rule in RUN_RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_cannot_be_right_is_refused_unless_waived(rule: Any) -> None:
    line = refused(**BROKEN[rule.name])
    assert line.startswith(f"{rule.where}: {rule.reason}")
    assert line.endswith(f"(waiver: {rule.name})")
    waived = GRPO.but(**BROKEN[rule.name], waivers=(rule.name,))
    assert waived.plain()["waivers"] == [rule.name]
    assert Recipe.of(waived.plain()) == waived
    with pytest.raises(ConfigError):
        waived.but(waivers=())


@pytest.mark.parametrize("rule", RUN_RULES, ids=lambda rule: rule.name)
def test_what_cannot_be_right_under_a_budget_is_refused_unless_waived(rule: Any) -> None:
    recipe, shape = CASES[rule.name]
    with pytest.raises(ConfigError) as caught:
        check_run(recipe, shape)
    assert str(caught.value).startswith(f"{rule.where}: {rule.reason}")
    check_run(recipe, GOOD)
    check_run(recipe.but(waivers=(rule.name,)), shape)


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_what_ships_is_right(recipe: Recipe) -> None:
    check_run(recipe, GOOD)


def test_an_advantage_that_a_shaper_makes_per_token_has_no_geometric_mean() -> None:
    assert "geometric_mean_per_token" in refused(surrogate="geometric_mean", shapers="kl_to_go")


def test_a_mask_by_the_sampler_is_importance_too() -> None:
    by_sampler = recipes.get("dppo").but(**{"ratio.anchor": "old"})
    for recipe in (by_sampler, recipes.get("dppo")):
        with pytest.raises(ConfigError, match="truncated_importance"):
            check_run(recipe, Shape(8, 1, True))
    check_run(by_sampler.but(**{"surrogate.anchor": "old"}), Shape(8, 1, True))


def test_near_misses_are_not_refused() -> None:
    GRPO.but(**{"surrogate.dual": 3.0})
    GRPO.but(ratio=SequenceRatio())
    GRPO.but(advantage=GroupNorm(baseline="leave_one_out", scale="none"))
    GRPO.but(**{"ratio.anchor": "sampled"})
    check_run(recipes.get("reinforce"), Shape(1, 1, True))


def test_a_surrogate_has_the_ratio_that_it_reads() -> None:
    assert refused(ratio=None).startswith("recipe.ratio: absent, but surrogate 'clip' reads a ratio.")
    assert refused(surrogate="policy_gradient").startswith("recipe.ratio: surrogate 'policy_gradient' never reads it.")
    assert GRPO.but(surrogate="policy_gradient", ratio=None).ratio is None


@component("objective", "test_sum")
class _Sum(Component):
    """The whole loss in one function."""

    def __call__(self, live: Any, batch: Any) -> Any:
        return live.logp.sum()


def test_an_objective_leaves_nothing_unread() -> None:
    nothing = {"ratio": None, "surrogate": None, "penalties": ()}
    for field in nothing:
        rest = {name: value for name, value in nothing.items() if name != field}
        assert refused(objective="test_sum", **rest).startswith(f"recipe.{field}: objective 'test_sum' never reads it.")
    recipe = GRPO.but(objective="test_sum", **nothing)
    assert recipe.live_components() == (_Sum(),)


def test_tuples_are_the_fields_with_many_members() -> None:
    assert {name for name in STAGES if isinstance(getattr(GRPO, name), tuple)} == set(MANY)


def test_state_where_nobody_keeps_it_is_refused() -> None:
    @component("weighting", "test_moving")
    class Moving(TokenMean):
        """A weighting with state."""

        def initial(self) -> dict[str, float]:
            return {"mean": 0.0}

    with pytest.raises(ConfigError, match="has state, which is not kept in this place"):
        GRPO.but(weighting=Moving())
    with pytest.raises(ConfigError, match="has state, which is not kept in this place"):
        GRPO.but(**{"penalties.kl.weighting": Moving()})
