"""The reward `json_schema`: whether a response is JSON, and JSON of the wanted form (extra `schema`)."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import Field, PrivateAttr, field_validator

from covey.errors import ConfigError, CoveyError, DataError, MissingInputError, did_you_mean
from covey.registry import Component, component
from covey.rewards.failures import explain, one_line
from covey.rewards.latex import nesting
from covey.types import Prompt, Rollout, Score

DEEPEST = 100
"""More brackets inside each other are refused: readers of JSON and of schemas call themselves for each."""
FENCE = "```"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.S)
_COMPONENTS = ("valid", "parsed")


@component("reward", "json_schema")
class JsonSchema(Component):
    """`valid` is 1 iff the response is one JSON value that the schema accepts, `parsed` 1 iff it is JSON; feedback says why not.

    JSON is that of RFC 8259 in its strict form: no NaN, no numbers beyond floats, no key twice, at most 100 brackets inside each
    other. The schema says with `$schema` which draft it is of, else it is of the newest; what it refers to has to be in it.
    """

    form: Mapping[str, Any] | str | None = Field(default=None, description="the JSON schema: a mapping, or FILE.json")
    column: str | None = Field(
        default=None, description="column with the row's own schema, a mapping or JSON text, in place of `form`"
    )
    read: Literal["response", "fence"] = Field(
        default="response", description="what has to be JSON: the whole response, or its last block fenced by ```json"
    )
    weights: Mapping[str, float] = Field(
        default={"valid": 1.0, "parsed": 0.0}, description="weight of the components in the mixed reward"
    )

    isolated: ClassVar[bool] = True
    together: ClassVar[bool] = False
    _checker: Any = PrivateAttr(None)

    @field_validator("weights")
    @classmethod
    def _known(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        return choose_weights(value, _COMPONENTS)

    def model_post_init(self, _: Any) -> None:
        """Read and check the schema now, so that a mistake in it shows before anything is trained."""
        if importlib.util.find_spec("jsonschema") is None:
            raise MissingInputError("reward json_schema", "needs `pip install covey[schema]` (jsonschema)")
        if (self.form is None) == (self.column is None):
            found = "neither form nor column" if self.form is None else "both form and column"
            raise ConfigError("reward", found, "Give the schema as form=FILE.json, or a column that holds it.")
        if self.form is not None:
            self._checker = _make_checker(_read_form(self.form), "reward.form")

    def prepare(self) -> None:
        """Load what scoring needs, once for all processes that are forked from this one."""
        import jsonschema  # noqa: F401

    def check(self, prompt: Prompt) -> None:
        """Raises DataError without a schema in the row's column, or if it is none."""
        self._choose(prompt)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        checker = self._choose(prompt)
        return [self._score_one(checker, rollout.text) for rollout in rollouts]

    def _choose(self, prompt: Prompt) -> Any:
        if self.column is None:
            return self._checker
        where = f"prompt {prompt.id}"
        if self.column not in prompt.meta:
            raise DataError(where, f"the row has no column '{self.column}'", did_you_mean(self.column, prompt.meta))
        form = prompt.meta[self.column]
        try:
            return _make_checker(json.loads(form) if isinstance(form, str) else form, self.column)
        except (CoveyError, ValueError, RecursionError) as error:
            raise DataError(where, f"no JSON schema in column '{self.column}' ({error})", "Mend the row.") from None

    def _score_one(self, checker: Any, text: str) -> Score:
        try:
            value = read_json(text if self.read == "response" else find_fenced(text))
        except ValueError as error:
            return Score({"valid": 0.0, "parsed": 0.0}, detail=f"Not JSON: {_printable(str(error))}.")
        try:
            first = next(checker.iter_errors(value), None)
        except MemoryError:
            raise
        except Exception as error:  # e.g. a schema that refers to itself without end
            return Score({"parsed": 1.0}, {"valid": explain(error)})
        if first is None:
            return Score({"valid": 1.0, "parsed": 1.0}, detail="Valid.")
        detail = f"{_printable(first.json_path)}: {_printable(first.message)}."
        return Score({"valid": 0.0, "parsed": 1.0}, detail=detail)


def choose_weights(weights: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    """A weight for each component, 0 where none is given. Raises ConfigError for an unknown component."""
    for name in weights:
        if name not in known:
            raise ConfigError(f"reward.weights.{name}", "there is no such component", did_you_mean(name, known))
    return {name: float(weights.get(name, 0.0)) for name in known}


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError with the reason: duplicate keys, NaN and deep nesting are not JSON here."""
    if nesting(_STRING.sub("", text)) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} brackets inside each other")
    try:
        return json.loads(text, object_pairs_hook=_pair, parse_constant=_refuse, parse_float=_read_float)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _pair(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in set(names[:place]))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:30]} is beyond all floats")
    return value


def find_fenced(text: str) -> str:
    """What stands in the last block of lines between ```json (or bare ```) and ```. Raises ValueError without one."""
    found, start, lines = None, None, text.splitlines()
    for place, line in enumerate(lines):
        mark = line.strip()
        if start is None and mark.startswith(FENCE):
            start = place
        elif start is not None and mark == FENCE:
            if lines[start].strip()[len(FENCE) :].strip().lower() in ("", "json"):
                found = (start + 1, place)
            start = None
    if found is None:
        raise ValueError("there is no fenced block")
    return "\n".join(lines[slice(*found)])


def _read_form(form: Mapping[str, Any] | str) -> Any:
    if not isinstance(form, str):
        return form
    file = Path(form)
    if not file.is_file():
        raise MissingInputError("reward.form", f"there is no file {form}", "Give FILE.json with a JSON schema.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("reward.form", f"{form} is no JSON: {error}", "Mend the file.") from None


def _make_checker(form: Any, where: str) -> Any:
    """A validator of a schema. Nothing is fetched for it: what it refers to outside of itself does not exist."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    if not isinstance(form, (Mapping, bool)):
        raise ConfigError(where, f"a schema is a mapping, not {type(form).__name__}", "")
    try:
        plain = json.loads(json.dumps(form))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(where, f"a schema is JSON: {error}", "Write text, numbers, lists and mappings.") from None
    cls = validator_for(plain, default=Draft202012Validator)
    try:
        cls.check_schema(plain, format_checker=cls.FORMAT_CHECKER)
    except SchemaError as error:
        raise ConfigError(f"{where} {error.json_path}", one_line(error.message, 200), "Mend the schema.") from None
    return cls(plain, registry=Registry())


def _printable(text: str) -> str:
    """One line of at most 300 characters that UTF-8 can hold."""
    return one_line(text.encode("utf-8", "backslashreplace").decode("utf-8"), 300)
