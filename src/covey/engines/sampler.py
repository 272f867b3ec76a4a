"""The sampler on a transformers causal LM: every prompt is computed once, finished rows leave, logp comes with the token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covey.engines.adapters import is_adapted, settings
from covey.engines.attention import KEYWORD, decoder_of, prepare, round_up
from covey.engines.cache import Cache, DecodeLayout, PrefillLayout
from covey.engines.choice import Choice, choose
from covey.engines.fingerprint import Fingerprint, fingerprint
from covey.engines.head import LogitHead
from covey.engines.noise import key_tensor
from covey.engines.precision import precision
from covey.errors import ConfigError, DataError
from covey.types import Request, Sample, Sampling, Stop, Turn

_PREFILL_TOKENS = 8192
_FINISHED = 0.1
_TAIL_MARGIN = 8


class HFSampler:
    """Continues token sequences with a transformers model; the tokens of a sample depend on its request and key alone.

    On a CPU in float32 also its logits are bitwise the same in any batch: prompts and rows are padded to 16, so every matrix
    product has a multiple of 16 rows, and keys to a width that no sum can notice. `model` may be the learner's own module.
    """

    def __init__(self, model: nn.Module, *, tokenizer: Any = None, max_rows: int = 512, version: int = 0) -> None:
        if max_rows < 1:
            raise ConfigError("engines.sampler_rows", f"got {max_rows}", "At least 1.")
        prepare(model)
        self.model, self.tokenizer, self.max_rows, self.version = model, tokenizer, max_rows, version

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Copy weights (under transformers' names) into the sampler's model, in place; of an adapted model the adapters."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        adapted = is_adapted(self.model)
        trained = (name for name, value in self.model.named_parameters() if value.requires_grad or not adapted)
        missing = [name for name in trained if name not in weights]
        unknown = [name for name in weights if name not in own]
        if missing or unknown:
            name, what = (
                (missing or unknown)[0],
                "not among" if missing else "unknown to the sampler's model, but among",
            )
            raise ConfigError("sampler", f"'{name}' is {what} the published weights", "Publish one whole model.")
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        self.version = version

    def fingerprint(self, names: Iterable[str]) -> dict[str, Fingerprint]:
        """Exact sums of the tensors that it samples with, by name; for checking that what was published has arrived."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        return {name: fingerprint(own[name]) for name in names if name in own}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Which adapters are on, and how they are scaled, by layer."""
        return settings(self.model)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """One sample per noise key of every request, in order. At most `max_rows` rows are alive at a time."""
        self._check(requests, sampling)
        found: list[list[Sample | None]] = [[None] * len(request.noise_keys) for request in requests]
        with torch.no_grad(), precision(self.model):
            for jobs in _plan_waves(requests, self.max_rows):
                for (request, at), sample in zip(_places(jobs), self._run(requests, jobs, sampling), strict=True):
                    found[request][at] = sample
        return found  # type: ignore[return-value]

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Refuse what would run into the model's limits."""
        config: Any = self.model.config.get_text_config()  # type: ignore[union-attr, operator]
        context = getattr(config, "max_position_embeddings", None)
        if sampling.max_tokens < 1:
            raise ConfigError("sampling.max_tokens", f"got {sampling.max_tokens}", "At least 1.")
        if sampling.stop and self.tokenizer is None:
            raise ConfigError("sampling.stop", "stop strings need a tokenizer and this sampler has none", "")
        for request in requests:
            if not request.tokens:
                raise DataError(f"request {request.id}", "its prompt has no tokens", "Give at least one.")
            if context and len(request.tokens) + sampling.max_tokens > context:
                raise DataError(
                    f"request {request.id}",
                    f"{len(request.tokens)} prompt tokens and max_tokens {sampling.max_tokens} exceed the model's {context}",
                    "Shorten the prompt or lower budget.sampling.max_tokens.",
                )

    def _run(self, requests: Sequence[Request], jobs: Sequence[Job], sampling: Sampling) -> list[Sample]:
        """Sample all rows of one wave."""
        wave = Wave(self, requests, jobs, sampling)
        logits = wave.prefill()
        for step in range(sampling.max_tokens):
            wave.record(self._choose(wave, logits, step), step)
            if not wave.alive or step + 1 == sampling.max_tokens:
                break
            logits = wave.decode(step)
        return wave.samples()

    def _choose(self, wave: Wave, logits: Tensor, step: int) -> Choice:
        """Draw the next token of every row of a wave."""
        return choose(logits, wave.keys, step, wave.sampling)


@dataclass(frozen=True, slots=True)
class Job:
    """Samples `first .. last` of request number `request`."""

    request: int
    first: int
    last: int


def _plan_waves(requests: Sequence[Request], limit: int) -> Iterator[list[Job]]:
    """Jobs of at most `limit` rows together, shortest prompts first; a request of many samples is cut."""
    wave: list[Job] = []
    free = limit
    for request in sorted(range(len(requests)), key=lambda at: len(requests[at].tokens)):
        first, count = 0, len(requests[request].noise_keys)
        while first < count:
            last = min(count, first + free)
            wave.append(Job(request, first, last))
            free -= last - first
            first = last
            if not free:
                yield wave
                wave, free = [], limit
    if wave:
        yield wave


def _places(jobs: Sequence[Job]) -> Iterator[tuple[int, int]]:
    """(request, sample) of every row of a wave, in order."""
    return ((job.request, at) for job in jobs for at in range(job.first, job.last))


class Wave:
    """Rows that are sampled side by side. `origin[i]` is the number of live row i; dummy rows fill up to a multiple of 16."""

    def __init__(
        self, sampler: HFSampler, requests: Sequence[Request], jobs: Sequence[Job], sampling: Sampling
    ) -> None:
        self.sampler, self.sampling = sampler, sampling
        self.device = next(sampler.model.parameters()).device
        self.prompts = [requests[job.request].tokens for job in jobs]
        self.copies = [job.last - job.first for job in jobs]
        self.count = sum(self.copies)
        rows = round_up(self.count)
        lengths = torch.tensor([len(prompt) for prompt in self.prompts]).repeat_interleave(torch.tensor(self.copies))
        keys = [key for job in jobs for key in requests[job.request].noise_keys[job.first : job.last]]
        self.keys = key_tensor([*keys, *[0] * (rows - self.count)], self.device)
        self.lengths = torch.cat([lengths, torch.zeros(rows - self.count, dtype=torch.long)]).to(self.device)
        self.origin = torch.arange(rows, device=self.device)
        self.alive = self.count
        self.live = self.origin < self.count
        self.token = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.long, device=self.device)
        widest = max(round_up(len(prompt)) for prompt in self.prompts)
        self.cache = Cache(rows, max(widest, max(map(len, self.prompts)) + sampling.max_tokens))
        self.tokens = torch.zeros(rows, sampling.max_tokens, dtype=torch.long, device=self.device)
        self.taken = torch.full((rows,), sampling.max_tokens, device=self.device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.logp: dict[str, Tensor] = {}

    def prefill(self) -> Float[Tensor, "R V"]:
        """Compute every prompt once and give its rows the logits of their first token."""
        lasts: list[Tensor] = []
        start = row = 0
        for stop in _cut_prompts(self.prompts):
            part, copies = self.prompts[start:stop], self.copies[start:stop]
            lasts.append(self._prefill(part, copies, row))
            start, row = stop, row + sum(copies)
        last = torch.cat(lasts)
        filler = last[:1].expand(round_up(len(last)) - len(last), -1)
        logits = LogitHead(self.sampler.model)(torch.cat([last, filler]))
        prompt = torch.arange(len(self.copies)).repeat_interleave(torch.tensor(self.copies)).to(self.device)
        filler_rows = prompt.new_zeros(len(self.keys) - len(prompt))
        return logits.index_select(0, torch.cat([prompt, filler_rows]))

    def _prefill(self, prompts: Sequence[tuple[int, ...]], copies: list[int], row: int) -> Float[Tensor, "P H"]:
        """Hidden state of every prompt's last token; keys go to the cache from `row` on."""
        padded = [round_up(len(prompt)) for prompt in prompts]
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for prompt, length in zip(prompts, padded, strict=True):
            rest = length - len(prompt)
            last.append(len(tokens) + len(prompt) - 1)
            tokens += [*prompt, *prompt[-1:] * rest]
            positions += [*range(len(prompt)), *[len(prompt) - 1] * rest]
        layout = PrefillLayout(self.cache, _runs(padded), copies, row)
        hidden = self._forward(torch.tensor(tokens), torch.tensor(positions), layout)
        return hidden.index_select(0, torch.tensor(last, device=self.device))

    def _forward(self, tokens: Tensor, positions: Tensor, layout: Any) -> Float[Tensor, "M H"]:
        decoder: Any = decoder_of(self.sampler.model)
        hidden: Tensor = decoder(
            input_ids=tokens.to(self.device)[None],
            position_ids=positions.to(self.device)[None],
            use_cache=False,
            **{KEYWORD: layout},
        ).last_hidden_state[0]
        return hidden

    def decode(self, step: int) -> Float[Tensor, "R V"]:
        """Logits of token `step + 1` of every row, after rows that have finished were dropped."""
        self._compact(step)
        at = torch.where(self.live, self.lengths + step, 0)
        layout = DecodeLayout(self.cache, at, int(at.max()) + 1)
        return LogitHead(self.sampler.model)(self._forward(self.token, at, layout))

    def _compact(self, step: int) -> None:
        """Drop finished rows once a tenth of all rows goes away: each time copies the living cache."""
        rows = round_up(self.alive)
        if rows > (1 - _FINISHED) * len(self.origin):
            return
        order = torch.cat([self.live.nonzero()[:, 0], (~self.live).nonzero()[:, 0]])[:rows]
        index = order.sort().values
        used = min(int(self.lengths[index].max()) + step, self.cache.width)
        self.cache.keep(index, used)
        self.keys, self.lengths, self.origin = self.keys[index], self.lengths[index], self.origin[index]
        self.live, self.token = self.live[index], self.token[index]

    def record(self, choice: Choice, step: int) -> None:
        """Note a token of every living row and which rows end with it."""
        rows = self.origin[self.live]
        self.token = choice.token
        self.tokens[rows, step] = choice.token[self.live]
        logs = {"sampled": choice.sampled_logp, "policy": choice.policy_logp}
        for name, logp in logs.items():
            if logp is not None:
                store = self.logp.setdefault(name, logp.new_zeros(self.tokens.shape))
                store[rows, step] = logp[self.live]
        ends = self.live & ((self.token[:, None] == self.stop_ids).any(1) | self._speaks_stop(step))
        finished = self.origin[ends]
        self.taken[finished] = step + 1
        self.ended[finished] = True
        self.live = self.live & ~ends
        self.alive = int(self.live.sum())

    def _speaks_stop(self, step: int) -> Tensor:
        """Rows whose decoded tail contains a stop string; it is decoded some tokens longer than the string has bytes."""
        ends = torch.zeros_like(self.live)
        if not self.sampling.stop:
            return ends
        tail = max(len(text.encode()) for text in self.sampling.stop) + _TAIL_MARGIN
        rows = self.live.nonzero()[:, 0]
        recent = self.tokens[self.origin[rows], max(0, step + 1 - tail) : step + 1].tolist()
        texts = self.sampler.tokenizer.batch_decode(recent)
        hits = [any(stop in text for stop in self.sampling.stop) for text in texts]
        ends[rows] = torch.tensor(hits, dtype=torch.bool, device=self.device)
        return ends

    def samples(self) -> list[Sample]:
        """All rows of the wave in their first order."""
        tokens, taken, ended = self.tokens.tolist(), self.taken.tolist(), self.ended.tolist()
        logp = {name: store.tolist() for name, store in self.logp.items()}
        found = []
        for row in range(self.count):
            count = taken[row]
            turn = Turn(
                tokens=tuple(tokens[row][:count]),
                sampled_logp=tuple(logp["sampled"][row][:count]),
                policy_logp=tuple(logp["policy"][row][:count]) if "policy" in logp else None,
                versions=((count, self.sampler.version),),
            )
            found.append(Sample(turn, Stop.END if ended[row] else Stop.LENGTH))
        return found


def _cut_prompts(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """Ends of runs of prompts that hold at most 8192 padded tokens together (at least one prompt)."""
    ends: list[int] = []
    held = 0
    for at, prompt in enumerate(prompts):
        held += round_up(len(prompt))
        if held > _PREFILL_TOKENS and at:
            ends.append(at)
            held = round_up(len(prompt))
    return [*ends, len(prompts)]


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(count, length) of runs of equal lengths."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    return runs
