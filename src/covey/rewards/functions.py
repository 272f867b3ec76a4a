"""A user's own Python function as a reward: called by the names of its parameters, trusted with nothing it returns.

`f(completion, answer) -> float | None` is called once per rollout and may be `async`. What is not a finite number
(None, NaN, a string, an exception) becomes a typed failure with the reason, never a 0.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, PrivateAttr

from covey.errors import ConfigError, DataError, MissingInputError, did_you_mean
from covey.random import key
from covey.registry import Component, component
from covey.types import Prompt, Rollout, Score

KNOWN = ("completion", "answer", "prompt")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


@component("reward", "function")
class FunctionReward(Component):
    """The value of a Python function per rollout, under the function's name.

    Parameters by name: `completion` the response's text, `answer` the gold answer or None, `prompt` the last message's
    text; any other name is a further column of the prompt's row. `FunctionReward(function="rewards.py:score")` loads a
    file that the user names; `wrap_function(f)` takes the function itself.
    """

    function: str = Field(description="FILE.py:name of the function, or the name of one given in Python")

    _call: Callable[..., Any] | None = PrivateAttr(None)
    _parameters: Mapping[str, inspect.Parameter] = PrivateAttr(default_factory=dict)

    def __init__(self, **fields: Any) -> None:
        """Load the function now, so that a mistake shows before anything is trained."""
        call = fields.pop("_call", None)
        super().__init__(**fields)
        call = call if call is not None else load_function(self.function)
        self._call, self._parameters = call, read_parameters(call, self.function)

    @property
    def name(self) -> str:
        """The name of the reward component: the function's."""
        name = self.function.rpartition(":")[2]
        return name if name.isidentifier() else "reward"

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight in the mixed reward: 1."""
        return {self.name: 1.0}

    def check(self, prompt: Prompt) -> None:
        """Raises DataError where a parameter has no column in the prompt's row."""
        self._arguments(prompt, "")

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One call per rollout, in order."""
        return [await self._score_one(prompt, rollout) for rollout in rollouts]

    async def _score_one(self, prompt: Prompt, rollout: Rollout) -> Score:
        # a reward function is the user's code: whatever it raises is data about this rollout, and the run goes on
        try:
            result = self._call(**self._arguments(prompt, rollout.text))  # type: ignore[misc]
            result = await result if inspect.isawaitable(result) else result
            return Score({self.name: read_number(result)})
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, _NotNumberError) else f"{type(error).__name__}: {error}"
            return Score(failures={self.name: " ".join(reason.split())})

    def _arguments(self, prompt: Prompt, completion: str) -> dict[str, Any]:
        columns = {
            **copy.deepcopy(dict(prompt.meta)),
            "completion": completion,
            "answer": prompt.answer,
            "prompt": prompt.messages[-1].content if prompt.messages else "",
        }
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values()):
            return columns
        for name, parameter in self._parameters.items():
            if name not in columns and parameter.default is inspect.Parameter.empty:
                raise DataError(f"reward {self.name}", f"the row has no column '{name}'", did_you_mean(name, columns))
        return {name: columns[name] for name in self._parameters if name in columns}


class _NotNumberError(Exception):
    """What a reward function returned cannot be a reward."""


def read_number(value: Any) -> float:
    """A finite float of a number, a bool, or a numpy or torch scalar; raises with the reason otherwise."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    if value is None:
        raise _NotNumberError("returned None")
    if not isinstance(value, Real):
        raise _NotNumberError(f"returned {_shorten(value)} ({type(value).__name__}), not a number")
    number = float(value)
    if not math.isfinite(number):
        raise _NotNumberError(f"returned {'NaN' if math.isnan(number) else number}")
    return number


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "a value without repr"
    return text if len(text) <= 60 else text[:57] + "..."


def read_parameters(function: Callable[..., Any], where: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a reward function, by name. A near miss such as `completions` is an error, not a column."""
    if not callable(function):
        raise ConfigError(where, f"{type(function).__name__} is not a function", "Write def f(completion, answer).")
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ConfigError(where, "its parameters cannot be read", "Write def f(completion, answer).") from None
    for name, parameter in parameters.items():
        if parameter.kind in _POSITIONAL:
            raise ConfigError(where, f"parameter '{name}' is positional", "Parameters are passed by name.")
        near = did_you_mean(name, KNOWN)
        required = parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if name not in KNOWN and required and near.startswith("Did"):
            raise ConfigError(where, f"unknown parameter '{name}'", f"{near} It is called once per response.")
    return parameters


def wrap_function(function: Callable[..., Any]) -> FunctionReward:
    """A reward of a function given in Python."""
    return FunctionReward(function=getattr(function, "__name__", type(function).__name__), _call=function)


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `FILE.py:name` names. The file runs with the user's rights: it is the user's own code.

    Raises MissingInputError without the file, ConfigError without the name or if the file fails to import.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name:
        raise ConfigError("reward", f"{spec!r} is no function", "Write FILE.py:name, for example rewards.py:score.")
    file = Path(path)
    if not file.is_file():
        raise MissingInputError("reward", f"there is no file {path}", "Give the path of a Python file.")
    module = _import_file(str(file.resolve()), file.stat().st_mtime_ns)
    functions = {known: value for known, value in vars(module).items() if callable(value) and not known.startswith("_")}
    if name not in functions:
        right = did_you_mean(name, functions) or "It defines no function."
        raise ConfigError("reward", f"{path} has no function '{name}'", right)
    found: Callable[..., Any] = functions[name]
    return found


@lru_cache(maxsize=32)
def _import_file(path: str, changed: int) -> ModuleType:
    name = f"covey_reward_{key(path, changed):016x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("reward", f"{path} is no Python file", "")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the user's file look their module up
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(
            "reward", f"{path}{line} cannot be imported: {type(error).__name__}: {error}", "Mend it."
        ) from None
    return module
