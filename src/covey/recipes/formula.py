"""The formula of a recipe, assembled from what its stages say of themselves, as lines of LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from covey.recipes.recipe import Recipe
from covey.registry import Component

SCORES = {"row": "R_n", "component": "R^k_n", "token": "R_{n,t}"}
INDEX = "_{n,t}"
_POWER = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)e([+-]?)0*(\d+)(?!\w)")
SYMBOLS = {
    r"r\^": "r reward component",
    r"R[_^]": "R score",
    r"A_\{n": "A advantage",
    r"\\(mu|sigma)_": "μ, σ mean and std of the scores (of a prompt's group g)",
    r"\\pi\^": "π probability of a token",
    r"\\ell\^\{?\\theta": "ℓᶿ log-probability of a token",
    r"\\ell\^\{(\\mathrm\{)?old": "ℓᵒˡᵈ at the start of the step",
    r"\\ell\^\{(\\mathrm\{)?samp": "ℓˢᵃᵐᵖ when it was sampled",
    r"\\ell\^\{(\\mathrm\{)?ref": "ℓʳᵉᶠ under the reference",
    r"(?<![A-Za-z])x_\{": "x log-ratio, ρ ratio",
    r"L_n": "L tokens of a rollout",
    r"(?<![A-Za-z])N(?![A-Za-z])": "N rollouts",
    r"(?<![A-Za-z])B(?![A-Za-z])": "B groups",
    r"(?<![A-Za-z])G(?![A-Za-z])": "G rollouts of a group",
    r"W_g": "W wrong ones of them",
    r"(?<![A-Za-z])T(?![A-Za-z_])": "T tokens of the step",
    r"(?<![A-Za-z])T_g": "T_g tokens of the group",
    r"(?<![A-Za-z])C(?![A-Za-z])": "C token budget of a response",
    r"(?<![A-Za-z])o_": "o outcome, one reward component",
    r"g_\{n": "g gain",
    r"w[_^]": "w weight",
    r"u_\{n": "u correction",
    r"c\^": "c cost",
    r"V[_^]": "V value that the critic expects",
    r"operatorname\{sg\}": "sg without gradient",
}
"""Pattern in LaTeX -> what the symbol means, in the words of a terminal."""


@dataclass(frozen=True, slots=True)
class Line:
    """One definition or condition in LaTeX, and the field of the recipe that it belongs to."""

    stage: str
    left: str
    sign: str
    right: str

    @property
    def latex(self) -> str:
        """The whole line."""
        return f"{self.left} {self.sign} {self.right}"


def formula(recipe: Recipe) -> tuple[Line, ...]:
    """The definitions in the order in which they are evaluated, and the loss last."""
    return tuple(Line(stage, left, sign, spell_powers(right)) for stage, left, sign, right in _lines(recipe))


def align(lines: Sequence[Line]) -> str:
    """The lines as one display of LaTeX, each on a line of its own."""
    rows = [rf"{line.left} &{line.sign} {line.right}" for line in lines]
    return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


def legend(lines: Sequence[Line]) -> str:
    """What the symbols of a formula mean."""
    text = " ".join(line.latex for line in lines)
    return "; ".join(("n rollout, t token", *(said for mark, said in SYMBOLS.items() if re.search(mark, text))))


def spell_powers(latex: str) -> str:
    """Numbers such as 1e-06 as powers of ten."""

    def power(found: re.Match[str]) -> str:
        digits, sign, exponent = found.groups()
        ten = f"10^{{{sign.replace('+', '')}{exponent}}}"
        return ten if float(digits) == 1 else rf"{digits}\cdot {ten}"

    return _POWER.sub(power, latex)


def _lines(recipe: Recipe) -> Iterator[tuple[str, str, str, str]]:
    for part in recipe.admit:
        yield "admit", "g", r"\text{ enters if }", _say(part)
    score = SCORES[getattr(recipe.mix, "per", "row")]
    yield "mix", score, "=", _say(recipe.mix) + _terms(recipe.mix)
    for part in recipe.filters:
        yield "filters", "n", r"\text{ counts if }", _say(part)
    yield "advantage", f"A{INDEX}", "=", _say(recipe.advantage)
    for part in recipe.shapers:
        yield "shapers", f"A{INDEX}", r"\leftarrow", _say(part)
    if recipe.corrections:
        yield "corrections", f"u{INDEX}", "=", r" \cdot ".join(_say(part) for part in recipe.corrections)
    whole = recipe.objective
    if whole is None or "w_{" in whole.latex():
        yield "weighting", f"w{INDEX}", "=", _say(recipe.weighting)
    if whole is not None:
        yield "objective", r"\mathcal{L}", "=", _say(whole)
        return
    if recipe.ratio is not None:
        yield "ratio", f"x{INDEX}", "=", rf"{_say(recipe.ratio)},\quad \rho{INDEX} = e^{{x{INDEX}}}"
    elif any(f"x{INDEX}" in text or r"\rho" in text for text in _live(recipe)):
        yield (
            "ratio",
            f"x{INDEX}",
            "=",
            rf"\ell^{{\theta}}{INDEX}-\ell^{{old}}{INDEX},\quad \rho{INDEX} = e^{{x{INDEX}}}",
        )
    if recipe.surrogate is not None:
        yield "surrogate", f"g{INDEX}", "=", _say(recipe.surrogate)
    for part in recipe.penalties:
        yield "penalties", _cost(part), "=", _say(part) + _own_weight(recipe, part)
    if recipe.critic is not None:
        yield "critic", r"\mathcal{L}_V", "=", _say(recipe.critic)
    yield "loss", r"\mathcal{L}", "=", _loss(recipe)


def _live(recipe: Recipe) -> Iterator[str]:
    """What surrogate and penalties say."""
    yield from (_say(part) for part in (*recipe.parts("surrogate"), *recipe.penalties))


def _terms(mix: Component) -> str:
    """Shaping terms that the mix does not write itself."""
    terms = [_say(part) for part in getattr(mix, "shaping", ())]
    return "".join(f" + {term}" for term in terms if term not in mix.latex())


def _loss(recipe: Recipe) -> str:
    factor = rf"w{INDEX}\,u{INDEX}\,g{INDEX}" if recipe.corrections else rf"w{INDEX}\,g{INDEX}"
    terms = [rf"-\sum_{{n,t}} {factor}"]
    for part in recipe.penalties:
        weight = f"w{INDEX}" if not _own_weight(recipe, part) else _cost(part).replace("c", "w", 1)
        terms.append(rf" + {getattr(part, 'coef', 1):g}\sum_{{n,t}} {weight}\,{_cost(part)}")
    return "".join([*terms, r" + \mathcal{L}_V" if recipe.joint_critic is not None else ""])


def _cost(part: Component) -> str:
    return rf"c^{{\mathrm{{{_word(part)}}}}}{INDEX}"


def _own_weight(recipe: Recipe, part: Component) -> str:
    """The definition of a penalty's weight; empty where it is the weight of the gain."""
    weighting = getattr(part, "weighting", recipe.weighting)
    if weighting == recipe.weighting and not recipe.filters:
        return ""
    return rf",\quad {_cost(part).replace('c', 'w', 1)} = {_say(weighting)}"


def _say(part: Component) -> str:
    return part.latex().strip() or rf"\text{{{part.kind.replace('_', ' ')}}}"


def _word(part: Component) -> str:
    return part.kind.replace("_", " ")
