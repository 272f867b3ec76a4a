"""The learner's arrangement of tokens: every prompt once per group, then the responses; no padding in the linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from covey.batch import Batch
from covey.engines.attention import Rule, visible
from covey.errors import DataError

_BUCKETS = 4
_ROWS_PER_BUCKET = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start .. start + length` of the packed sequence, which come after `prefix` (start, length) in time."""

    start: int
    length: int
    prefix: tuple[int, int] = (0, 0)

    @property
    def span(self) -> int:
        """How many keys the last token sees."""
        return self.prefix[1] + self.length


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments of similar length, padded to one rectangle: packed positions of queries and keys, times of queries."""

    query: Int[Tensor, "B Q"]
    key: Int[Tensor, "B K"]
    at: Int[Tensor, "B Q"]


@dataclass(eq=False)
class PackedLayout:
    """Attention over packed segments: a token sees its segment up to itself, and the whole prefix of the segment.

    Linear layers see each real token once; only attention works on rectangles. `back` finds every packed token in the buckets'
    outputs laid end to end.
    """

    buckets: Sequence[Bucket]
    back: Int[Tensor, " M"]
    _seen: dict[int | None, list[Tensor]] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "M H D"],
        key: Float[Tensor, "M KV D"],
        value: Float[Tensor, "M KV E"],
        *,
        rule: Rule,
    ) -> Float[Tensor, "M H E"]:
        """What every packed token reads."""
        outs = []
        for bucket, seen in zip(self.buckets, self._masks(rule.window), strict=True):
            q, k, v = (
                _gather(tensor, index).transpose(1, 2)
                for tensor, index in ((query, bucket.query), (key, bucket.key), (value, bucket.key))
            )
            outs.append(_attend(q, k, v, seen=seen, rule=rule).transpose(1, 2).flatten(0, 1))
        return _gather(torch.cat(outs), self.back)

    def _masks(self, window: int | None) -> list[Tensor]:
        """Which key a query sees, [B 1 Q K] per bucket; all layers with the same window share them."""
        if window not in self._seen:
            masks = [visible(bucket.at, bucket.key.shape[1], window)[:, None] for bucket in self.buckets]
            self._seen[window] = masks
        return self._seen[window]


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]`, as an embedding look-up: its backward is the fastest sum over repeated rows on a CPU."""
    return embedding(index, rows.flatten(1)).view(*index.shape, *rows.shape[1:])


def _attend(query: Tensor, key: Tensor, value: Tensor, *, seen: Tensor, rule: Rule) -> Tensor:
    """Attention [B H Q E] of [B H Q D] to [B KV K D] where `seen`."""
    if rule.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=rule.scaling, enable_gqa=True)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.tanh(query @ key.transpose(2, 3) * (rule.scaling / rule.softcap)) * rule.softcap
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=exact).to(value.dtype) @ value


@dataclass(frozen=True, slots=True)
class Packed:
    """A slice of a batch as one sequence. Predicted token i of the mask (row-major) is read from packed position `source[i]`."""

    tokens: Int[Tensor, " M"]
    positions: Int[Tensor, " M"]
    source: Int[Tensor, " L"]
    target: Int[Tensor, " L"]
    layout: PackedLayout


def pack(rows: Batch) -> Packed:
    """Arrange rows as prompts (once per group, shortest first) followed by responses (shortest first).

    A response ends with its last predicted token, which is a target and no input. A slice with nothing to predict keeps its
    prompts (a slice without rows: one token), so that every rank runs every layer.
    """
    device = rows.tokens.device
    steps = _steps(rows)
    groups = rows.group.tolist()
    prompts = {group: rows.prompts[group] for group in dict.fromkeys(groups)} or {-1: (0,)}
    for group, prompt in prompts.items():
        if not prompt:
            raise DataError(f"group {group}", "its prompt has no tokens", "A response is predicted from at least one.")
    segments, tokens, positions = _place_prompts(prompts)
    homes = dict(zip(sorted(prompts, key=lambda g: len(prompts[g])), segments, strict=True))
    starts = [0] * rows.size
    written = rows.tokens.tolist()
    for row in sorted(range(rows.size), key=lambda row: (homes[groups[row]].length + steps[row], row)):
        home, length = homes[groups[row]], max(steps[row] - 1, 0)
        starts[row] = len(tokens)
        if length:
            segments.append(Segment(len(tokens), length, (home.start, home.length)))
            tokens += written[row][:length]
            positions += range(home.length, home.length + length)
    first = torch.tensor([homes[group].start + homes[group].length - 1 for group in groups], dtype=torch.long)
    places, at = rows.mask.cpu().nonzero(as_tuple=True)
    source = torch.where(at == 0, first[places], torch.tensor(starts, dtype=torch.long)[places] + at - 1)
    return Packed(
        torch.tensor(tokens, device=device),
        torch.tensor(positions, device=device),
        source.to(device),
        rows.tokens[rows.mask],
        lay_out(segments, len(homes), device),
    )


def _steps(rows: Batch) -> list[int]:
    """How many tokens of each row are read or predicted: up to the last that is predicted."""
    at = torch.arange(1, rows.tokens.shape[1] + 1, device=rows.mask.device)
    steps: list[int] = (rows.mask * at).amax(1).tolist() if rows.mask.numel() else [0] * rows.size
    return steps


def _place_prompts(prompts: dict[int, tuple[int, ...]]) -> tuple[list[Segment], list[int], list[int]]:
    """Prompts end to end, shortest first: segments, tokens and positions."""
    segments: list[Segment] = []
    tokens: list[int] = []
    positions: list[int] = []
    for group in sorted(prompts, key=lambda group: len(prompts[group])):
        prompt = prompts[group]
        segments.append(Segment(len(tokens), len(prompt)))
        tokens += prompt
        positions += range(len(prompt))
    return segments, tokens, positions


def lay_out(segments: Sequence[Segment], prompts: int, device: torch.device) -> PackedLayout:
    """Buckets of neighbours in the given order, the first `prompts` segments apart from the rest."""
    parts = [part for part in (segments[:prompts], segments[prompts:]) if part]
    cuts = [piece for part in parts for piece in _cut(part)]
    back = torch.empty(sum(segment.length for segment in segments), dtype=torch.long)
    buckets, offset = [], 0
    for piece in cuts:
        bucket = _bucket(piece)
        height = bucket.query.shape[1]
        for row, segment in enumerate(piece):
            begin = offset + row * height
            back[segment.start : segment.start + segment.length] = torch.arange(begin, begin + segment.length)
        offset += len(piece) * height
        buckets.append(Bucket(bucket.query.to(device), bucket.key.to(device), bucket.at.to(device)))
    return PackedLayout(buckets, back.to(device))


def _cut(segments: Sequence[Segment]) -> list[Sequence[Segment]]:
    """At most 4 runs of about equal count; runs of the same rectangle are joined again."""
    count = min(_BUCKETS, -(-len(segments) // _ROWS_PER_BUCKET))
    edges = [len(segments) * i // count for i in range(count + 1)]
    runs: list[Sequence[Segment]] = []
    for begin, end in pairwise(edges):
        run = segments[begin:end]
        if runs and _rectangle(runs[-1]) == _rectangle(run):
            run = [*runs.pop(), *run]
        runs.append(run)
    return runs


def _rectangle(segments: Sequence[Segment]) -> tuple[int, int]:
    """Longest segment and widest view."""
    return max(segment.length for segment in segments), max(segment.span for segment in segments)


def _bucket(segments: Sequence[Segment]) -> Bucket:
    """Index rectangles: real entries first, the rest repeats a position that is hidden (keys) or dropped (queries)."""
    height, width = _rectangle(segments)
    start, length, before, behind = (
        torch.tensor(values)[:, None]
        for values in zip(*[(s.start, s.length, s.prefix[0], s.prefix[1]) for s in segments], strict=True)
    )
    query = torch.minimum(torch.arange(height), length - 1)
    key = torch.arange(width)
    own = start + torch.minimum(key - behind, length - 1)
    return Bucket(start + query, torch.where(key < behind, before + key, own), behind + query)
