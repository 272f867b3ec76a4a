"""What passes between ranks as plain data and tensors: batches (ragged), live outputs, metrics, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from covey.batch import Batch, Credited, Keep, Live
from covey.engines.slices import Plan, cheapest_row, is_token_level, map_tensors
from covey.engines.world import Payload
from covey.metrics import Metric, Metrics
from covey.types import Json, Sample, Sampling, Stop, Turn


def real_tokens(batch: Batch) -> Bool[Tensor, "N T"]:
    """Where a row has a token: everywhere but in the padding after its length."""
    return torch.arange(batch.tokens.shape[1], device=batch.length.device) < batch.length[:, None]


def pack(batch: Batch) -> Payload:
    """A batch for transport: ragged, only real tokens of rows, and each prompt once."""
    real, tensors, ragged = real_tokens(batch), dict[str, Tensor](), list[str]()

    def take(name: str, tensor: Tensor) -> Tensor:
        tensors[name] = tensor
        if is_token_level(name, tensor):
            tensors[name] = tensor[real]
            ragged.append(name)
        return tensor

    map_tensors(batch, take)
    tensors["prompts"] = torch.tensor(
        [token for prompt in batch.prompts.values() for token in prompt], dtype=torch.int64
    )
    plain = {
        item.name: getattr(batch, item.name) for item in fields(batch) if isinstance(getattr(batch, item.name), tuple)
    }
    header = {"credited": isinstance(batch, Credited), "ragged": ragged, "plain": plain}
    return {**header, "prompts": [[group, len(prompt)] for group, prompt in batch.prompts.items()]}, tensors


def unpack(payload: Payload) -> Any:
    """The batch that `pack` sent, padded with zeros to its own longest row."""
    header, tensors = payload
    cls = Credited if header["credited"] else Batch
    found: dict[str, Any] = {name: tuple(value) for name, value in header["plain"].items()}
    found |= {"columns": {}, "penalty_weight": {}} if header["credited"] else {"columns": {}}
    for key, tensor in tensors.items():
        field, _, name = key.partition("/")
        value = pad(tensor, tensors["length"]) if key in header["ragged"] else tensor
        if name:
            found.setdefault(field, {})[name] = value
        else:
            found[field] = value
    flat, ends = tensors["prompts"].tolist(), list(accumulate(size for _, size in header["prompts"]))
    prompts = {group: tuple(flat[end - size : end]) for (group, size), end in zip(header["prompts"], ends, strict=True)}
    return cls(**{**found, "prompts": prompts, "keep": Keep(**found["keep"])})


def pad(ragged: Tensor, length: Tensor) -> Tensor:
    """Values of real tokens, one after another, as [N T ...] with zeros in the padding."""
    width = int(length.max()) if length.numel() else 0
    out = ragged.new_zeros((length.shape[0], width, *ragged.shape[1:]))
    out[torch.arange(width) < length[:, None]] = ragged
    return out


def share_out(batch: Batch, shares: Plan, options: Mapping[str, Json]) -> list[Payload]:
    """Each rank's rows and the options. A rank without rows gets the cheapest one and the word that it is idle."""
    payloads: list[Payload] = []
    for share in shares:
        header, tensors = pack(batch.rows(torch.tensor(share or cheapest_row(batch))))
        payloads.append(({**header, **options, "idle": not share}, tensors))
    return payloads


def live_to(live: Live, batch: Batch) -> Payload:
    """Live outputs for transport: ragged."""
    real = real_tokens(batch)
    tensors = live.tensors()
    return {"ragged": [n for n, t in tensors.items() if is_token_level(n, t)]}, {
        name: tensor[real] if is_token_level(name, tensor) else tensor for name, tensor in tensors.items()
    }


def join(answers: Sequence[Payload], shares: Plan, batch: Batch) -> Live:
    """The live outputs of a whole batch from those of its shares."""
    whole: dict[str, Tensor] = {}
    for share, (header, tensors) in zip(shares, answers, strict=True):
        if not share:
            continue
        rows = torch.tensor(share)
        for name, tensor in tensors.items():
            if name not in header["ragged"]:
                whole.setdefault(name, tensor.new_zeros((batch.size, *tensor.shape[1:])))[rows] = tensor
                continue
            value = pad(tensor, batch.length[rows])
            full = whole.setdefault(name, value.new_zeros((*batch.tokens.shape, *value.shape[2:])))
            full[rows, : value.shape[1]] = value
    return Live.of(whole)


def metrics_to(metrics: Metrics) -> Json:
    """Metrics as plain data; `repr` of a float is exact, so nothing is lost."""
    return {name: [metric.kind, repr(metric.total), repr(metric.count)] for name, metric in metrics.items()}


def metrics_from(payload: Payload) -> Metrics:
    """The inverse of `metrics_to`."""
    return {name: Metric(kind, float(total), float(count)) for name, (kind, total, count) in payload[0].items()}


def samples_to(groups: Sequence[Sequence[Sample]]) -> Payload:
    """Samples for transport: numbers as tensors, the rest as plain data."""
    turns = [sample.turn for samples in groups for sample in samples]
    facts = [
        [[len(s.turn.tokens), s.turn.by, s.turn.versions, s.turn.extra, str(s.stop)] for s in samples]
        for samples in groups
    ]
    tensors = {"tokens": torch.tensor([t for turn in turns for t in turn.tokens], dtype=torch.int64)}
    for name in ("sampled_logp", "policy_logp"):
        values = [getattr(turn, name) for turn in turns]
        if turns and all(value is not None for value in values):
            tensors[name] = torch.tensor([x for value in values for x in value], dtype=torch.float64)
    return facts, tensors


def samples_from(payload: Payload) -> list[list[Sample]]:
    """The inverse of `samples_to`."""
    facts, tensors = payload
    lists, at, found = {name: tensor.tolist() for name, tensor in tensors.items()}, 0, []
    for samples in facts:
        found.append(list[Sample]())
        for count, by, versions, extra, stop in samples:
            part = {name: tuple(values[at : at + count]) for name, values in lists.items()}
            turn = Turn(
                part["tokens"],
                part.get("sampled_logp"),
                by=by,
                versions=tuple((n, version) for n, version in versions),
                policy_logp=part.get("policy_logp"),
                extra=extra,
            )
            found[-1].append(Sample(turn, Stop(stop)))
            at += count
    return found


def sampling_from(plain: Mapping[str, Json]) -> Sampling:
    """Sampling options from plain data, where tuples have become lists."""
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }
    return Sampling(**options)
