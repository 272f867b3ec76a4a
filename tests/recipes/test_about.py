"""What recipes say of themselves: words, where options come from, formulas that can be set and read."""

from __future__ import annotations

import re

import pytest
from latex2mathml.converter import convert

from covey import recipes
from covey.cli.formula import write_unicode
from covey.recipes import about
from covey.recipes.about import ABSENT, Words, differences, name_method, options, parent_of, read_words
from covey.recipes.formula import align, formula, legend, spell_powers
from covey.recipes.recipe import Recipe
from covey.stages.advantages import GroupNorm
from covey.stages.mix import WeightedSum
from covey.stages.penalties import Kl
from covey.stages.surrogates import Clip
from covey.stages.weighting import RolloutMean, TokenMean
from tests.recipes.golden import EXPLAINED, explained

NAMES = recipes.names()


def origins(recipe: Recipe) -> dict[str, str]:
    return {row.path: row.origin for row in options(recipe)}


# Words


def test_a_description_has_parts() -> None:
    words = read_words(
        "Name (Some Paper, arXiv 2501.01234, arXiv 2502.02345): one idea: it changes\nthis.\n\n"
        "A = R - b;  loss = -A.\n\nUse: for\nthis.\n\nAvoid: that.\nWatch: clip/low."
    )
    assert words == Words(
        title="Name",
        source="Some Paper, arXiv 2501.01234, arXiv 2502.02345",
        papers=("2501.01234", "2502.02345"),
        idea="one idea: it changes this.",
        formula="A = R - b;  loss = -A.",
        use="for this.",
        avoid="that.",
        watch="clip/low.",
    )


def test_a_description_may_lack_parts() -> None:
    assert read_words("").idea == ""
    assert read_words("Only a sentence").idea == "Only a sentence"
    assert read_words("Title (Williams 1992): idea.").papers == ()
    assert read_words("Title: idea (arXiv 2501.01234).") == Words(
        "Title", "", ("2501.01234",), "idea (arXiv 2501.01234).", "", "", "", ""
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_and_when_to_use_it(name: str) -> None:
    words = read_words(recipes.describe(name))
    for part in ("title", "source", "idea", "formula", "use", "avoid", "watch"):
        assert getattr(words, part), f"{name} does not say: {part}"
    assert words.papers or "19" in words.source or "TRL" in words.title + words.source or "verl" in words.source


# Where options come from

base = Recipe(
    name="base-of-tests",
    mix=WeightedSum(),
    advantage=GroupNorm(eps=1e-4),
    weighting=RolloutMean(),
    ratio="token",
    surrogate=Clip(low=0.1, high=0.2),
    penalties=(Kl(coef=0.1, weighting=RolloutMean()),),
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    """The recipes that count as registered."""
    found = {"base-of-tests": base}
    monkeypatch.setattr(about.recipes, "names", lambda: list(found))
    monkeypatch.setattr(about.recipes, "get", found.__getitem__)
    return found


def test_options_come_from_the_recipe_its_ancestors_or_the_component(known: dict[str, Recipe]) -> None:
    child = base.but(**{"name": "child", "surrogate.low": 0.3, "weighting": TokenMean(), "advantage.ddof": 0})
    known["child"] = child
    grandchild = child.but(**{"name": "grandchild", "surrogate.high": 0.4, "penalties.kl.coef": 0.2})
    known["grandchild"] = grandchild
    found = origins(grandchild)
    assert found["surrogate"] == "from base-of-tests"
    assert found["surrogate.low"] == "from child"
    assert found["surrogate.high"] == "own to grandchild"
    assert found["surrogate.dual"] == "default"
    assert found["weighting"] == "from child"
    assert found["advantage.eps"] == "from base-of-tests"
    assert found["advantage.ddof"] == "from child"
    assert found["advantage.baseline"] == "default"
    assert found["penalties.kl"] == "from base-of-tests"
    assert found["penalties.kl.coef"] == "own to grandchild"
    assert found["penalties.kl.weighting"] == "from base-of-tests"
    assert found["penalties.kl.weighting.unit"] == "default"
    assert found["reference"] == "default"
    assert origins(base)["surrogate.low"] == "own to base-of-tests"
    assert (parent_of(grandchild), parent_of(child), parent_of(base)) == ("child", "base-of-tests", "")


def test_what_is_set_back_to_the_default_is_own(known: dict[str, Recipe]) -> None:
    known["child"] = base.but(**{"name": "child", "surrogate.low": 0.2})
    assert origins(known["child"])["surrogate.low"] == "own to child"


def test_an_option_of_another_kind_does_not_inherit(known: dict[str, Recipe]) -> None:
    known["child"] = base.but(name="child", surrogate={"kind": "soft_gate"}) if "soft_gate" in _kinds() else base
    found = origins(base.but(name="child", penalties=("entropy",)))
    assert found["penalties.entropy"] == "own to this child"
    assert found["penalties.entropy.coef"] == "default"
    assert found["penalties.kl"] == "own to this child"


def _kinds() -> set[str]:
    from covey.registry import kinds

    return set(kinds("surrogate"))


def test_what_an_ancestor_had_is_said_to_be_gone(known: dict[str, Recipe]) -> None:
    known["child"] = base.but(name="child", penalties=())
    known["grandchild"] = known["child"].but(name="grandchild", weighting="token_mean")
    gone = [row for row in options(known["grandchild"]) if row.value is None and row.is_component]
    assert [(row.path, row.origin) for row in gone] == [("penalties.kl", "from child")]


def test_steps_in_between_belong_to_the_recipe_that_was_made(known: dict[str, Recipe]) -> None:
    known["child"] = base.but(**{"surrogate.low": 0.3}).but(**{"surrogate.high": 0.5}).but(name="child")
    found = origins(known["child"])
    assert (found["surrogate.low"], found["surrogate.high"]) == ("own to child", "own to child")
    assert parent_of(known["child"]) == "base-of-tests"


def test_waivers_are_options_with_the_reason_they_waive(known: dict[str, Recipe]) -> None:
    known["child"] = base.but(**{"name": "child", "penalties.kl.estimator": "k1", "waivers": ("k1_as_loss",)})
    row = next(row for row in options(known["child"]) if row.path == "waivers.k1_as_loss")
    assert (row.value, row.origin) == ("waived", "own to child")
    assert "zero gradient" in row.meaning


@pytest.mark.parametrize("name", NAMES)
def test_every_option_can_be_set_by_its_path(name: str) -> None:
    """`but` with every value that is listed gives the recipe itself."""
    recipe = recipes.get(name)
    rows = [row for row in options(recipe) if not row.is_component and not row.path.startswith("waivers")]
    assert rows
    same = {row.path: row.value for row in rows}
    assert recipe.but(**same) == recipe
    assert all(row.meaning for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_origins_name_recipes_of_the_family(name: str) -> None:
    family = {member.name for member in about.lineage(recipes.get(name))}
    for row in options(recipes.get(name)):
        assert row.origin == "default" or row.origin.split(maxsplit=1)[1].removeprefix("to ") in family


def test_differences_are_those_of_the_values() -> None:
    other = base.but(**{"surrogate.low": 0.3, "penalties": ()})
    assert differences([base, other]) == {
        "surrogate.low": (0.1, 0.3),
        "penalties.kl": ("kl", ABSENT),
        "penalties.kl.coef": (0.1, ABSENT),
        "penalties.kl.estimator": ("k3_straight_through", ABSENT),
        "penalties.kl.to": ("reference", ABSENT),
        "penalties.kl.weighting": ("rollout_mean", ABSENT),
        "penalties.kl.weighting.unit": ("rollout", ABSENT),
        "reference": ("initial", ABSENT),
    }
    assert differences([base, base, base]) == {}


def test_the_method_of_a_preset() -> None:
    assert (name_method("grpo@trl"), name_method("grpo")) == ("grpo", "grpo")


# Formulas


@pytest.mark.parametrize("name", NAMES)
def test_every_component_of_every_recipe_has_a_formula(name: str) -> None:
    for part in recipes.get(name).components():
        if part.stage == "reference":
            continue
        assert part.latex().strip(), f"{part.stage} {part.kind} has no formula"
        assert "\\" not in _text(convert(part.latex())), part.latex()


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_of_a_recipe_is_set_and_read(name: str) -> None:
    lines = formula(recipes.get(name))
    assert lines[-1].left == r"\mathcal{L}"
    assert convert(align(lines)).count("<mtr>") == len(lines) + sum(convert(one.latex).count("<mtr>") for one in lines)
    for line in lines:
        text = write_unicode(line.latex)
        assert not re.search(r"[\\$&]|\(\)|  \)|\( ", text), text
        assert text.count("(") == text.count(")"), text
        assert text.count("{") == text.count("}"), text
    assert "A advantage" in legend(lines) or recipes.get(name).objective is not None


def _text(markup: str) -> str:
    return re.sub(r"<[^>]*>", "", markup)


def test_numbers_are_powers_of_ten() -> None:
    assert spell_powers(r"a+1e-06+2.5e-4+0.2+1e+3") == r"a+10^{-6}+2.5\cdot 10^{-4}+0.2+10^{3}"
    assert spell_powers("e^{-x}+3e") == "e^{-x}+3e"


def test_the_loss_of_grpo() -> None:
    said = {line.stage: write_unicode(line.latex) for line in formula(recipes.get("grpo"))}
    assert said["weighting"] == "wₙₜ = 1 / (N Lₙ)"
    assert said["surrogate"] == "gₙₜ = min(ρₙₜ Aₙₜ, clip(ρₙₜ, 0.8, 1.2) Aₙₜ)"
    assert said["loss"] == "ℒ = −∑ₙₜ wₙₜ gₙₜ + 0.04 ∑ₙₜ wₙₜ cᵏˡₙₜ"


def test_a_penalty_with_another_weight_names_its_own() -> None:
    recipe = base.but(**{"penalties.kl.weighting": TokenMean()})
    said = {line.stage: write_unicode(line.latex) for line in formula(recipe)}
    assert said["penalties"].endswith("wᵏˡₙₜ = 1/T")
    assert said["loss"] == "ℒ = −∑ₙₜ wₙₜ gₙₜ + 0.1 ∑ₙₜ wᵏˡₙₜ cᵏˡₙₜ"


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{R_n-\mu_g}{\sigma_g+10^{-6}}", "(Rₙ − μ_g) / (σ_g + 10⁻⁶)"),
        (r"\frac{1}{L_n}\sum_t x_{n,t}", "1/Lₙ · ∑ₜ xₙₜ"),
        (r"\frac{1}{N\,L_n}", "1 / (N Lₙ)"),
        (r"\tfrac12(\rho_{n,t}-1)^2", "1/2 · (ρₙₜ − 1)²"),
        (r"\frac{a}{\frac{b}{c}}", "a / (b/c)"),
        (r"-\max(-a,-b)", "−max(−a, −b)"),
        (r"\ell^{\theta}_{n,t}-\ell^{old}_{n,t}", "ℓᶿₙₜ − ℓᵒˡᵈₙₜ"),
        (r"\operatorname{sg}\left(\frac ab\right)A_{n,t}", "sg(a/b) Aₙₜ"),
        (r"\max_{m\in g}r_m", "max_{m∈g} rₘ"),
        (r"\sqrt{x}+\sqrt{x+1}", "√x + √(x + 1)"),
        (r"\left|g\right|+\lvert x\rvert", "|g| + |x|"),
        (r"\frac{1}{T_g}\,\frac{1}{2(G-1)}", "1/T_g · 1 / (2(G − 1))"),
        (r"\frac{4}{\tau}\,\operatorname{sigmoid}(\tau(\rho-1))", "4/τ · sigmoid(τ(ρ − 1))"),
        (r"\frac{1}{\exp(x)}+\frac{1}{|g|}+\frac{a}{(b+c)}", "1/exp(x) + 1/|g| + a/(b + c)"),
        (r"\sum_{t'}x_{n,t'}-f'", "∑ₜ′ xₙₜ′ − f′"),
        (r"0.5\,(1-\gamma\lambda)^l", "0.5 (1 − γ λ)ˡ"),
        (r"\frac{\binom{W-1}{3}}{\binom{G}{4}}+1", "C(W − 1, 3) / C(G, 4) + 1"),
        (r"H(\pi_\theta(\cdot\mid n,<t))", "H(π_θ(· ∣ n, <t))"),
        (r"\frac{R_n-\mu_{g(n)}}{\mu_{g(n)}}", "(Rₙ − μ_{g(n)}) / μ_{g(n)}"),
        (r"= \frac{1}{T}", "= 1/T"),
        (r"\leftarrow -\frac{A-B}{C}", "← −(A − B) / C"),
        (r"\delta_{n,t+1}", "δₙₜ₊₁"),
        (r"\hat\rho_n\bar R_g", "ρ̂ₙ R̄_g"),
        (r"a_{12,t}", "a_{12,t}"),
        (r"A\cdot\mathbf 1[A>0]", "A · 𝟏[A > 0]"),
        (r"\begin{cases}1&x>0\\0&\text{else}\end{cases}", "{1 if x > 0; 0 else}"),
    ],
)
def test_a_formula_in_the_terminal(latex: str, text: str) -> None:
    assert write_unicode(latex) == text


def test_what_the_parser_does_not_know_stays_as_it_is() -> None:
    assert write_unicode(r"\frac{a}{") == r"\frac{a}{"


# The explanations as files


@pytest.mark.parametrize("name", NAMES)
def test_the_explanation_is_the_golden_one(name: str) -> None:
    file = EXPLAINED / f"{name}.txt"
    assert file.is_file(), "run `python -m tests.recipes.golden`"
    assert explained(name) == file.read_text(encoding="utf-8"), "run `python -m tests.recipes.golden` and read the diff"


def test_no_golden_file_is_left_behind() -> None:
    assert {file.stem for file in EXPLAINED.glob("*.txt")} <= set(NAMES)
