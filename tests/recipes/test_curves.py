"""The committed learning curves: of every recipe as it is now, and each of its parts was seen acting in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import curves
from covey.recipes.recipe import nested
from covey.registry import Component

DATA = json.loads(curves.DATA.read_text(encoding="utf-8"))["recipes"]
Range = Callable[[str], tuple[float, float]]


def rises(name: str) -> Callable[[Range], bool]:
    """The metric was above 0 at some step."""
    return lambda range_of: range_of(name)[1] > 0


def differs(name: str) -> Callable[[Range], bool]:
    """The metric took different values."""
    return lambda range_of: range_of(name)[0] < range_of(name)[1]


def falls(name: str, below: float = 0.0) -> Callable[[Range], bool]:
    """The metric was below a value at some step."""
    return lambda range_of: range_of(name)[0] < below


def both(*signs: Callable[[Range], bool]) -> Callable[[Range], bool]:
    """All of them."""
    return lambda range_of: all(sign(range_of) for sign in signs)


SIGNS: dict[str, Callable[[Range], bool]] = {
    "admit.informative": falls("admit/kept", 1.0),
    "mix.weighted_sum": differs("reward/mean"),
    "mix.separate": both(differs("reward/correct"), falls("reward/format")),
    "mix.token_kl": rises("kl/in_score"),
    "shaping.kl_sum": differs("shaping/kl_sum"),
    "shaping.soft_overlong": falls("shaping/soft_overlong"),
    "filter.overlong": rises("filter/overlong"),
    "filter.k_best": both(rises("filter/k_best"), falls("filter/kept_per_group", 16.0)),
    "filter.k_best_by_difficulty": both(
        rises("filter/k_best_by_difficulty"), differs("filter/kept_per_group"), falls("filter/kept_per_group", 8.0)
    ),
    "shaper.whiten": rises("shaper/whiten"),
    "surrogate.clip": both(rises("clip/low"), rises("clip/high")),
    "surrogate.geometric_mean": both(rises("clip/low"), rises("clip/high")),
    "surrogate.divergence_mask": both(rises("clip/low"), rises("clip/high")),
    "surrogate.detached_weight": rises("clip/weight_high"),
    "surrogate.soft_gate": falls("gate/mean", 1.0),
    "surrogate.residual": rises("residual/mse"),
    "surrogate.contrast": both(rises("contrast/both"), differs("contrast/margin")),
    "surrogate.covariance_clip": rises("covariance/dropped"),
    "surrogate.covariance_kl": both(rises("covariance/held"), rises("covariance/moved")),
    "penalty.kl": rises("penalty/kl"),
    "penalty.entropy": falls("penalty/entropy"),
    "penalty.constraint": rises("constraint/active"),
    "critic.separate": both(rises("critic/clipped"), rises("critic/explained_variance")),
}
"""By component: what shows that it acted. Of advantages, weightings, ratios and references the gradient itself is the sign."""

ALWAYS = {
    "advantage": rises("advantage/abs"),
    "weighting": rises("tokens/trained"),
    "ratio": rises("kl/sampled_vs_policy"),
    "reference": rises("tokens/trained"),
}


def parts(name: str) -> Iterator[Component]:
    """All components of a recipe as it ran."""
    for part in curves.recipe_of(name).components():
        yield from nested(part)


def sign_of(part: Component) -> Callable[[Range], bool]:
    """What shows that a component acted."""
    return SIGNS[f"{part.stage}.{part.kind}"] if part.stage not in ALWAYS else ALWAYS[part.stage]


@pytest.mark.parametrize("name", curves.listed())
def test_the_curve_is_of_the_recipe_as_it_is(name: str) -> None:
    assert name in DATA, f"no curve: make curves ARGS={name}"
    entry = DATA[name]
    assert entry["digest"] == curves.recipe_of(name).digest, f"another {name}: make curves ARGS={name}"
    assert [len(curve) for curve in entry["curves"]] == [curves.BUDGET["steps"]] * len(curves.SEEDS)


@pytest.mark.parametrize("name", curves.listed())
def test_every_part_was_seen_acting(name: str) -> None:
    found = DATA[name]["range"]

    def range_of(metric: str) -> tuple[float, float]:
        assert metric in found, f"{name}: nothing reports {metric}"
        low, high = found[metric]
        return low, high

    idle = [f"{part.stage}.{part.kind}" for part in parts(name) if not sign_of(part)(range_of)]
    assert not idle, f"{name}: never seen acting: {idle}"


@pytest.mark.parametrize("name", curves.listed())
def test_every_recipe_learns(name: str) -> None:
    """The mean of the last five steps is well above that of the first two, for every seed."""
    for curve in DATA[name]["curves"]:
        assert sum(curve[-5:]) / 5 > sum(curve[:2]) / 2 + 0.15


def test_several_updates_are_made_of_a_batch() -> None:
    """With one, every clipped surrogate has the same gradient."""
    assert curves.BUDGET["budget.optimizer_steps_per_pass"] >= 4


def test_figures_are_of_these_curves() -> None:
    from benchmarks.figure import draw_all

    drawn = (Path(curves.DOCS) / "img" / "curves.svg").read_text(encoding="utf-8")
    assert drawn == draw_all({name: DATA[name]["curves"] for name in sorted(DATA)})
