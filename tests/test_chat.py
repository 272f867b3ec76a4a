"""Conversations: what the model is told, what reaches the terminal, and problems with their score."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from covey.chat import Conversation, Stream, harmless, pick_problem
from covey.engines.loading import LoadedModel, load_model
from covey.engines.sampler import HFSampler
from covey.errors import ConfigError, DataError
from covey.random import key
from covey.tasks.compose import Compose
from covey.types import Message, Request, Sampling, Stop

torch.set_num_threads(1)
TALK = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("tiny")


@pytest.fixture
def talking(loaded: LoadedModel) -> LoadedModel:
    """The same model with a template that shows the whole conversation."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = TALK
    return LoadedModel(loaded.model, tokenizer, loaded.stop_ids, "tiny")


def sampling(loaded: LoadedModel, **changes: Any) -> Sampling:
    return Sampling(**{"temperature": 1.0, "max_tokens": 16, "stop_ids": loaded.stop_ids, **changes})


def test_an_answer_is_the_sampler_s_own_and_comes_in_pieces(loaded: LoadedModel) -> None:
    pieces: list[str] = []
    reply = Conversation(loaded, sampling(loaded), seed=3).say("A(abc)=", pieces.append)
    request = Request("r", loaded.render((Message("user", "A(abc)="),)), (key(3, "chat", 0),))
    sample = HFSampler(loaded.model).sample([request], sampling(loaded))[0][0]
    assert (reply.tokens, reply.stop) == (sample.turn.tokens, sample.stop)
    assert "".join(pieces) == harmless(reply.text) == loaded.decode(sample.turn.tokens)
    assert len(pieces) > 1


def test_a_conversation_is_told_whole_and_can_be_forgotten(talking: LoadedModel) -> None:
    talk = Conversation(talking, sampling(talking, max_tokens=4))
    assert talk.remembers
    first, second = talk.say("ab"), talk.say("cd")
    told = [(message.role, message.content) for message in talk.messages]
    assert told == [("user", "ab"), ("assistant", first.text), ("user", "cd"), ("assistant", second.text)]
    talk.reset()
    talk.say("ef")
    assert talk.messages[0].content == "ef"


def test_without_a_template_each_message_stands_alone(loaded: LoadedModel) -> None:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = None
    bare = LoadedModel(loaded.model, tokenizer, loaded.stop_ids, "tiny")
    talk, other = (Conversation(bare, sampling(bare, temperature=0.0)) for _ in range(2))
    talk.say("A(abc)=")
    assert not talk.remembers
    assert talk.say("B(ab)=") == other.say("B(ab)=")


def test_the_noise_of_each_answer_is_its_own_and_repeats(loaded: LoadedModel) -> None:
    def answers(seed: int) -> list[tuple[int, ...]]:
        talk = Conversation(loaded, sampling(loaded), seed=seed)
        found = []
        for _ in range(4):
            talk.reset()
            found.append(talk.say("zzz").tokens)
        return found

    assert answers(0) == answers(0) != answers(1)
    assert len(set(answers(0))) > 1


def test_a_message_longer_than_the_context_is_one_line_and_forgotten(talking: LoadedModel) -> None:
    talk = Conversation(talking, sampling(talking))
    with pytest.raises(DataError, match="the model's context 512"):
        talk.say("a" * 600)
    assert talk.messages == ()
    assert talk.say("a" * 500).stop in tuple(Stop)  # what room is left is used


class Spelled:
    """A model's tokens as bytes."""

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mb\x1b[0mc", "abc"),
        ("x\x1b]0;evil title\x07y", "xy"),
        ("one\ntwo\r\n", "one\ntwo"),
        ("naïve 漢字 😀 ok", "naïve 漢字 😀 ok"),
        ("a\u202eb\u200bc\x08d", "abcd"),
    ],
)
def test_pieces_are_harmless_wherever_they_are_cut(raw: str, shown: str) -> None:
    pieces: list[str] = []
    stream = Stream(Spelled(), pieces.append)  # type: ignore[arg-type]
    for byte in raw.encode():
        stream(byte)
    stream.finish(raw)
    assert "".join(pieces) == shown
    assert all(letter == "\n" or letter.isprintable() for letter in "".join(pieces))


def test_a_problem_is_answered_scored_and_leaves_the_conversation(loaded: LoadedModel) -> None:
    task = Compose()
    talk = Conversation(loaded, sampling(loaded, temperature=0.0, max_tokens=32))
    prompt = pick_problem(task.held_out(0), task.main_set, "L1:3")
    assert prompt == task.held_out(0)["L1"][3]
    reply, rollout = talk.solve(task, prompt)
    assert rollout.text == reply.text
    assert rollout.rewards["correct"] == float(reply.text == f"{prompt.answer}.")
    assert talk.messages == ()


def test_problems_come_in_turn_and_mistakes_are_told() -> None:
    sets = Compose().held_out(0)
    assert pick_problem(sets, "L2", "", 1) == sets["L2"][1]
    assert pick_problem(sets, "L2", "L1", len(sets["L1"]) + 1) == sets["L1"][1]
    for wanted, message in (
        ("L9", "there is no evaluation set 'L9'"),
        ("L1:x", "L1:0 to L1:"),
        ("L1:9999", "got 'L1:9999'"),
    ):
        with pytest.raises(ConfigError, match=message):
            pick_problem(sets, "L2", wanted)
    with pytest.raises(DataError, match="holds no problems"):
        pick_problem({"L2": []}, "L2", "")
