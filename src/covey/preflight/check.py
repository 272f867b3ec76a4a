"""Everything that can be known of a run before its first step, without loading weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from covey.engines.chat import Chat
from covey.errors import DataError
from covey.preflight.audit import audit_reward
from covey.preflight.batch import check_batch
from covey.preflight.data import check_data, gather
from covey.preflight.finding import Finding
from covey.preflight.machine import gib
from covey.preflight.reward import judge
from covey.preflight.template import TemplateReport, has_turns, lint_template
from covey.preflight.words import Words, open_words
from covey.recipes.rules import shares_gain
from covey.rewards.pool import Isolated, Limits

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.preflight.data import Rows


LARGEST = 3
"""Reasons for memory that the line of the plan names."""


def check_run(config: RunConfig) -> list[Finding]:
    """Data, template, reward, recipe, batch and plan of a run, in this order.

    Raises the one-line errors of what cannot be looked at: a model or a file that is not there, rows that are no rows; and of
    what no training can use.
    """
    config.check_engines()
    task: Any = config.task
    scored = config.reward if config.reward is not None else task.reward
    rows = gather(task, config.budget.seed)
    if not rows.train:
        raise DataError("task", "it holds no rows to train on", "Give more rows, or a smaller task.held_share.")
    own = config.model
    chat = Chat(system=own.system, template_kwargs=own.chat_template_kwargs, thinking=own.thinking)
    words = open_words(own.path, chat)
    limits = Limits(
        workers=config.scoring.workers, timeout_s=config.scoring.timeout_s, memory_mb=config.scoring.memory_mb
    )
    with Isolated(scored, limits) as reward:
        audit = audit_reward(task, reward=reward, seed=config.budget.seed, encode=words.encode)
    report = lint_template(words.tokenizer, words.stop_ids, variables=own.chat_template_kwargs)
    return [
        *check_data(rows, words, config),
        *judge_template(report, words, config, rows),
        *judge(audit, name_reward(config), config),
        *check_recipe(config),
        *check_batch(config, rows),
        check_plan(config),
    ]


def name_reward(config: RunConfig) -> str:
    """What the run's reward is called in a line."""
    reward: Any = config.reward if config.reward is not None else config.task.reward  # type: ignore[attr-defined]
    function = getattr(reward, "function", None)
    return str(function).rpartition("/")[2] if function else str(getattr(reward, "kind", type(reward).__name__))


def judge_template(report: TemplateReport, words: Words, config: RunConfig, rows: Rows) -> Iterator[Finding]:
    """What a template does, and which of it matters to this run."""
    stops = ", ".join(f"{name} ({stop})" for name, stop in zip(report.stops, report.stop_ids, strict=True))
    if not report.exists:
        yield Finding("template", "ok", f"the model has no chat template: texts stand as they are; stops at {stops}")
        return
    history = any(has_turns(prompt.messages) for prompt in rows.all)
    if report.append_only:
        kept = "append-only, with and without thoughts"
    else:
        kept = "not append-only" if report.diverges else "append-only, but takes thoughts out of earlier turns"
    yield Finding("template", "ok", f"its own chat template, {kept}; stops at {stops}")
    diverges = report.diverges or report.diverges_thinking
    if diverges and history:
        right = "Give rows without replies of the assistant, or a template that leaves the past as it was."
        yield Finding("template", "warn", f"the past is rewritten: {diverges}", right)
    asks_system = config.model.system or any(m.role == "system" for prompt in rows.all for m in prompt.messages)
    if report.system and asks_system:
        yield Finding(
            "template", "bad", f"it has no place for a system message: {report.system}", "Write it into the prompt."
        )
    if not report.generation_prompt:
        yield Finding(
            "template", "warn", "nothing opens the model's turn", "Take a template with add_generation_prompt."
        )
    if not report.closes:
        found = f"it closes a reply with {report.closed_by!r}, which none of the stop tokens is in"
        right = (
            "Responses would run on to max_tokens: set eos_token_id in generation_config.json, or budget.sampling.stop."
        )
        yield Finding("template", "warn", found, right)
    if report.bos_written > 1:
        line = f"it writes {report.bos_written} BOS tokens; a run keeps {report.bos}"
        yield Finding("template", "ok" if report.bos == 1 else "warn", line, "Take bos_token out of the template.")


def check_recipe(config: RunConfig) -> Iterator[Finding]:
    """The method, and what it was asked not to be refused for; what is refused without waiver never gets here."""
    recipe = config.recipe
    needs = ", ".join(sorted(recipe.needs()))
    line = f"{recipe.name}, refused for nothing" + (f"; needs {needs}" if needs else "")
    if recipe.waivers:
        yield Finding(
            "recipe", "warn", f"{recipe.name}; waived: {', '.join(recipe.waivers)}", "covey recipes explain tells why."
        )
    else:
        yield Finding("recipe", "ok", line)
    if config.budget.steps_per_batch == 1 and shares_gain(recipe) and getattr(recipe.ratio, "anchor", "") == "old":
        found = "one optimizer step per batch: all ratios are 1, one per response changes nothing"
        yield Finding("recipe", "warn", found, "budget.optimizer_steps_per_pass=4")
    samples = config.budget.samples_per_prompt
    for part in recipe.filters:
        if samples <= getattr(part, "smallest", 0):
            found = f"{samples} samples per prompt: filter {part.kind} keeps them all"
            yield Finding("recipe", "warn", found, f"budget.samples_per_prompt={2 * samples}")


def check_plan(config: RunConfig) -> Finding:
    """Whether the run fits into memory, by the estimate of `covey plan`."""
    from covey.preflight.plan import plan_memory

    plan = plan_memory(config)
    terms = sorted(plan.worst.terms, key=lambda term: -term.bytes)[:LARGEST]
    told = ", ".join(f"{term.name} {gib(term.bytes)}" for term in terms)
    memory = plan.memory
    line = f"peak {gib(plan.peak)} in {plan.worst.name} ({told})"
    right = "covey plan, with the same settings, lists what to turn and what it saves."
    if memory.total is not None and plan.peak > memory.total:
        return Finding("plan", "bad", f"{line}: this {memory.limit} has {gib(memory.total)}", right)
    if memory.available is None:
        return Finding("plan", "ok", f"{line}; how much is free the system does not say")
    if not plan.fits:
        return Finding("plan", "warn", f"{line}: only {gib(memory.available)} are free now", right)
    return Finding("plan", "ok", f"{line} of {gib(memory.available)} free: fits")
