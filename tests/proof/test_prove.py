"""`covey prove` finds what is wrong: recipes with one planted mistake each are named by the property that it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Live
from covey.cli import main
from covey.config.text import write
from covey.errors import ConfigError
from covey.proof.properties import PROPERTIES
from covey.proof.prove import Verdict, prove
from covey.recipes.recipe import Recipe
from covey.registry import Component, State, component
from covey.stages.advantages import Advantage
from covey.stages.masked import broadcast, masked
from covey.stages.surrogates import Surrogate
from tests.stages import coupled
from tests.stages.contract import BASE

SEEDS = range(3)


class Planted(Surrogate):
    """gain = rho A, before the mistake."""

    def __call__(self, log_ratio: Tensor, live: Live, batch: Credited) -> Tensor:
        """The gain [N T]."""
        return self.gain(
            log_ratio, live, masked(log_ratio.exp() * batch.advantage.to(log_ratio.dtype), batch.mask), batch
        )

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """The mistake."""
        return plain


@component("surrogate", "test_forgets_couples")
class ForgetsCouples(coupled.StepCoupled):
    """Depends on the whole step and does not say so."""

    couples = "row"

    def exemptions(self) -> dict[str, str]:
        """Its mistake is another one."""
        return {"first_step": "multiplies by the step's entropy"}


@component("surrogate", "test_slice_mean")
class SliceMean(Planted):
    """What most trainers did: a mean over the tokens at hand."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """Divided by the tokens of the slice."""
        return plain / batch.mask.sum().clamp(min=1)


@component("surrogate", "test_width")
class Width(Planted):
    """A mean over positions, padded ones too."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """Divided by the padded width."""
        return plain * 5 / max(batch.mask.shape[1], 1)


@component("surrogate", "test_late_mask")
class LateMask(Planted):
    """Masks by a product, after the arithmetic."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """0 * inf at padding."""
        return plain + (live.logp - live.logp.detach()).exp() * 0 * batch.mask


@component("surrogate", "test_steep")
class Steep(Planted):
    """Twice the slope."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """Doubled."""
        return 2 * plain


@component("surrogate", "test_square")
class Square(Planted):
    """Reads logp itself where it should read a clamped ratio."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """The gradient of the square at -inf is infinite."""
        return plain + 1e-3 * masked(
            batch.advantage.to(plain.dtype) * (live.logp - live.logp.detach()).square(), batch.mask
        )


_SEEN: list[int] = []


@component("surrogate", "test_hidden_memory")
class HiddenMemory(Planted):
    """Remembers outside of its state."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """Grows from call to call."""
        _SEEN.append(1)
        return plain * len(_SEEN)


@component("surrogate", "test_breaks_down")
class BreaksDown(Planted):
    """Cannot take a step without rows."""

    def gain(self, log_ratio: Tensor, live: Live, plain: Tensor, batch: Credited) -> Tensor:
        """The first row is not always there."""
        return plain + 0 * float(plain[0].detach().sum())


@component("advantage", "test_raw")
class Raw(Advantage):
    """The reward itself: equal rewards teach."""

    def __call__(self, batch: Batch) -> Tensor:
        """The advantage [N T]."""
        return broadcast(masked(batch.columns["score"].double(), batch.keep.statistics), batch.mask)


@component("advantage", "test_first_row")
class FirstRow(Advantage):
    """The first row is the baseline of all: a position, not an id."""

    def __call__(self, batch: Batch) -> Tensor:
        """The advantage [N T]."""
        score = masked(batch.columns["score"].double(), batch.keep.statistics)
        return broadcast(masked(score - score[:1].sum(), batch.keep.statistics), batch.mask)


@component("advantage", "test_unsafe_std")
class UnsafeStd(Advantage):
    """Divides by the std of what was scored, whatever that is."""

    def __call__(self, batch: Batch) -> Tensor:
        """The advantage [N T]."""
        score = batch.columns["score"].double()
        return broadcast((score - score.nanmean()) / score.std(), batch.mask)


@component("advantage", "test_tensor_state")
class TensorState(Advantage):
    """Keeps a tensor where plain data belongs."""

    def initial(self) -> State:
        """A tensor."""
        return {"seen": torch.zeros(1)}

    def __call__(self, batch: Batch, *, state: State) -> tuple[Tensor, State]:
        """The advantage [N T] and the state."""
        return torch.zeros(batch.mask.shape, dtype=torch.float64), state


WRONG: dict[str, dict[str, Any]] = {
    "forgets_couples": {"surrogate": ForgetsCouples()},
    "slice_mean": {"surrogate": SliceMean()},
    "width": {"surrogate": Width()},
    "late_mask": {"surrogate": LateMask()},
    "steep": {"surrogate": Steep()},
    "square": {"surrogate": Square()},
    "hidden_memory": {"surrogate": HiddenMemory()},
    "breaks_down": {"surrogate": BreaksDown()},
    "raw": {"advantage": Raw()},
    "first_row": {"advantage": FirstRow()},
    "unsafe_std": {"advantage": UnsafeStd()},
    "tensor_state": {"advantage": TensorState()},
}
NAMED = {
    "forgets_couples": "slices",
    "slice_mean": "slices",
    "width": "padding",
    "late_mask": "garbage",
    "steep": "first_step",
    "square": "ruled_out_token",
    "hidden_memory": "repeats",
    "breaks_down": "nothing",
    "raw": "equal_rewards",
    "first_row": "order",
    "unsafe_std": "group_of_one",
    "tensor_state": "repeats",
}


def wrong(name: str) -> Recipe:
    """A recipe with one mistake."""
    return BASE.but(name=f"wrong_{name}", **WRONG[name])


def broken(verdicts: list[Verdict]) -> dict[str, Verdict]:
    """What fails, by property."""
    return {verdict.property: verdict for verdict in verdicts if verdict.outcome == "fails"}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_by_its_property(name: str) -> None:
    found = broken(prove(wrong(name), SEEDS))
    assert NAMED[name] in found, found
    verdict = found[NAMED[name]]
    assert verdict.reason.startswith(f"seed {verdict.seed}: ")
    assert "\n" not in verdict.reason


@pytest.mark.parametrize("name", ["forgets_couples", "slice_mean", "width", "steep", "raw", "first_row"])
def test_a_mistake_is_told_from_others(name: str) -> None:
    """What breaks along with it is what it really breaks too: sums over slices and over ranks, width and first step."""
    also = {"slices": {"ranks", "padding", "float32", "first_step", "ruled_out_token"}, "order": {"equal_rewards"}}
    found = set(broken(prove(wrong(name), SEEDS)))
    assert found - {NAMED[name]} <= also.get(NAMED[name], set())


def test_the_base_of_the_wrong_ones_is_right() -> None:
    plain = BASE.but(surrogate=_Plain())
    assert broken(prove(plain, SEEDS)) == {}


@component("surrogate", "test_plain")
class _Plain(Planted):
    """No mistake."""


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_proven(name: str) -> None:
    verdicts = prove(recipes.get(name), range(2))
    assert broken(verdicts) == {}
    assert [verdict.property for verdict in verdicts] == list(PROPERTIES)
    assert sum(verdict.cases for verdict in verdicts) > 100


@component("surrogate", "test_asks_too_much")
class _AsksTooMuch(Planted):
    """Wants to be let off what always has to hold."""

    why: ClassVar[str] = "it is hard"
    of: str = Field(default="slices", description="the property")

    def exemptions(self) -> dict[str, str]:
        """Not allowed."""
        return {self.of: self.why}


def test_only_two_properties_can_be_exempted() -> None:
    with pytest.raises(
        ConfigError, match=r"exempts itself from 'slices'. Only these can be exempted: equal_rewards, first"
    ):
        prove(BASE.but(surrogate=_AsksTooMuch()), SEEDS)
    verdicts = {v.property: v for v in prove(BASE.but(surrogate=_AsksTooMuch(of="first_step")), SEEDS)}
    assert verdicts["first_step"].outcome == "exempt"
    assert verdicts["first_step"].reason == "it is hard (it holds here all the same)"
    honest = {v.property: v for v in prove(coupled.coupled(), SEEDS)}["first_step"]
    assert (honest.outcome, honest.reason) == ("exempt", "multiplies by the step's entropy")


# The command


def test_the_command_shows_every_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "grpo", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROPERTIES)
    assert out.count("✓") == len(PROPERTIES) - 1
    assert "no component couples rows" in out


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "grpo", "dr_grpo", "--seeds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == ["grpo", "dr_grpo"]
    slices = found[0]["properties"][0]
    assert slices["property"] == "slices"
    assert slices["outcome"] == "holds"
    assert 0 <= slices["worst"] <= 1e-9
    assert slices["cases"] == 3


def test_a_recipe_in_a_file_a_module_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(write({"recipe": {**recipes.get("dapo").plain(), "name": "mine"}}))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text(write({"recipe": recipes.get("rloo").plain()}))
    assert main(["prove", str(file), "covey.recipes.grpo:grpo", str(folder), "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine\n")
    assert "\ngrpo\n" in out
    assert "\nrloo\n" in out


@pytest.mark.parametrize(
    ("word", "code", "line"),
    [
        ("reinforces", 2, "recipe: there is no recipe 'reinforces'. Did you mean 'reinforce'?"),
        ("absent.yaml", 66, "absent.yaml: cannot be read (No such file or directory). Give a YAML file."),
        ("covey.recipes.grpo:gpro", 2, "covey.recipes.grpo has no recipe 'gpro'. Did you mean 'grpo'?"),
        ("no_such_module:x", 66, "no_such_module cannot be imported"),
        (":x", 66, ":x: cannot be imported (Empty module name)"),
        (".mine:x", 66, ".mine cannot be imported"),
    ],
)
def test_mistakes(word: str, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", word]) == code
    assert line in capsys.readouterr().err


def test_a_failure_is_one_line_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", f"{__name__}:WRONG_MEAN", "--seeds", "2"]) == 76
    shown = capsys.readouterr()
    assert "x  slices" in shown.out
    assert shown.err.startswith("error: wrong_slice_mean: slices: seed 0: the gradient in slices is off by ")
    assert "declare `couples`" in shown.err
    assert shown.err.count("\n") == 1


WRONG_MEAN = wrong("slice_mean")


def test_every_property_has_words() -> None:
    for prop in PROPERTIES.values():
        assert prop.sentence
        assert prop.hint.endswith(".")
        assert prop.cases.__doc__
    assert issubclass(Planted, Component)
