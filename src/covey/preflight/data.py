"""What can be seen of a task's prompts and answers before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from covey.preflight.finding import Finding
from covey.tasks.mixture import sources_of
from covey.types import Prompt

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.preflight.words import Words
    from covey.protocols import Task

DRAWN = 256
"""Prompts that are looked at of a task that never ends."""
COUNTED = 64
"""Texts whose tokens are counted: the longest by characters."""


@dataclass(frozen=True)
class Rows:
    """The prompts that a run trains on (all of a finite task, the first ones of an endless one) and those it is asked."""

    train: tuple[Prompt, ...]
    held: tuple[tuple[str, tuple[Prompt, ...]], ...]
    endless: bool

    @property
    def all(self) -> tuple[Prompt, ...]:
        """Every prompt once more."""
        return (*self.train, *(prompt for _, prompts in self.held for prompt in prompts))


def gather(task: Task, seed: int) -> Rows:
    """The prompts of a task, of every source where it has several. Raises MissingInputError and DataError for unusable data."""
    size = task.size
    parts = [(part, part.size) for part in sources_of(task)]
    train = tuple(part.train(seed, index) for part, own in parts for index in range(DRAWN if own is None else own))
    held = tuple((name, tuple(prompts)) for name, prompts in task.held_out(seed).items())
    return Rows(train, held, endless=size is None)


def check_data(rows: Rows, words: Words, config: RunConfig) -> Iterator[Finding]:
    """Counts and columns, lengths against the context, what the tokenizer cannot write, what is there twice."""
    yield _count(rows)
    yield from _lengths(rows, words, config.budget.sampling.max_tokens)
    yield from _characters(rows, words)
    yield from _repeats(rows)
    if not rows.held:
        yield Finding(
            "data", "warn", "no rows are held out: nothing tells learning from memorising", "task.held_share=0.1"
        )


def _count(rows: Rows) -> Finding:
    held = sum(len(prompts) for _, prompts in rows.held)
    columns = list(dict.fromkeys(name for prompt in rows.all for name in prompt.meta))
    answered = sum(prompt.answer is not None for prompt in rows.all)
    own = dict.fromkeys(["prompt", *(["answer"] if answered else []), *columns])
    sets = f" in {len(rows.held)} sets" if len(rows.held) > 1 else ""
    train = "a new problem for every place" if rows.endless else f"{len(rows.train)} rows to train on"
    line = f"{train}, {held} held out{sets}; columns {' '.join(own)}"
    if 0 < answered < len(rows.all):
        missing = len(rows.all) - answered
        return Finding(
            "data", "warn", f"{line}; {missing} rows without an answer", "A reward that compares cannot score them."
        )
    return Finding("data", "ok", line)


def _lengths(rows: Rows, words: Words, max_tokens: int) -> Iterator[Finding]:
    longest = sorted(rows.all, key=_size, reverse=True)[:COUNTED]
    counts = {prompt.id: len(words.render(prompt.messages)) for prompt in longest}
    name = max(counts, key=lambda id: counts[id])
    tokens, context = counts[name], words.context
    room = f" of {context}" if context is not None else ""
    line = f"longest prompt {tokens} tokens{room}, response up to {max_tokens}"
    if context is not None and tokens + max_tokens > context:
        right = (
            f"budget.sampling.max_tokens={context - tokens}" if tokens < context else f"Shorten {name}, or take it out."
        )
        yield Finding("data", "bad", f"{line}: too long together ({name})", right)
    else:
        yield Finding("data", "ok", line)
    answers = sorted((p.answer for p in rows.all if p.answer), key=len, reverse=True)[:COUNTED]
    widest = max((len(words.encode(answer)) for answer in answers), default=0)
    if widest >= max_tokens:
        found = f"an answer alone has {widest} tokens: a response that ends with it is cut off"
        yield Finding("data", "warn", found, f"budget.sampling.max_tokens={2 * widest}")


def _size(prompt: Prompt) -> int:
    return sum(len(message.content) for message in prompt.messages)


def _characters(rows: Rows, words: Words) -> Iterator[Finding]:
    """Characters that become the unknown token: the model cannot read them in prompts, and never write them in answers."""
    unknown = getattr(words.tokenizer, "unk_token_id", None)
    if unknown is None:
        return
    for what, texts in (
        ("prompts", [message.content for prompt in rows.all for message in prompt.messages]),
        ("answers", [prompt.answer for prompt in rows.all if prompt.answer]),
    ):
        known = sorted(set("".join(texts)))
        bad = [letter for letter in known if unknown in words.encode(letter)]
        if bad:
            count = sum(any(letter in text for letter in bad) for text in texts)
            shown = " ".join(repr(letter) for letter in bad[:8])
            found = f"{count} of {len(texts)} {what} hold what the tokenizer does not know: {shown}"
            yield Finding("data", "warn", found, "Write them otherwise, or take another model.")


def _repeats(rows: Rows) -> Iterator[Finding]:
    if rows.endless:
        return
    seen = Counter(prompt.messages for prompt in rows.train)
    if twice := sum(count - 1 for count in seen.values()):
        yield Finding(
            "data", "warn", f"{twice} rows repeat the prompt of another one", "Take them out, or weigh them on purpose."
        )
    answers: dict[object, set[str | None]] = {}
    for prompt in rows.all:
        answers.setdefault(prompt.messages, set()).add(prompt.answer)
    if unlike := sum(len(known) > 1 for known in answers.values()):
        yield Finding(
            "data", "warn", f"{unlike} prompts stand there with different answers", "Keep one answer per prompt."
        )
    leaked = sum(prompt.messages in seen for _, prompts in rows.held for prompt in prompts)
    if leaked:
        yield Finding("data", "warn", f"{leaked} held-out prompts are trained on too", "Take one of each pair out.")


def distinct(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """The first prompts with different texts."""
    found: dict[object, Prompt] = {}
    for prompt in prompts:
        found.setdefault(prompt.messages, prompt)
        if len(found) == count:
            break
    return tuple(found.values())
