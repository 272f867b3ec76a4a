"""YAML as covey reads and writes it: YAML 1.2 scalars, plain data only, and every mistake with its line and column.

PyYAML follows YAML 1.1, where `1e-3` is text, `1:30` is 90, `010` is 8 and `no` is false. Here numbers are what people write
(`1e-3`, `1E5`, `.5`, `1_000`), `true` and `false` are the only booleans, and `null` or `~` is nothing. Tags, aliases, merge keys
and repeated keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from covey.errors import ConfigError, MissingInputError

Lines = Mapping[tuple[str, ...], int]
"""Line (from 1) on which each key stands, by path."""

_SCALARS = (
    ("tag:yaml.org,2002:null", r"null|~|", "n~"),
    ("tag:yaml.org,2002:bool", r"true|false", "tf"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
        "-+.0123456789",
    ),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {"": [("tag:yaml.org,2002:null", re.compile(r"^$"))]}
    for tag, pattern, firsts in _SCALARS:
        for first in firsts:
            table.setdefault(first, []).append((tag, re.compile(rf"^(?:{pattern})$")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key has to be a name", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_text(path: Path) -> str:
    """The text of a file. Errors: not there, a folder, not readable (66), not UTF-8 (2)."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"byte {error.start} is not UTF-8", "Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MissingInputError(str(path), f"cannot be read ({reason})", "Give a YAML file.") from None


def read(text: str, where: str) -> tuple[dict[str, Any], Lines]:
    """The mapping that a YAML text holds, and the line of every key. `where` names the text in errors."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_place(error, where), _problem(error), _advice(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(where, " ".join(str(error).split())[:120], "Write plain YAML.") from None
    except RecursionError:
        raise ConfigError(where, "nested too deeply", "A configuration has four levels at most.") from None
    finally:
        if loader is not None:
            loader.dispose()
    if data is None:
        raise ConfigError(where, "empty", "Write KEY: VALUE lines such as `steps: 100`.")
    if not isinstance(data, dict):
        raise ConfigError(where, f"holds {_noun(data)}", "Write KEY: VALUE lines such as `steps: 100`.")
    return data, dict(_lines(node, ()))


def read_value(text: str, where: str) -> Any:
    """The value of `KEY=VALUE`: a number, true, false, null, a list `[1, 2]`, a mapping `{a: 1}`, else the text as it is."""
    if text[:1] in ("[", "{", '"', "'"):
        return read(f"value: {text}", where)[0]["value"]
    for tag, pattern in _resolvers().get(text[:1], ()):
        if pattern.match(text):
            return _Loader("").construct_object(ScalarNode(tag, text))
    return text


def read_setting(text: str, known: Collection[str] = ()) -> tuple[str, Any]:
    """Key and value of one `KEY=VALUE`; `known` are keys that may have lost their value."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        hint = f"Write {key}=VALUE." if key in known else "Settings are written KEY=VALUE, such as steps=100."
        raise ConfigError(text or "''", "not a setting", hint)
    if not value:
        raise ConfigError(key, "no value", f"Write {key}=VALUE; null means none.")
    return key, read_value(value, key)


def write(data: Mapping[str, Any]) -> str:
    """YAML of plain data, keys in their order; `read` gives the same data back."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return text


def _lines(node: Node | None, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], int]]:
    if not isinstance(node, MappingNode):
        return []
    found = []
    for key, value in node.value:
        here = (*path, *key.value.split("."))
        found += [(here, key.start_mark.line + 1), *_lines(value, here)]
    return found


def _place(error: yaml.MarkedYAMLError, where: str) -> str:
    ended = "stream end" in (error.problem or "")  # where the text ends says nothing: where the open part began does
    mark = (error.context_mark if ended else None) or error.problem_mark or error.context_mark
    return where if mark is None else f"{where}:{mark.line + 1}:{mark.column + 1}"


def _problem(error: yaml.MarkedYAMLError) -> str:
    return " ".join(filter(None, (error.context, error.problem)))[:160]


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if r"\t" in problem:
        return "Indent with spaces, not tabs."
    if "occurs twice" in problem:
        return "Give each key once."
    if "constructor" in problem or "tag" in problem:
        return "Write plain values without tags."
    return "Write KEY: VALUE lines, indented with spaces."


def _noun(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"only {data!r:.40}"
