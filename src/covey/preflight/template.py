"""Does a chat template keep its word: append-only, one BOS, a turn that ends where generation stops?

A template is append-only if what a conversation looked like when the model spoke is a prefix of what it looks like later.
One that rewrites the past (that takes thoughts out of earlier turns, say) makes token ids that were sampled differ from those
that a later turn is conditioned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from covey.errors import ConfigError
from covey.types import Message

USER, REPLY, THOUGHT = "First question?", "First reply.", "<think>\nFirst thought.\n</think>\n\n"
SECOND, REPLY_2, THIRD = "Second question?", "Second reply.", "Third question?"
SYSTEM = "Be brief."
SHOWN = 40


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """What a chat template does.

    `diverges` is where a plain conversation stops being append-only ('' if it never does), `diverges_thinking` the same for
    replies with thoughts between `<think>` and `</think>`. `bos` counts BOS ids at the start of a rendered prompt (after covey
    took a doubled one away), `bos_written` those that template and tokenizer make. `closed_by` is what the template puts after
    a reply, `closes` whether a stop id is in it. `generation_prompt` opens the model's turn; '' if nothing does.
    """

    exists: bool
    diverges: str = ""
    diverges_thinking: str = ""
    bos: int = 0
    bos_written: int = 0
    system: str = ""
    generation_prompt: str = ""
    closed_by: str = ""
    closes: bool = True
    stop_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()

    @property
    def append_only(self) -> bool:
        """Whether plain conversations and those with thoughts are append-only."""
        return not self.diverges and not self.diverges_thinking

    def plain(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "append_only": self.append_only}


def lint_template(
    tokenizer: Any, stop_ids: Sequence[int] = (), *, variables: Mapping[str, Any] | None = None
) -> TemplateReport:
    """Render small conversations turn by turn and compare. `variables` are further ones of the template.

    `system` of the report is '' where a system message is rendered as it is, else what became of it. Raises ConfigError where
    a question of a user cannot be rendered at all.
    """
    stops = tuple(str(tokenizer.convert_ids_to_tokens(int(stop))) for stop in stop_ids)
    if not getattr(tokenizer, "chat_template", None):
        ids = list(tokenizer(USER, verbose=False)["input_ids"])
        bos = _count_bos(ids, tokenizer)
        return TemplateReport(False, bos=min(bos, 1), bos_written=bos, stop_ids=tuple(stop_ids), stops=stops)
    render = _Renderer(tokenizer, dict(variables or {}))
    first = render([("user", USER)], ask=True)
    opened = render([("user", USER)])
    ids = list(tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"])
    bos = _count_bos(ids, tokenizer)
    closing = _find_closing(render)
    closing_ids = tokenizer(closing, add_special_tokens=False, verbose=False)["input_ids"] if closing else []
    return TemplateReport(
        True,
        diverges=_diverges(render, ""),
        diverges_thinking=_diverges(render, THOUGHT),
        bos=bos - 1 if bos > 1 else bos,  # rendering takes one of two away
        bos_written=bos,
        system=_try_system(render),
        generation_prompt=first[len(opened) :] if first.startswith(opened) else "",
        closed_by=closing,
        closes=not stop_ids or any(stop in closing_ids for stop in stop_ids),
        stop_ids=tuple(stop_ids),
        stops=stops,
    )


class _Renderer:
    """Conversations as text; a template that raises says so in one line."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any]) -> None:
        self.tokenizer, self.variables = tokenizer, variables

    def __call__(self, turns: Sequence[tuple[str, str]], *, ask: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=ask, tokenize=False, **self.variables
            )
        except Exception as error:  # a template may raise anything, and says why
            found = " ".join(f"it raised {type(error).__name__}: {error}".split())[:200]
            raise ConfigError("model chat template", found, "Mend the template.") from None
        return text


def _diverges(render: _Renderer, thought: str) -> str:
    """The first place where the history differs from what was sampled from and sampled; '' if there is none."""
    turns: list[tuple[str, str]] = []
    for number, (question, reply, following) in enumerate(((USER, REPLY, SECOND), (SECOND, REPLY_2, THIRD)), start=1):
        turns.append(("user", question))
        try:
            asked = render(turns, ask=True)
            # A template may open the thought itself; then the model goes on from there.
            opened = thought.partition("\n")[0] if thought else ""
            said = thought.removeprefix(opened).lstrip("\n") if opened and asked.rstrip().endswith(opened) else thought
            turns.append(("assistant", thought + reply))
            later = render([*turns, ("user", following)], ask=True)
        except ConfigError as error:
            return f"turn {number}: {error.found}"
        sampled = asked + said + reply
        if not later.startswith(sampled):
            return f"turn {number}: {_difference(sampled, later)}"
    return ""


def _difference(sampled: str, later: str) -> str:
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(sampled, later, strict=False)))
    before = sampled[max(0, at - SHOWN // 2) : at]
    return f"after {before!r} there was {sampled[at : at + SHOWN]!r}, later {later[at : at + SHOWN]!r}"


def _find_closing(render: _Renderer) -> str:
    """What the template puts behind a reply."""
    try:
        text = render([("user", USER), ("assistant", REPLY)])
    except ConfigError:
        return ""
    return text.rpartition(REPLY)[2]


def _try_system(render: _Renderer) -> str:
    """'' if a system message stands in the prompt as it is; else what became of it."""
    try:
        text = render([("system", SYSTEM), ("user", USER)], ask=True)
    except ConfigError as error:
        return error.found
    return "" if SYSTEM in text else "it is left out"


def _count_bos(ids: Sequence[int], tokenizer: Any) -> int:
    bos, count = getattr(tokenizer, "bos_token_id", None), 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count


def has_turns(messages: Sequence[Message]) -> bool:
    """Whether a prompt holds replies of the assistant, so that the template's view of the past matters."""
    return any(message.role == "assistant" for message in messages)
