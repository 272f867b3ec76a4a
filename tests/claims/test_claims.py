"""The claims themselves: rules that were fixed, every recipe spoken of, exact ones recomputed, the page in step with the code."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
import torch

from covey import recipes
from covey.errors import ConfigError
from covey.recipes.claims import every, find
from covey.recipes.claims.claim import AtLeast, Claim, Interval, Near, Positive
from covey.recipes.claims.page import write_page

torch.set_num_threads(1)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
EXACT = [claim for claim in every().values() if claim.seeds == 1]


def shipped() -> set[str]:
    """The recipes of this package: not presets of peers, not those of installed packages."""
    stems = {path.stem for path in Path(recipes.__file__).parent.glob("*.py")} - {"__init__"}
    values = [getattr(import_module(f"covey.recipes.{stem}"), stem, None) for stem in stems]
    return {value.name for value in values if isinstance(value, recipes.Recipe)}


# The rules


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9], "reproduced"),
        ([1.0, -1.1, 0.4], "not seen"),
        ([-1.0, -1.1, -0.9], "contradicted"),
        ([0.0], "not seen"),
        ([1e-3], "reproduced"),
        ([math.nan, 1.0], "not seen"),
    ],
)
def test_a_direction_is_judged_by_where_0_lies(values: list[float], verdict: str) -> None:
    assert Positive()(Interval.of(values)) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.01, 0.99, 1.0], "reproduced"),
        ([1.3, 0.6, 1.0], "not seen"),
        ([1.21, 1.19, 1.2], "contradicted"),
        ([0.7], "contradicted"),
        ([math.nan], "not seen"),
    ],
)
def test_a_number_is_judged_by_where_its_room_lies(values: list[float], verdict: str) -> None:
    assert Near(1, 0.1)(Interval.of(values)) == verdict


def test_what_is_not_to_be_lost_is_judged_by_what_may_be_lost() -> None:
    assert [AtLeast(-0.02)(Interval(0, low, high)) for low, high in ((-0.01, 0.5), (-0.03, 0.1), (-0.9, -0.03))] == [
        "reproduced", "not seen", "contradicted",
    ]  # fmt: skip


def test_the_interval_is_students() -> None:
    """Mean 2, std 1, n 3: 2 -+ 4.303 / sqrt 3."""
    found = Interval.of([1.0, 2.0, 3.0])
    assert (round(found.low, 4), round(found.high, 4)) == (round(2 - 4.303 / 3**0.5, 4), round(2 + 4.303 / 3**0.5, 4))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0], "1"),
        ([1e-17], "< 1e-12"),
        ([0.0], "0"),
        ([0.012354], "0.012354"),
        ([1.0, 1.0], "1"),
        ([1.0, 2.0], "1.5 [-4.85, 7.85]"),
    ],
)
def test_an_interval_is_written_with_what_is_known(values: list[float], text: str) -> None:
    assert str(Interval.of(values)) == text


def made(trial: Mapping[int, float], **changes: object) -> Claim:
    words = {"name": "made", "recipes": ("grpo",), "says": "So.", "paper": "None.", "measures": "it"}
    return Claim(**(words | {"trial": lambda seed: {"it": trial[seed], "seed": float(seed)}, "seeds": 4} | changes))


def test_a_claim_runs_each_seed_once_and_fewer_if_quick() -> None:
    claim = made({0: 1.0, 1: 2.0, 2: 3.0, 3: 2.0})
    whole, quick = claim.run(), claim.run(quick=True)
    assert (whole.seeds, whole.value.mean, whole.beside["seed"].mean) == (4, 2.0, 1.5)
    assert (quick.seeds, quick.value.mean, quick.verdict) == (3, 2.0, "not seen")
    assert whole.plain()["verdict"] == "reproduced"


# What is claimed


def test_every_recipe_has_a_claim() -> None:
    spoken = {name for claim in every().values() for name in claim.recipes}
    assert shipped() <= spoken, f"without a claim: {sorted(shipped() - spoken)}"
    assert spoken <= shipped(), f"claims about what does not ship: {sorted(spoken - shipped())}"


def test_every_claim_says_all_of_it() -> None:
    for claim in every().values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.name)
        assert (claim.says[-1], claim.paper[-1]) == (".", "."), claim.name
        assert claim.seeds == 1 or claim.seeds >= 3, f"{claim.name}: too few seeds for an interval"


def test_names_are_of_claims_or_recipes() -> None:
    assert [claim.name for claim in find(["kl-k1-loss"])] == ["kl-k1-loss"]
    assert {"clip-higher-rise", "clip-higher-entropy"} <= {claim.name for claim in find(["dapo"])}
    assert find([]) == list(every().values())
    with pytest.raises(ConfigError, match="Did you mean 'dapo'"):
        find(["dapoo"])


# The exact ones


@pytest.mark.parametrize("claim", EXACT, ids=lambda claim: claim.name)
def test_what_is_exact_is_reproduced(claim: Claim) -> None:
    assert claim.run().verdict == "reproduced"


def numbers(name: str) -> Mapping[str, float]:
    return every()[name].trial(0)


def test_golden_numbers() -> None:
    """From the closed forms that the papers' objectives have."""
    drift = numbers("length-division-drift")
    assert [round(value, 6) for value in list(drift.values())[1:]] == [0.193147, 0.155843, 0.059837]
    outlier = numbers("outlier-growth")
    assert (round(outlier["grpo"], 4), round(outlier["gmpo"], 6)) == (20.0855, round(math.exp(3 / 64), 6))
    assert round(numbers("no-dropped-tokens")["slope at rho = 6"], 9) == 5
    assert round(numbers("token-form-equality")["per turn"], 6) == 0.356313
    assert round(numbers("divergence-mask-frequent")["clip"], 3) == 0.198
    assert round(numbers("kl-k3-loss")["distance to the reverse gradient"], 6) == 0.053407


def test_distinct_advantages_are_as_many_as_the_paper_counts() -> None:
    found = numbers("distinct-advantages")
    assert [found[name] for name in ("sum", "sum without std", "apart")] == [7, 10, 14]
    assert [found[f"{name}, G = 5"] for name in ("sum", "sum without std", "apart")] == [11, 15, 26]


# The page


def test_the_page_is_in_step_with_the_claims() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for claim in every().values():
        assert f"\n## {claim.name}\n" in text, f"docs/claims.md says nothing of {claim.name}: run `make claims`"
        for words in (claim.says, claim.paper, claim.measures, claim.note):
            assert words in text, f"docs/claims.md: {claim.name} has other words: run `make claims`"


def test_the_page_shows_what_was_found() -> None:
    lost = made({0: -1.0, 1: -2.0, 2: -1.5}, seeds=3, note="Small.").run()
    page = write_page([lost, every()["kl-k1-loss"].run()])
    assert "2 claims: 1 reproduced, 0 not seen, 1 contradicted." in page
    assert "| [grpo](recipes/grpo.md) | [made](#made) | -1.5 [" in page
    assert "**contradicted** |" in page
    assert "- Note: Small." in page


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_rerun_gives_the_verdicts_of_the_page() -> None:
    """Everything again, all seeds, as a command: the verdicts are those that are written."""
    text = PAGE.read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| [^|]*\| \[([\w-]+)\]\(#[^|]*\|.*\| \**([a-z ]+?)\** \|$", text, re.M))
    done = subprocess.run(
        [sys.executable, "-m", "covey", "claims", "--json"], capture_output=True, text=True, check=True
    )
    assert {claim["name"]: claim["verdict"] for claim in json.loads(done.stdout)} == written
