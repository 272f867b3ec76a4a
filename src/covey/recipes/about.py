"""What there is to know of a recipe: the words of its docstring, and the value of every option with where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.fields import FieldInfo

from covey import recipes
from covey.recipes.recipe import MANY, STAGES, Recipe
from covey.recipes.rules import RULES, RUN_RULES
from covey.registry import Component, plain

LABELS = ("use", "avoid", "watch")
DEFAULT = "default"
"""Origin of an option that nobody set: the component's own default."""
ABSENT = object()
"""The value of an option that a recipe has not; null is a value."""
_FIRST = re.compile(r"(?P<title>[^:(]+?)\s*(?:\((?P<source>(?:[^()]|\([^()]*\))*)\))?\s*:\s*(?P<idea>.+)", re.S)
_PAPER = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True, slots=True)
class Words:
    """A recipe's docstring in parts; what it does not say is empty. `papers` are arXiv ids."""

    title: str
    source: str
    papers: tuple[str, ...]
    idea: str
    formula: str
    use: str
    avoid: str
    watch: str


def read_words(description: str) -> Words:
    """The parts of a description: `Title (source): idea.`, the formula, and paragraphs that start with Use, Avoid, Watch."""
    labelled = "|".join(label.capitalize() for label in LABELS)
    first, *rest = re.split(rf"\n\s*\n|\n(?=(?:{labelled}): )", description.strip())
    said = dict.fromkeys(LABELS, "")
    formula = []
    for paragraph in rest:
        label, _, text = paragraph.strip().partition(": ")
        if label.lower() in LABELS and label[0].isupper():
            said[label.lower()] = " ".join(text.split())
        else:
            formula.append(paragraph.strip("\n"))
    found = _FIRST.fullmatch(" ".join(first.split()))
    title, source, idea = found.group("title", "source", "idea") if found else ("", "", " ".join(first.split()))
    papers = tuple(dict.fromkeys(_PAPER.findall(source or description)))
    return Words(title, source or "", papers, idea, "\n\n".join(formula), **said)


def name_method(name: str) -> str:
    """The method that a preset is of: `grpo` of `grpo@trl`; a method's own name otherwise."""
    return name.partition("@")[0]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a recipe, or the component of one of its stages.

    `path` is what `but` and the command line take; `origin` says `own to NAME`, `from NAME` or `default`. A component that an
    ancestor has and this recipe has not is the value None of its place.
    """

    path: str
    value: Any
    origin: str
    meaning: str
    is_component: bool = False


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value with what decides on its origin: the kind of the component it belongs to, and that component's default."""

    value: Any
    owner: str
    meaning: str
    is_component: bool = False
    defaults: tuple[Any, ...] = field(default=())


def options(recipe: Recipe) -> tuple[Option, ...]:
    """Every component and option of the stages that act, in the order in which they run, each with its origin."""
    family = list(lineage(recipe))
    chain = [dict(_leaves(member)) for member in family]
    found = [
        Option(path, leaf.value, _origin(path, chain, family), leaf.meaning, leaf.is_component)
        for path, leaf in chain[0].items()
    ]
    order = {name: place for place, name in enumerate(STAGES)}
    rows = sorted([*found, *_removed(chain, family)], key=lambda row: order[row.path.partition(".")[0]])
    return (*rows, *_waived(recipe, family))


def lineage(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe, the one it was made from, and so on."""
    member: Recipe | None = recipe
    while member is not None:
        yield member
        member = member.parent


def parent_of(recipe: Recipe) -> str:
    """The name of the registered recipe that this one was made from; empty for one that was written as a whole."""
    for member in list(lineage(recipe))[1:]:
        if _is_registered(member):
            return member.name
    return ""


def values(recipe: Recipe) -> dict[str, Any]:
    """Components (their kinds) and options of the stages that act by path."""
    found = {path: leaf.value for path, leaf in _leaves(recipe)}
    return found | {f"waivers.{name}": "waived" for name in recipe.waivers}


def differences(members: Sequence[Recipe]) -> dict[str, tuple[Any, ...]]:
    """The components and options in which recipes differ, by path in the order of the stages.

    A recipe that has no such component or option has ABSENT.
    """
    each = [values(member) for member in members]
    order = {name: place for place, name in enumerate(STAGES)}
    paths = sorted(
        dict.fromkeys(path for one in each for path in one),
        key=lambda path: order.get(path.partition(".")[0], len(order)),
    )
    rows = {path: tuple(one.get(path, ABSENT) for one in each) for path in _nest(paths)}
    return {path: row for path, row in rows.items() if any(value != row[0] for value in row)}


def _nest(paths: Sequence[str]) -> list[str]:
    """Paths with every option right after its component, whoever brought it."""
    heads = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths if other != path)]
    out = []
    for head in heads:
        out += [head, *_nest([path for path in paths if path.startswith(f"{head}.")])]
    return out


def _leaves(recipe: Recipe) -> Iterator[tuple[str, _Leaf]]:
    for name in STAGES:
        info = Recipe.model_fields[name]
        default = info.default if isinstance(info.default, Component) else None
        for part in recipe.parts(name):
            yield from _walk(part, f"{name}.{part.kind}" if name in MANY else name, default)


def _walk(part: Component, path: str, default: Component | None) -> Iterator[tuple[str, _Leaf]]:
    """A component and its options; `default` is the component that stands there if nobody says otherwise."""
    effect = (type(part).__doc__ or "").strip().partition("\n")[0]
    yield path, _Leaf(part.kind, "", effect, True, () if default is None else (default.kind,))
    same = default if default is not None and default.kind == part.kind else None
    inner: list[tuple[Component, str, Any]] = []
    for name, info in type(part).model_fields.items():
        value, usual = getattr(part, name), _usual(info) if same is None else getattr(same, name)
        members = value if isinstance(value, tuple) else (value,)
        if members and all(isinstance(member, Component) for member in members):
            inner += [(one, f"{name}.{one.kind}" if isinstance(value, tuple) else name, usual) for one in members]
        elif value or not isinstance(value, (tuple, Mapping)):
            yield f"{path}.{name}", _Leaf(plain(value), part.kind, info.description or "", False, (plain(usual),))
    for one, place, usual in inner:
        yield from _walk(one, f"{path}.{place}", usual if isinstance(usual, Component) else None)


def _usual(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True) if not info.is_required() else None


def _origin(path: str, chain: Sequence[Mapping[str, _Leaf]], family: Sequence[Recipe]) -> str:
    """Who set a value: the oldest ancestor since whom it has been the same; nobody, if it came with the component."""
    leaf, last = chain[0][path], 0
    while last + 1 < len(chain) and _same(chain[last + 1].get(path), leaf):
        last += 1
    before = chain[last + 1].get(path) if last + 1 < len(chain) else None
    changed = before is not None and before.owner == leaf.owner
    if leaf.value in leaf.defaults and not changed:
        return DEFAULT
    return _credit(last, family)


def _same(other: _Leaf | None, leaf: _Leaf) -> bool:
    return other is not None and (other.owner, other.value) == (leaf.owner, leaf.value)


def _credit(place: int, family: Sequence[Recipe]) -> str:
    """The name of an ancestor; of one in between, which has none, that of the recipe which it was made for."""
    while place > 0 and not _is_registered(family[place]):
        place -= 1
    if place == 0 and len(family) > 1 and not _is_registered(family[0]):
        return f"own to this {family[0].name}"
    return f"own to {family[0].name}" if place == 0 else f"from {family[place].name}"


def _is_registered(recipe: Recipe) -> bool:
    return recipe.name in recipes.names() and recipes.get(recipe.name) == recipe


def _removed(chain: Sequence[Mapping[str, _Leaf]], family: Sequence[Recipe]) -> Iterator[Option]:
    """Components that an ancestor has and the recipe has not."""
    told: set[str] = set()
    for place in range(1, len(chain)):
        for path, leaf in chain[place].items():
            inside = any(path.startswith(f"{other}.") for other in told)
            gone = (
                leaf.is_component and path not in chain[0] and path not in told and not inside and path != "reference"
            )
            if gone and "." not in path.partition(".")[2]:
                told.add(path)
                had = _credit(place, family).removeprefix("from ")
                yield Option(path, None, _credit(place - 1, family), f"taken out: {had} has it", True)


def _waived(recipe: Recipe, family: Sequence[Recipe]) -> Iterator[Option]:
    reasons = {rule.name: rule.reason for rule in (*RULES, *RUN_RULES)}
    for name in recipe.waivers:
        last = 0
        while last + 1 < len(family) and name in family[last + 1].waivers:
            last += 1
        yield Option(f"waivers.{name}", "waived", _credit(last, family), reasons[name])
