"""A user's own Python function as a reward: called by the names of its parameters, trusted with nothing it returns.

What is not a finite number per response (None, NaN, a string, an exception) becomes a typed failure with the reason, never a 0.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from covey.errors import ConfigError, DataError, MissingInputError, did_you_mean
from covey.random import key
from covey.registry import Component, component
from covey.rewards import wire
from covey.rewards.failures import explain, fail
from covey.rewards.results import add_logged, read_many, read_one
from covey.rewards.signatures import (
    Log,
    Signature,
    TrainerState,
    columns_of_group,
    columns_of_one,
    columns_of_solution,
    name_of,
    read_signature,
)
from covey.types import Prompt, Rollout, RolloutKey, Score, Stop


@component("reward", "function")
class FunctionReward(Component):
    """The value of a Python function for each response, under the function's name.

    Parameters by name: `f(completion, answer)` scores one response, `f(prompts, completions, **columns)` all responses of a
    prompt (TRL's form), `compute_score(data_source, solution_str, ground_truth, extra_info)` one (verl's form); any other
    name is a further column of the row. `FunctionReward(function="rewards.py:score")` loads a file that the user names;
    `wrap_function(f)` takes the function itself.
    """

    function: str = Field(description="FILE.py:name of the function, or the name of one given in Python")

    isolated: ClassVar[bool] = True
    _call: Callable[..., Any] | None = PrivateAttr(None)
    _given: bool = PrivateAttr(False)
    _signature: Signature = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Load the function now, so that a mistake shows before anything is trained."""
        call = fields.pop("_call", None)
        super().__init__(**fields)
        self._given = call is not None
        self._call = call if call is not None else load_function(self.function)
        self._signature = read_signature(self._call, self.function)

    @property
    def name(self) -> str:
        """The name of the reward component: the function's."""
        name = self.function.rpartition(":")[2]
        return name if name.isidentifier() else "reward"

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight in the mixed reward: 1."""
        return {self.name: 1.0}

    @property
    def together(self) -> bool:
        """Whether one call scores all responses of a prompt."""
        return self._signature.together

    @property
    def given(self) -> bool:
        """Whether the function was given in Python, so that no file can be read to have it again."""
        return self._given

    def reads(self, name: str) -> bool:
        """Whether the function may look at a column."""
        return self._signature.wants(name) or (self._signature.form == "solution" and name == "reward_model")

    def row(self, prompt: Prompt) -> dict[str, Any]:
        """The columns of a row that the function may look at.

        One that another process cannot be given is refused if it is asked for by name, and left out if by `**` only.
        """
        columns = {}
        for name, value in prompt.meta.items():
            try:
                wire.write(value if self.reads(name) else None)
            except (TypeError, RecursionError) as error:
                if name in self._signature.parameters:
                    found, right = (
                        f"column '{name}' of {prompt.id}: {error}",
                        "Make it text, numbers, lists or mappings.",
                    )
                    raise DataError(f"reward {self.name}", found, right) from None
                continue
            if self.reads(name):
                columns[name] = value
        return columns

    def check(self, prompt: Prompt) -> None:
        """Raises DataError where a parameter has no column in the prompt's row, or one that cannot be handed over."""
        rollout = Rollout(RolloutKey(prompt.id, 0), (), Stop.END, 0)
        self._arguments(prompt, (rollout,), TrainerState(), Log())
        self.row(prompt)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One call per response, or one for all of them, in order."""
        units = [rollouts] if self.together else [[rollout] for rollout in rollouts]
        found: list[Score] = []
        for unit in units:
            scores = self.begin(prompt, unit, TrainerState())
            found += await scores if inspect.isawaitable(scores) else scores
        return found

    def begin(
        self, prompt: Prompt, rollouts: Sequence[Rollout], state: TrainerState, *, catch: bool = True
    ) -> list[Score] | Awaitable[list[Score]]:
        """Call the function once: its scores, or what has to be awaited to have them if it is asynchronous.

        With `catch` whatever it raises is a failure of these rollouts, as it is data about them; else it is raised.
        """
        log = Log()
        try:
            result = self._call(**self._arguments(prompt, rollouts, state, log))  # type: ignore[misc]
            if inspect.isawaitable(result):
                return self._finish(result, len(rollouts), log, catch)
            return self._read(result, len(rollouts), log)
        except (Exception, SystemExit) as error:
            if not catch:
                raise
            return [fail((self.name,), explain(error))] * len(rollouts)

    async def _finish(self, result: Awaitable[Any], count: int, log: Log, catch: bool) -> list[Score]:
        try:
            return self._read(await result, count, log)
        except (Exception, SystemExit) as error:
            if not catch:
                raise
            return [fail((self.name,), explain(error))] * count

    def _read(self, result: Any, count: int, log: Log) -> list[Score]:
        if self.together:
            return read_many(result, count, self.name, log)
        return [add_logged(read_one(result, self.name), log, 0, 1)]

    def _arguments(self, prompt: Prompt, rollouts: Sequence[Rollout], state: TrainerState, log: Log) -> dict[str, Any]:
        if self.together:
            columns = columns_of_group(prompt, rollouts, state, log)
        else:
            columns_of = columns_of_solution if self._signature.form == "solution" else columns_of_one
            columns = columns_of(prompt, rollouts[0].text)
        return self._signature.choose(columns, f"reward {self.name}", prompt.id)


def wrap_function(function: Callable[..., Any]) -> FunctionReward:
    """A reward of a function given in Python."""
    return FunctionReward(function=name_of(function), _call=function)


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
