"""What to turn when a run needs too much memory: single settings, with what each of them saves at the worst moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from covey import recipes
from covey.config import RunConfig
from covey.config.values import LoraConfig
from covey.preflight.plan import Forecast, MemoryPlan, Question, fullest_slice

WORTH = 0.01
"""A knob that saves less than this share of the peak is not shown."""
RANK = 16


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
    for setting, price, changed in _options(question, plan):
        other = forecast.answer(changed)
        saved = plan.peak - other.peak
        if saved > WORTH * plan.peak:
            found.append(Knob(setting, other.peak, saved, price, other.fits))
    return sorted(found, key=lambda knob: -knob.saved)


def turn_until_fits(forecast: Forecast, question: Question, plan: MemoryPlan) -> tuple[list[str], MemoryPlan]:
    """Knobs one after another, the best each time, until the run fits or nothing helps any more; the last plan."""
    turned: list[str] = []
    while not plan.fits and len(turned) < 4:
        options = [(setting, changed) for setting, _, changed in _options(question, plan)]
        answers = [(forecast.answer(changed), setting, changed) for setting, changed in options]
        best = min(answers, key=lambda answer: answer[0].peak, default=None)
        if best is None or best[0].peak > (1 - WORTH) * plan.peak:
            break
        plan, question = best[0], best[2]
        turned.append(best[1])
    return turned, plan


Option = tuple[str, str, Question]


def _options(question: Question, plan: MemoryPlan) -> Iterator[Option]:
    """Knobs that can matter in the worst phase, with their price in words."""
    config, phase = question.config, plan.worst.name
    if phase == "update":
        yield from _slice_options(question)
    if phase in ("sample", "evaluate"):
        yield from _wave_options(question, phase)
    if phase != "load":
        yield from _model_options(question)
    if "ref_logp" in config.recipe.needs() and not (other := recipes.get(recipes.DEFAULT)).needs():
        changed = replace(question, config=config.model_copy(update={"recipe": other}))
        yield f"recipe={other.name}", "another objective, which needs no reference", changed


def _slice_options(question: Question) -> Iterator[Option]:
    """Knobs of forward and backward."""
    config = question.config
    shape, _ = fullest_slice(question)
    tokens = shape.groups * shape.prompt + shape.rows * shape.response
    if shape.rows > 1:
        half = tokens // 2
        yield _option(question, "engines.tokens_per_slice", half, "more slices; nothing else changes")
    if not config.engines.gradient_checkpointing:
        yield _option(question, "engines.gradient_checkpointing", True, "a third more time in the gradient")
    yield from _shorter(question)


def _wave_options(question: Question, phase: str) -> Iterator[Option]:
    """Knobs of sampling."""
    config = question.config
    if config.engines.sampler_rows > 16:
        yield _option(question, "engines.sampler_rows", max(16, config.engines.sampler_rows // 2), "slower sampling")
    if phase == "evaluate" and (most := max(question.problems, default=0)) > 1:
        made = _option(question, "budget.eval_problems", most // 2, "wider intervals")
        problems = tuple(min(count, most // 2) for count in question.problems)
        yield made[0], made[1], replace(made[2], problems=problems)
    yield from _shorter(question)


def _shorter(question: Question) -> Iterator[Option]:
    most = question.config.budget.sampling.max_tokens
    if most > 16:
        setting, price, changed = _option(question, "budget.sampling.max_tokens", most // 2, "longer responses are cut")
        yield setting, price, replace(changed, response=min(question.response, most // 2))


def _model_options(question: Question) -> Iterator[Option]:
    """Knobs of weights, gradients and moments."""
    model = question.config.model
    if model.dtype != "bfloat16":
        yield _option(question, "model.dtype", "bfloat16", "loses small steps of the optimizer")
    if model.lora is None:
        text = f"model.lora.rank={RANK}"
        changed = _changed(question.config, "model.lora", LoraConfig(rank=RANK))
        yield text, "trains adapters only; needs covey[peft]", replace(question, config=changed)
    elif model.quantize is None:
        yield _option(question, "model.quantize", "nf4", "rounds the frozen weights; needs covey[quantize]")


def _option(question: Question, key: str, value: Any, price: str) -> Option:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{key}={text}", price, replace(question, config=_changed(question.config, key, value))


def _changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    """The configuration with one value replaced, which has to be a valid one."""

    def inside(part: Any, names: Iterable[str]) -> Any:
        name, *rest = names
        return part.model_copy(update={name: inside(getattr(part, name), rest) if rest else value})

    changed: RunConfig = inside(config, key.split("."))
    return changed
