"""Talking with a model: a conversation, its answers as they come, and held-out problems with their score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from covey import random
from covey.collect.scoring import score_groups
from covey.engines.choice import Choice
from covey.engines.loading import LoadedModel
from covey.engines.sampler import HFSampler, Wave
from covey.errors import ConfigError, DataError, did_you_mean
from covey.observe.plain import clean
from covey.protocols import Task
from covey.types import Group, Message, Prompt, Request, Rollout, RolloutKey, Sampling, Stop

Listen = Callable[[str], None]
"""Told each new piece of a response, harmless for a terminal."""


def harmless(text: str) -> str:
    """Text whose line breaks stay and in which nothing else acts: no escape sequence, no control or bidi character."""
    return "\n".join(clean(line) for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: its text as the model wrote it, its tokens, and why it ended."""

    text: str
    tokens: tuple[int, ...]
    stop: Stop


class Listener(HFSampler):
    """A sampler that tells each token of a single response as soon as it is drawn."""

    listen: Callable[[int], None] | None = None

    def _choose(self, wave: Wave, logits: Any, step: int) -> Choice:
        choice = super()._choose(wave, logits, step)
        if self.listen is not None:
            self.listen(int(choice.token[0]))
        return choice


class Stream:
    """Turns tokens into pieces of harmless text; an unfinished character or escape sequence waits for its end."""

    def __init__(self, loaded: LoadedModel, tell: Listen) -> None:
        self.loaded, self.tell = loaded, tell
        self.tokens: list[int] = []
        self.told = ""

    def __call__(self, token: int) -> None:
        """Tell what a new token adds."""
        self.tokens.append(token)
        text = self.loaded.decode(tuple(self.tokens))
        if text.endswith("\ufffd"):  # bytes of a character that is still to come
            return
        self._tell(text)

    def finish(self, text: str) -> None:
        """Tell what is left of the whole response."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        shown = harmless(text)
        if shown.startswith(self.told) and len(shown) > len(self.told):
            piece, self.told = shown[len(self.told) :], shown
            self.tell(piece)


class Conversation:
    """Messages so far and the model that answers them; the noise of answer number i is a function of (seed, i).

    Without a chat template every message is a prompt of its own: `remembers` is False.
    """

    def __init__(self, loaded: LoadedModel, sampling: Sampling, *, seed: int = 0) -> None:
        self.loaded, self.sampling, self.seed = loaded, sampling, seed
        self.sampler = Listener(loaded.model, tokenizer=loaded.tokenizer)
        self.messages: tuple[Message, ...] = ()
        self.answered = 0

    @property
    def remembers(self) -> bool:
        """Whether the model is told the conversation so far."""
        return bool(getattr(self.loaded.tokenizer, "chat_template", None))

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = ()

    def say(self, text: str, tell: Listen | None = None) -> Reply:
        """The model's answer to a message, told in pieces as it comes. What cannot be asked is not remembered."""
        messages = (*(self.messages if self.remembers else ()), Message("user", text))
        reply = self._answer(self.loaded.render(messages), tell)
        self.messages = (*messages, Message("assistant", reply.text))
        return reply

    def solve(self, task: Task, prompt: Prompt, tell: Listen | None = None) -> tuple[Reply, Rollout]:
        """The model's answer to a problem, and the same scored by the task's reward; the conversation is left as it is."""
        tokens = self.loaded.render(prompt.messages)
        reply = self._answer(tokens, tell)
        limit = len(reply.tokens) if reply.stop is Stop.LENGTH else self.sampling.max_tokens
        rollout = Rollout(RolloutKey(prompt.id, 0), (), reply.stop, limit, text=reply.text)
        group = Group(prompt.id, prompt, tokens, (rollout,))
        return reply, asyncio.run(score_groups(task.reward, [group]))[0].rollouts[0]

    def _answer(self, tokens: tuple[int, ...], tell: Listen | None) -> Reply:
        stream = Stream(self.loaded, tell) if tell is not None else None
        self.sampler.listen = stream
        request = Request("chat", tokens, (random.key(self.seed, "chat", self.answered),))
        sample = self.sampler.sample([request], self._fit(len(tokens)))[0][0]
        self.answered += 1
        reply = Reply(self.loaded.decode(sample.turn.tokens), sample.turn.tokens, sample.stop)
        if stream is not None:
            stream.finish(reply.text)
        return reply

    def _fit(self, used: int) -> Sampling:
        """The longest response that is asked for and that the model's context has room for."""
        config: Any = self.loaded.model.config
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        room = self.sampling.max_tokens if context is None else context - used
        if room < 1:
            found = f"it has {used} tokens, the model's context {context}"
            raise DataError("message", found, "Say less, or /reset.")
        return replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room))


def pick_problem(held_out: Any, main_set: str, wanted: str, index: int = 0) -> Prompt:
    """Held-out problem number `index`, counted round, of the set `wanted` (empty: the main one); `SET:N` names its number."""
    name, _, number = wanted.partition(":")
    name = name or main_set
    if name not in held_out:
        raise ConfigError("--problem", f"there is no evaluation set '{name}'", did_you_mean(name, held_out))
    prompts: Sequence[Prompt] = held_out[name]
    if not prompts:
        raise DataError(f"set {name}", "it holds no problems", "Choose another one.")
    if number and not (number.isdecimal() and int(number) < len(prompts)):
        raise ConfigError(
            "--problem", f"got {wanted!r}", f"Problems of {name} are {name}:0 to {name}:{len(prompts) - 1}."
        )
    return prompts[int(number) if number else index % len(prompts)]
