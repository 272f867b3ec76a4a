"""The sampler's arrangement of tokens: prompts side by side, then one token per row with its own write position."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.engines.attention import LARGEST_GRANULE, Rule, attend_exactly, granule, round_up, visible


class Cache:
    """Keys and values of `rows` sequences of up to `width` tokens, slots from 0, allocated once; layers appear on first use."""

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, round_up(width, LARGEST_GRANULE)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [rows, KV, width, size]. Zeros at first: a masked slot must not hold a NaN."""
        if layer not in self.keys:
            self.keys[layer] = key.new_zeros(self.rows, key.shape[1], self.width, key.shape[2])
            self.values[layer] = value.new_zeros(self.rows, value.shape[1], self.width, value.shape[2])
        return self.keys[layer][: self.rows], self.values[layer][: self.rows]

    def keep(self, index: Int[Tensor, " R"], used: int) -> None:
        """Move the rows of `index` (ascending) to the front and forget the others; `used` slots hold something."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[: len(index), :, :used] = tensor[:, :, :used].index_select(0, index)
        self.rows = len(index)


@dataclass(eq=False)
class PrefillLayout:
    """Prompts of one padded length each (a multiple of 16), end to end; writes row copies of their keys to the cache.

    `runs` lists (count, padded length) in order; prompt i fills the next `copies[i]` rows of the cache from `row`.
    """

    cache: Cache
    runs: list[tuple[int, int]]
    copies: list[int]
    row: int
    _bias: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "M H D"],
        key: Float[Tensor, "M KV D"],
        value: Float[Tensor, "M KV E"],
        *,
        rule: Rule,
    ) -> Float[Tensor, "M H E"]:
        """Causal attention inside every prompt."""
        outs: list[Tensor] = []
        start, prompt, row = 0, 0, self.row
        keys, values = self.cache.layer(layer, key, value)
        for count, length in self.runs:
            stop = start + count * length
            q, k, v = (
                tensor[start:stop].view(count, length, *tensor.shape[1:]).transpose(1, 2)
                for tensor in (query, key, value)
            )
            outs.append(self._attend_run(q, k, v, rule))
            times = torch.tensor(self.copies[prompt : prompt + count], device=key.device)
            rows = int(times.sum())
            keys[row : row + rows, :, :length] = k.repeat_interleave(times, 0)
            values[row : row + rows, :, :length] = v.repeat_interleave(times, 0)
            start, prompt, row = stop, prompt + count, row + rows
        return torch.cat(outs)

    def _attend_run(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """[B H L D] to [B*L H E]. Keys are filled up to the granule with slots that nothing sees."""
        (count, heads, length, size), groups = query.shape, key.shape[1]
        repeats = heads // groups
        width = round_up(length, granule(repeats * length, min(size, value.shape[3])))
        if width > length:
            key, value = (torch.nn.functional.pad(tensor, (0, 0, 0, width - length)) for tensor in (key, value))
        out = attend_exactly(
            query.reshape(count * groups, repeats * length, size),
            key.reshape(count * groups, width, size),
            value.reshape(count * groups, width, -1),
            bias=self._causal(length, width, repeats, rule.window).to(query).expand(count * groups, -1, -1),
            rule=rule,
        )
        return out.view(count, heads, length, -1).transpose(1, 2).flatten(0, 1)

    def _causal(self, length: int, width: int, repeats: int, window: int | None) -> Tensor:
        key = (length, width, repeats, window)
        if key not in self._bias:
            seen = visible(torch.arange(length), width, window)
            self._bias[key] = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).repeat(repeats, 1)[None]
        return self._bias[key]


@dataclass(eq=False)
class DecodeLayout:
    """One new token per row: written to slot `at` of its row, then attended to with all before it."""

    cache: Cache
    at: Int[Tensor, " R"]
    used: int
    _bias: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict)
    _slots: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "R H D"],
        key: Float[Tensor, "R KV D"],
        value: Float[Tensor, "R KV E"],
        *,
        rule: Rule,
    ) -> Float[Tensor, "R H E"]:
        """Attention of every row's new token to its sequence so far."""
        rows, heads, size = query.shape
        groups, repeats = key.shape[1], heads // key.shape[1]
        keys, values = self.cache.layer(layer, key, value)
        slots = self._slots_of(groups)
        keys.view(-1, size).index_copy_(0, slots, key.reshape(-1, size))
        values.view(-1, value.shape[2]).index_copy_(0, slots, value.reshape(-1, value.shape[2]))
        width = round_up(self.used, granule(repeats, min(size, value.shape[2])))
        out = attend_exactly(
            query.reshape(rows * groups, repeats, size),
            keys.flatten(0, 1)[:, :width],
            values.flatten(0, 1)[:, :width],
            bias=self._hidden(width, groups, repeats, rule.window).to(query.dtype),
            rule=rule,
        )
        return out.view(rows, heads, -1)

    def _slots_of(self, groups: int) -> Tensor:
        """Where every row's new key goes, counted over [rows, KV, width]."""
        if groups not in self._slots:
            lines = torch.arange(len(self.at) * groups, device=self.at.device) * self.cache.width
            self._slots[groups] = lines + self.at.repeat_interleave(groups)
        return self._slots[groups]

    def _hidden(self, width: int, groups: int, repeats: int, window: int | None) -> Tensor:
        """0 where a row sees a slot, -inf elsewhere; all layers of the same form share it."""
        key = (width, groups, repeats, window)
        if key not in self._bias:
            seen = visible(self.at, width, window)
            bias = torch.zeros(seen.shape, device=self.at.device).masked_fill(~seen, -torch.inf)
            self._bias[key] = bias.repeat_interleave(groups, 0)[:, None].repeat(1, repeats, 1)
        return self._bias[key]
