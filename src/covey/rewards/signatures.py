"""What a reward function wants to be given, read from the names of its parameters; it is never called to find out.

Three forms: `f(completion, answer)` scores one response, `f(prompts, completions, **columns)` all responses of a prompt at once
(TRL's form), `f(data_source, solution_str, ground_truth, extra_info)` one response (verl's form).
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from covey.errors import ConfigError, DataError, did_you_mean
from covey.types import Prompt, Rollout

Form = Literal["response", "group", "solution"]
ONE = ("completion", "answer", "prompt")
MANY = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
SOLUTION = ("data_source", "solution_str", "ground_truth", "extra_info")
_WRITE = "Write def f(completion, answer) or def f(completions, **kwargs)."


@dataclass
class TrainerState:
    """How far the run is, under the names of transformers' TrainerState that a reward can use."""

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    num_train_epochs: int = 1
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    log_history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Log:
    """What a function logs while it scores: columns with one value per response, and numbers."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """Add values to a column."""
        self.columns.setdefault(str(column), []).extend(values)

    def metric(self, name: str, value: Any) -> None:
        """Note a number."""
        self.numbers[str(name)] = value


@dataclass(frozen=True, slots=True)
class Signature:
    """The form of a function and the parameters it is called with, by name."""

    form: Form
    parameters: Mapping[str, inspect.Parameter]

    @property
    def together(self) -> bool:
        """Whether all responses of a prompt are scored in one call."""
        return self.form == "group"

    @property
    def open(self) -> bool:
        """Whether it takes every column there is."""
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self.parameters.values())

    def wants(self, name: str) -> bool:
        """Whether a column would reach it."""
        return self.open or name in self.parameters

    def choose(self, columns: Mapping[str, Any], where: str, row: str) -> dict[str, Any]:
        """The columns that the function takes. Raises DataError if one that it needs is not there."""
        for name, parameter in self.parameters.items():
            if name not in columns and _required(parameter):
                right = f"{did_you_mean(name, columns)} The row is {row}."
                raise DataError(where, f"the row has no column '{name}'", right)
        return {name: value for name, value in columns.items() if self.wants(name)}


def read_signature(function: Callable[..., Any], where: str) -> Signature:
    """The form of a reward function. A near miss such as `completion_s` is an error, not a column."""
    if not callable(function):
        raise ConfigError(where, f"{type(function).__name__} is not a function", _WRITE)
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ConfigError(where, "its parameters cannot be read", _WRITE) from None
    for name, parameter in parameters.items():
        positional = parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        if positional and (len(parameters) == 1 or parameter.kind is inspect.Parameter.POSITIONAL_ONLY):
            raise ConfigError(where, f"parameter '{name}' is positional", "Parameters are passed by name.")
    named = {name: p for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL}
    signature = Signature(_find_form(named, where), named)
    _refuse_near_misses(signature, where)
    return signature


def _find_form(parameters: Mapping[str, inspect.Parameter], where: str) -> Form:
    if "completion" in parameters and "completions" in parameters:
        raise ConfigError(
            where, "it takes both 'completion' and 'completions'", "Take one response, or all of a prompt."
        )
    if "solution_str" in parameters:
        return "solution"
    open_only = "completion" not in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "group" if open_only or any(name in parameters for name in MANY) else "response"


def _refuse_near_misses(signature: Signature, where: str) -> None:
    known = {"response": (*ONE, *MANY), "group": MANY, "solution": SOLUTION}[signature.form]
    for name, parameter in signature.parameters.items():
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and near != ["answer"] and name not in known and _required(parameter):  # `answers` may be a column
            raise ConfigError(where, f"unknown parameter '{name}'", f"Did you mean '{near[0]}'?")


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function; of a partial application the function's, of another callable its own or its class's."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def columns_of_one(prompt: Prompt, completion: str) -> dict[str, Any]:
    """What a function that scores one response may ask for."""
    return {
        **copy.deepcopy(dict(prompt.meta)),
        "completion": completion,
        "answer": prompt.answer,
        "prompt": prompt.messages[-1].content if prompt.messages else "",
    }


def columns_of_solution(prompt: Prompt, completion: str) -> dict[str, Any]:
    """The same in verl's words. The gold answer is the column `ground_truth`, or `reward_model.ground_truth`, or `answer`."""
    meta = copy.deepcopy(dict(prompt.meta))
    model = meta.get("reward_model")
    gold = meta.get("ground_truth", model.get("ground_truth") if isinstance(model, Mapping) else None)
    return {
        "extra_info": {},
        "data_source": prompt.task,
        **meta,
        "solution_str": completion,
        "ground_truth": prompt.answer if gold is None else gold,
    }


def columns_of_group(prompt: Prompt, rollouts: Sequence[Rollout], state: TrainerState, log: Log) -> dict[str, Any]:
    """What a function that scores all responses of a prompt may ask for: lists with one entry per response.

    Prompts and completions are texts where the row's prompt was a text, and lists of messages where it was messages. An
    answer is what the row has: a number stays one.
    """
    count = len(rollouts)
    columns: dict[str, Any] = {name: [copy.deepcopy(value) for _ in rollouts] for name, value in prompt.meta.items()}
    texts = [rollout.text for rollout in rollouts]
    if prompt.conversational:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        prompts: list[Any] = [copy.deepcopy(messages) for _ in rollouts]
        completions: list[Any] = [[{"role": "assistant", "content": text}] for text in texts]
    else:
        prompts = [prompt.messages[-1].content if prompt.messages else ""] * count
        completions = list(texts)
    return {
        **columns,
        "answer": columns.get("answer", [prompt.answer] * count),
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [
            [token for turn in r.turns if turn.by == "policy" for token in turn.tokens] for r in rollouts
        ],
        "trainer_state": state,
        "log_extra": log.extra,
        "log_metric": log.metric,
    }
