"""The nouns of covey that hold no tensors: what is asked, what was said, and what it was worth.

Dimension letters used everywhere: `P` prompts of a step, `G` rollouts of one prompt (ragged), `N` rows (trainable sequences
of a step), `T` response positions (policy turns and what lies between them, padded), `K` reward components, `S` segments,
`V` vocabulary, `C` candidates, `E` experts. A suffix says the level of a number: `_N` per row, `_NT` per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

Json = Any  # a value that json.dumps accepts


class Stop(StrEnum):
    """Why a rollout ended. `length` is the only one that means *truncated*: a stop token exactly at the limit is `end`."""

    END = "end"
    """a stop token or stop string"""
    LENGTH = "length"
    """the token budget was used up before a stop token"""


STOPS = tuple(Stop)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem: immutable, JSON-able. `id` names it for ever; `answer` is the gold answer if there is one.

    `conversational` says that it was given as messages and not as text; `task` names the source that it is from.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None
    task: str
    meta: Mapping[str, Json] = field(default_factory=dict)
    conversational: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """Consecutive tokens by one speaker. Ids are the truth, text is derived from them and never tokenised again.

    `sampled_logp` is the log-probability under the distribution that was really sampled from (temperature, top-p, top-k);
    `policy_logp` is the one under the policy at that temperature without truncation: the two differ only when top-p or
    top-k act. `versions` lists (count of tokens, policy version) in order.
    """

    tokens: tuple[int, ...]
    sampled_logp: tuple[float, ...] | None
    by: Literal["policy", "env"] = "policy"
    versions: tuple[tuple[int, int], ...] = ()
    policy_logp: tuple[float, ...] | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """Who a rollout is: sample `index` of `visit` of `prompt`; `parent` and `at` (a token position) make trees."""

    prompt: str
    index: int
    visit: int = 0
    parent: int | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response (all its turns) and what it was worth.

    `rewards` holds a number per component; a component that could not be scored is absent there and stands in `failures`
    with its reason. `facts` are per-rollout labels for metrics (failure class, format_ok), `detail` is feedback text.
    `limit` is the token budget that the rollout had. Of a model that thinks, `text` is what follows the thought and `thought`
    what stands inside it.
    """

    key: RolloutKey
    turns: tuple[Turn, ...]
    stop: Stop
    limit: int
    text: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)
    detail: str = ""
    thought: str = ""

    @property
    def length(self) -> int:
        """Number of tokens that the policy generated, the stop token included."""
        return sum(len(turn.tokens) for turn in self.turns if turn.by == "policy")

    def with_(self, **changes: Any) -> Rollout:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one visit of one prompt: the unit of scoring, filtering, transport and staleness; keyed by `id`."""

    id: str
    prompt: Prompt
    prompt_tokens: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    def with_(self, **changes: Any) -> Group:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward says of one rollout: a number per component, or a typed failure; never a silent 0."""

    values: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; nothing of it comes from a model's `generation_config.json`.

    `temperature` 0 is greedy (evaluation only). `top_k` 0 and `top_p` 1 leave the distribution whole. `stop_ids` end a turn
    and are part of it; `stop` are strings that end it as soon as the decoded text contains one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """Ask a sampler for continuations of one token sequence: one per noise key, so samples never depend on their batch."""

    id: str
    tokens: tuple[int, ...]
    noise_keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation: the policy's turn and why it ended."""

    turn: Turn
    stop: Stop
