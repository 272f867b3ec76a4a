"""How a conversation becomes tokens and a response becomes text: template, system prompt, thinking tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.errors import ConfigError, DataError, did_you_mean
from covey.types import Json, Message

_OURS = ("messages", "add_generation_prompt", "tokenize", "chat_template", "continue_final_message", "return_dict")
_PROBE = "covey probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What a user says of the conversation: system prompt, further variables of the template, tags around thoughts."""

    system: str | None = None
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    thinking: tuple[str, str] | None = None


PLAIN = Chat()


def check_chat(tokenizer: Any, chat: Chat) -> None:
    """Refuse what a template would leave out: variables that it does not mention, a system prompt that it does not show."""
    template = getattr(tokenizer, "chat_template", None)
    where = "model.chat_template_kwargs"
    for name in chat.template_kwargs:
        if not template:
            raise ConfigError(where, "the model has no chat template that could read them", "Leave them out.")
        if name in _OURS:
            raise ConfigError(f"{where}.{name}", "covey sets it itself", "Leave it out.")
        if not re.search(rf"\b{re.escape(name)}\b", str(template)):
            known = sorted(set(re.findall(r"\b(\w+) is (?:not )?defined\b", str(template))))
            raise ConfigError(
                f"{where}.{name}", "the chat template never reads it", did_you_mean(name, known) or "Leave it out."
            )
    if chat.thinking is not None and (not all(chat.thinking) or chat.thinking[0] == chat.thinking[1]):
        raise ConfigError("model.thinking", f"got {list(chat.thinking)}", "Give two different tags.")
    if template and chat.system is not None and chat.system.strip():
        text = apply_template(tokenizer, [Message("user", _PROBE)], chat)
        if chat.system.strip() not in text:
            raise ConfigError("model.system", "the chat template leaves system prompts out", "Put it into the prompts.")


def apply_template(tokenizer: Any, messages: Sequence[Message], chat: Chat = PLAIN) -> str:
    """The text of a conversation up to the model's turn, by the tokenizer's chat template."""
    plain = [{"role": message.role, "content": message.content} for message in with_system(messages, chat)]
    try:
        text: str = tokenizer.apply_chat_template(
            plain, **chat.template_kwargs, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template may raise anything, and says why
        found = f"it raised {type(error).__name__}: {error}"
        right = "Mend the template or the prompt's messages."
        if chat.system is not None:
            right = "Mend the template or the prompt's messages, or leave model.system out."
        raise ConfigError("model chat template", found, right) from None
    return text


def with_system(messages: Sequence[Message], chat: Chat) -> list[Message]:
    """The conversation with the system prompt in front, unless it has one."""
    if chat.system is None or (messages and messages[0].role == "system"):
        return list(messages)
    return [Message("system", chat.system), *messages]


def render(tokenizer: Any, messages: Sequence[Message], chat: Chat = PLAIN) -> tuple[int, ...]:
    """Token ids of a conversation up to the model's turn.

    With a chat template the text is the template's and no special tokens are added to it; without one it is the messages'
    contents, one after another, with the special tokens that the tokenizer puts in front. There is never more than one BOS.
    """
    if getattr(tokenizer, "chat_template", None):
        text = apply_template(tokenizer, messages, chat)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        text = "".join(message.content for message in with_system(messages, chat))
        ids = tokenizer(text, verbose=False)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not ids:
        raise DataError("prompt", "it has no tokens", "Give a text.")
    return tuple(ids)


def decode(tokenizer: Any, tokens: Sequence[int], keep: Sequence[str] = ()) -> str:
    """The text of response ids without special tokens, but with those of `keep`."""
    ids = {tokenizer.convert_tokens_to_ids(tag): tag for tag in keep if tag in tokenizer.all_special_tokens}
    parts: list[str] = []
    start = 0
    for at, token in enumerate(tokens):
        if token in ids:
            parts += [_decode(tokenizer, tokens[start:at]), ids[token]]
            start = at + 1
    return "".join([*parts, _decode(tokenizer, tokens[start:])])


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text


def split_thought(text: str, tags: tuple[str, str], *, opened: bool) -> tuple[str, str]:
    """(thought, answer) of a response: what stands inside the tags, and what follows the first closing one, both stripped.

    `opened`: the prompt ends inside a thought. A thought that is never closed leaves no answer; a response without any is all
    answer.
    """
    start, end = tags
    if not (opened or start in text or end in text):
        return "", text
    thought, _, answer = text.partition(end)
    if not opened and start in thought:
        thought = thought.partition(start)[2]
    return thought.strip(), answer.strip()


def opens_thought(tokenizer: Any, chat: Chat) -> bool:
    """Whether the template ends the prompt inside a thought, so that a response begins in the middle of one."""
    if chat.thinking is None or not getattr(tokenizer, "chat_template", None):
        return False
    start, end = chat.thinking
    text = apply_template(tokenizer, [Message("user", _PROBE)], chat)
    tail = text.rpartition(_PROBE)[2]
    return start in tail and tail.rfind(start) > tail.rfind(end)
