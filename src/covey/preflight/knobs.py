"""What to turn when a run needs too much memory: single settings, with what each of them saves at the worst moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from covey import recipes
from covey.config import RunConfig
from covey.config.values import LoraConfig
from covey.errors import CoveyError
from covey.preflight.plan import Forecast, MemoryPlan, Question, fullest_slice

WORTH = 0.01
"""A knob that saves less than this share of the peak is not shown."""
RANK = 16
"""Of the adapters that are proposed."""
SHORTEST = 16
"""Rows and tokens are not halved below this."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting as it is written on the command line, the peak with it, what it saves, and what it costs."""

    setting: str
    peak: int
    saved: int
    price: str
    fits: bool | None

    def plain(self) -> dict[str, Any]:
        """The knob as plain data."""
        return asdict(self)


def turn_knobs(forecast: Forecast, question: Question, plan: MemoryPlan) -> list[Knob]:
    """All knobs that lower the peak, the one that saves most first; each is the plan of the same run with it alone."""
    found = []
    for option in _options(question, plan):
        try:
            other = forecast.answer(option.turn(question))
        except CoveyError:  # it needs a library that is not there, or does not go with this model
            continue
        saved = plan.peak - other.peak
        if saved > WORTH * plan.peak:
            found.append(Knob(option.setting, other.peak, saved, option.price, other.fits))
    return sorted(found, key=lambda knob: -knob.saved)


def turn_until_fits(
    forecast: Forecast, question: Question, plan: MemoryPlan, knobs: Sequence[Knob]
) -> tuple[list[str], MemoryPlan]:
    """Knobs one on top of the other, in their order, until the run fits; those that were turned, and the last plan."""
    options = {option.setting: option for option in _options(question, plan)}
    turned: list[str] = []
    for knob in knobs:
        if plan.fits:
            break
        changed = options[knob.setting].turn(question)
        other = forecast.answer(changed)
        if other.peak < (1 - WORTH) * plan.peak:
            plan, question = other, changed
            turned.append(knob.setting)
    return turned, plan


@dataclass(frozen=True, slots=True)
class Option:
    """A knob before it is known what it saves. `response` and `problems` are what becomes of these with it."""

    key: str
    value: Any
    price: str
    word: str = ""
    response: int | None = None
    problems: int | None = None

    @property
    def setting(self) -> str:
        """As it is written on the command line."""
        value = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return self.word or f"{self.key}={value}"

    def turn(self, question: Question) -> Question:
        """The question with this knob turned."""
        most = self.problems
        return replace(
            question,
            config=_changed(question.config, self.key, self.value),
            response=question.response if self.response is None else min(question.response, self.response),
            problems=question.problems if most is None else tuple(min(count, most) for count in question.problems),
        )


def _options(question: Question, plan: MemoryPlan) -> Iterator[Option]:
    """Knobs that can matter in the worst phase, with their price in words."""
    phase, config = plan.worst.name, question.config
    if phase == "update":
        yield from _slice_options(question)
    if phase in ("sample", "evaluate"):
        yield from _wave_options(question, phase)
    if phase in ("sample", "evaluate", "update") and (most := config.budget.sampling.max_tokens) > SHORTEST:
        half = most // 2
        yield Option("budget.sampling.max_tokens", half, "longer responses are cut", response=half)
    yield from _model_options(question)
    if "ref_logp" in config.recipe.needs() and not (other := recipes.get(recipes.DEFAULT)).needs():
        yield Option("recipe", other, "another objective, which needs no reference", word=f"recipe={other.name}")


def _slice_options(question: Question) -> Iterator[Option]:
    """Knobs of forward and backward."""
    shape, _ = fullest_slice(question)
    if shape.rows > 1:
        yield Option("engines.tokens_per_slice", shape.tokens // 2, "more slices; nothing else changes")
    if not question.config.engines.gradient_checkpointing:
        yield Option("engines.gradient_checkpointing", True, "a third more time in the gradient")


def _wave_options(question: Question, phase: str) -> Iterator[Option]:
    """Knobs of sampling."""
    rows, problems = question.config.engines.sampler_rows, max(question.problems, default=0)
    if rows > SHORTEST:
        yield Option("engines.sampler_rows", rows // 2, "slower sampling; nothing else changes")
    if phase == "evaluate" and problems > 1:
        half = problems // 2
        yield Option("budget.eval_problems", half, "evaluations are less certain", problems=half)


def _model_options(question: Question) -> Iterator[Option]:
    """Knobs of weights, gradients and moments."""
    model = question.config.model
    if model.dtype != "bfloat16":
        yield Option("model.dtype", "bfloat16", "loses small steps of the optimizer")
    if model.lora is None:
        lora = LoraConfig(rank=RANK)
        price = "trains adapters only; needs covey[peft]"
        yield Option("model.lora", lora, price, word=f"model.lora.rank={RANK}")
    elif model.quantize is None:
        yield Option("model.quantize", "nf4", "rounds the frozen weights; needs covey[quantize]")


def _changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    """The configuration with one value replaced, which has to be a valid one."""

    def inside(part: Any, names: Iterable[str]) -> Any:
        name, *rest = names
        return part.model_copy(update={name: inside(getattr(part, name), rest) if rest else value})

    changed: RunConfig = inside(config, key.split("."))
    return changed
