"""A sample depends on its request alone; its logp is the learner's; prompts are computed once and finished rows leave."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import CONTRACT, VOCABULARY, make_model, make_requests, make_rows, rows_of_samples
from torch import Tensor

from covey.engines import sampler as sampler_module
from covey.engines.plain import plain_logits
from covey.engines.sampler import Choice, HFSampler, Wave
from covey.engines.scorer import Scorer
from covey.errors import ConfigError, DataError
from covey.types import Request, Sample, Sampling, Stop


class Watched(HFSampler):
    """Keeps the logits of every sampled token by noise key."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.logits: dict[tuple[int, int], Tensor] = {}
        self.rows: list[int] = []

    def _choose(self, wave: Wave, logits: Tensor, step: int) -> Choice:
        for row in wave.live.nonzero()[:, 0].tolist():
            self.logits[int(wave.keys[row]), step] = logits[row].clone()
        self.rows.append(len(logits))
        return super()._choose(wave, logits, step)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.25])
@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract_with_the_scorer(name: str, dtype: torch.dtype, temperature: float) -> None:
    """pad == eos in all configurations; llama's and the mixture's heads are untied."""
    model = make_model(name, dtype)
    requests = make_requests(6, 4)
    found = HFSampler(model).sample(requests, Sampling(temperature, max_tokens=20, stop_ids=(2, 5)))
    rows = rows_of_samples(requests, found, torch.float64)
    with torch.no_grad():
        logp = Scorer(model)(rows, temperature=temperature)["logp"]
    difference = (logp.double() - rows.sampled_logp)[rows.mask].abs()
    scale = max(1.0, 1 / temperature)
    median, worst = (1e-9, 1e-9) if dtype == torch.float64 else (1e-5 * scale, 1e-4 * scale)
    assert difference.median() <= median
    assert difference.max() <= worst
    assert rows.sampled_logp[rows.mask].std() > 0.2, "a contract on flat distributions would prove little"


def together(sampler: Watched, requests: list[Request], batch: int, sampling: Sampling) -> dict[int, Sample]:
    """Samples by noise key, asked for `batch` requests at a time."""
    found = {}
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        for request, samples in zip(part, sampler.sample(part, sampling), strict=True):
            found |= dict(zip(request.noise_keys, samples, strict=True))
    return found


def check_batches(name: str, max_tokens: int, counts: dict[int, int]) -> None:
    """`counts` maps a batch size to how many of the 64 requests are sampled with it."""
    model = make_model(name)
    requests, sampling = make_requests(64, 1, seed=3, longest=70), Sampling(max_tokens=max_tokens, stop_ids=(2, 5))
    reference = Watched(model)
    expected = together(reference, requests, 64, sampling)
    for batch, count in counts.items():
        sampler = Watched(model)
        part = requests[-count:]
        found = together(sampler, part[:: -1 if batch == 8 else 1], batch, sampling)
        assert len(found) == count
        assert all(sample == expected[key] for key, sample in found.items()), f"batch {batch}"
        assert all(torch.equal(logits, reference.logits[key]) for key, logits in sampler.logits.items()), (
            f"batch {batch}"
        )
        assert len(sampler.logits) == sum(len(sample.turn.tokens) for sample in found.values())


@pytest.mark.parametrize("name", [*CONTRACT, "gemma2"])
def test_the_batch_changes_no_bit(name: str) -> None:
    check_batches(name, 12, {1: 8, 3: 9, 8: 24, 16: 32, 32: 64})


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONTRACT, "gemma2"])
def test_the_batch_changes_no_bit_in_long_samples(name: str) -> None:
    check_batches(name, 60, dict.fromkeys((1, 3, 8, 16, 32), 64))


def test_long_prompts_beside_short_ones_change_no_bit() -> None:
    """Keys far beyond one block of the sum, and prompts that fill several prefill runs."""
    model = make_model("qwen3", num_attention_heads=8, num_key_value_heads=2)
    requests = make_requests(5, 2, seed=1, longest=20)
    long = make_requests(4, 2, seed=2, longest=400)
    long = [
        Request(f"long{r.id}", tuple(5 + i % 50 for i in range(130 + 90 * at)), r.noise_keys)
        for at, r in enumerate(long)
    ]
    sampling = Sampling(max_tokens=12)
    alone, among = Watched(model), Watched(model, max_rows=64)
    expected = together(alone, requests + long, 1, sampling)
    assert together(among, long + requests, 9, sampling) == expected
    assert all(torch.equal(among.logits[key], alone.logits[key]) for key in alone.logits)


def test_waves_and_shared_prompts_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen3")
    requests, sampling = make_requests(5, 7), Sampling(max_tokens=10, stop_ids=(2, 5))
    expected = HFSampler(model).sample(requests, sampling)
    assert HFSampler(model, max_rows=5).sample(requests, sampling) == expected
    monkeypatch.setattr(sampler_module, "_PREFILL_TOKENS", 32)
    assert HFSampler(model, max_rows=17).sample(requests, sampling) == expected
    single = [
        [HFSampler(model).sample([Request("x", r.tokens, (k,))], sampling)[0][0] for k in r.noise_keys]
        for r in requests
    ]
    assert single == expected


def test_logits_are_those_of_the_plain_forward() -> None:
    model = make_model("gemma2", torch.float64)
    watched = Watched(model)
    request = Request("a", tuple(range(3, 33)), (11, 12, 13))
    [samples] = watched.sample([request], Sampling(max_tokens=30))
    for key, sample in zip(request.noise_keys, samples, strict=True):
        with torch.no_grad():
            plain = plain_logits(model, [*request.tokens, *sample.turn.tokens])[len(request.tokens) - 1 : -1]
        for step in range(len(sample.turn.tokens)):
            torch.testing.assert_close(watched.logits[key, step], plain[step], rtol=0, atol=1e-10)


def test_prompts_are_computed_once_and_finished_rows_leave() -> None:
    model = make_model("qwen3")
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    watched = Watched(model)
    requests, sampling = make_requests(16, 8, longest=16), Sampling(max_tokens=60, stop_ids=tuple(range(2, 12)))
    found = watched.sample(requests, sampling)
    lengths = torch.tensor([len(sample.turn.tokens) for samples in found for sample in samples])
    assert seen[0] == 16 * 16, "16 prompts of at most 16 tokens, not 128"
    alive = [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]
    assert len(seen) == 1 + len(alive)
    assert all(rows >= need for rows, need in zip(seen[1:], alive, strict=True))
    assert all(rows <= max(16, need / 0.9 + 16) for rows, need in zip(seen[1:], alive, strict=True))
    assert sum(seen[1:]) < 0.6 * 128 * len(alive), "the rest of the batch has left"


def force(model: torch.nn.Module, tokens: dict[int, int]) -> None:
    """Make token sequences certain: after token a comes tokens[a], by an embedding and head that only look at the last token."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        for at, (before, after) in enumerate(tokens.items()):
            model.model.embed_tokens.weight[before, at] = 1.0
            model.lm_head.weight[after, at] = 100.0


def test_stop_at_the_exact_limit() -> None:
    model = make_model("llama")
    force(model, {7: 8, 8: 9, 9: 2, 2: 10})
    request = [Request("a", (7,), (1,))]

    def run(**changes: object) -> tuple[tuple[int, ...], Stop]:
        [[sample]] = HFSampler(model).sample(request, Sampling(**{"stop_ids": (2,), **changes}))
        assert len(sample.turn.sampled_logp) == len(sample.turn.tokens)
        return sample.turn.tokens, sample.stop

    assert run(max_tokens=10) == ((8, 9, 2), Stop.END)
    assert run(max_tokens=3) == ((8, 9, 2), Stop.END), "a stop token at the limit is an end"
    assert run(max_tokens=2) == ((8, 9), Stop.LENGTH)
    assert run(max_tokens=1) == ((8,), Stop.LENGTH)
    assert run(max_tokens=4, stop_ids=()) == ((8, 9, 2, 10), Stop.LENGTH), "nothing ends a turn that was not asked for"
    assert run(max_tokens=10, stop_ids=(77, 9)) == ((8, 9), Stop.END)


class Letters:
    """A tokenizer whose tokens are letters, some of them two."""

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join({8: "ab", 9: "c", 10: "</s"}.get(token, ">") for token in row) for row in rows]


def test_stop_strings() -> None:
    model = make_model("llama")
    force(model, {7: 8, 8: 9, 9: 10, 10: 11, 11: 8})
    request = [Request("a", (7,), (1, 2))]
    samples = HFSampler(model, tokenizer=Letters()).sample(request, Sampling(max_tokens=9, stop=("</s>", "zz")))[0]
    assert [(s.turn.tokens, s.stop) for s in samples] == [((8, 9, 10, 11), Stop.END)] * 2
    samples = HFSampler(model, tokenizer=Letters()).sample(request, Sampling(max_tokens=9, stop=("bc",)))[0]
    assert samples[0].turn.tokens == (8, 9), "a string across tokens"
    samples = HFSampler(model, tokenizer=Letters()).sample(request, Sampling(max_tokens=3, stop=("ba",)))[0]
    assert (samples[0].turn.tokens, samples[0].stop) == ((8, 9, 10), Stop.LENGTH)
    with pytest.raises(ConfigError, match="need a tokenizer"):
        HFSampler(model).sample(request, Sampling(stop=("x",)))


def test_greedy() -> None:
    model = make_model("gpt2", torch.float64)
    request = Request("a", (4, 5, 6), (1, 99))
    [samples] = HFSampler(model).sample([request], Sampling(temperature=0, max_tokens=6))
    assert samples[0] == samples[1]
    with torch.no_grad():
        logits = plain_logits(model, [4, 5, 6, *samples[0].turn.tokens])[2:-1]
    assert logits.argmax(-1).tolist() == list(samples[0].turn.tokens)
    best = logits.log_softmax(-1).max(-1).values
    torch.testing.assert_close(
        torch.tensor(samples[0].turn.sampled_logp, dtype=torch.float64), best, rtol=0, atol=1e-10
    )


def test_truncated_sampling_records_both_logps() -> None:
    model = make_model("qwen3", torch.float64)
    requests = make_requests(3, 3)
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=10, max_tokens=8)
    found = HFSampler(model).sample(requests, sampling)
    rows = rows_of_samples(requests, found, torch.float64)
    with torch.no_grad():
        logp = Scorer(model)(rows, temperature=0.7)["logp"]
    assert (logp - rows.old_logp).abs().max() <= 1e-9
    assert (rows.sampled_logp >= rows.old_logp).all()
    plain = HFSampler(model).sample(requests, Sampling(max_tokens=4))
    assert all(sample.turn.policy_logp is None for samples in plain for sample in samples)


def test_first_token_frequencies() -> None:
    model = make_model("gemma")
    draws = 4000
    request = Request("a", (9, 8, 7), tuple(range(draws)))
    [samples] = HFSampler(model, max_rows=1000).sample([request], Sampling(max_tokens=1, temperature=0.7))
    counts = torch.bincount(torch.tensor([s.turn.tokens[0] for s in samples]), minlength=VOCABULARY).double()
    with torch.no_grad():
        p = (plain_logits(model, [9, 8, 7])[-1].double() / 0.7).softmax(-1)
    big = p * draws > 5
    statistic = ((counts - p * draws)[big] ** 2 / (p * draws)[big]).sum()
    degrees = int(big.sum())
    assert degrees > 8
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


def test_publish_copies_in_place_and_stamps_the_version() -> None:
    model = make_model("qwen3")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02)
    sampler, requests = HFSampler(model), make_requests(2, 2)
    storage = model.model.embed_tokens.weight.data_ptr()
    before = sampler.sample(requests, Sampling(max_tokens=8))
    sampler.publish(dict(other.named_parameters()), 5)
    after = sampler.sample(requests, Sampling(max_tokens=8))
    assert after != before
    assert [[s.turn.tokens for s in g] for g in after] == [
        [s.turn.tokens for s in g] for g in HFSampler(other).sample(requests, Sampling(max_tokens=8))
    ]
    assert model.model.embed_tokens.weight.data_ptr() == storage
    assert after[0][0].turn.versions == ((8, 5),)
    sampler.publish(dict(model.named_parameters()), 6)
    assert sampler.version == 6
    weights = dict(other.named_parameters())
    with pytest.raises(ConfigError, match="'nonsense' is unknown to the sampler's model"):
        sampler.publish({**weights, "nonsense": torch.zeros(1)}, 7)
    weights.pop("model.norm.weight")
    with pytest.raises(ConfigError, match=r"'model.norm.weight' is not among the published weights"):
        sampler.publish(weights, 7)
    assert sampler.version == 6


def test_a_sampler_may_share_the_learners_module() -> None:
    model, rows = make_model("qwen3", torch.float64), make_rows({0: (4, [5])})
    scorer, sampler = Scorer(model), HFSampler(model)
    logp = scorer(rows)["logp"]
    sampler.sample(make_requests(2, 2), Sampling(max_tokens=3))
    logp.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_limits_are_one_line() -> None:
    model = make_model("qwen3")
    sampler = HFSampler(model)
    with pytest.raises(DataError, match="request a: 500 prompt tokens and max_tokens 20 exceed the model's 512"):
        sampler.sample([Request("a", (3,) * 500, (1,))], Sampling(max_tokens=20))
    with pytest.raises(DataError, match="its prompt has no tokens"):
        sampler.sample([Request("a", (), (1,))], Sampling())
    with pytest.raises(ConfigError, match="max_tokens: got 0"):
        sampler.sample([Request("a", (3,), (1,))], Sampling(max_tokens=0))
    assert sampler.sample([], Sampling()) == []
    assert sampler.sample([Request("a", (3,), ())], Sampling()) == [[]]


def test_the_models_context_can_be_filled() -> None:
    model = make_model("gpt2")
    [[sample]] = HFSampler(model).sample([Request("a", (3,) * 505, (1,))], Sampling(max_tokens=7))
    assert len(sample.turn.tokens) == 7
