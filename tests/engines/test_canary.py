"""A sampler that does not get the learner's weights, or not all of them, is found before the first step is paid for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import covey
from covey import assembly
from covey.canary import Canary
from covey.engines.adapters import TRAINED, adapted_layers
from covey.engines.cluster import Cluster
from covey.engines.fingerprint import fingerprint
from covey.engines.learner import TorchLearner
from covey.engines.loading import LoadedModel, load_model
from covey.engines.probe import BatchFinding
from covey.engines.sampler import HFSampler
from covey.engines.scorer import Scorer
from covey.engines.world import World
from covey.errors import DivergedError
from covey.types import Message, Request, Sample, Sampling

torch.set_num_threads(1)
SMALL = {
    "budget.prompts_per_step": 4,
    "budget.samples_per_prompt": 4,
    "budget.eval_problems": 1,
    "budget.eval_samples": 1,
    "budget.sampling.max_tokens": 20,
    "budget.optimizer.lr": 1e-6,
    "budget.checkpoint_every": None,
}
Publish = Callable[[HFSampler, Mapping[str, Tensor], int], None]


def whole(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    HFSampler.publish(sampler, weights, version)


def nothing(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    sampler.version = version


def one_is_left_out(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    own = dict(sampler.model.named_parameters())
    left = sorted(weights)[-1]
    HFSampler.publish(
        sampler, {name: own[name] if name == left else weight for name, weight in weights.items()}, version
    )


def base_only(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    own = dict(sampler.model.named_parameters())
    kept = {name: own[name] if ".lora_" in name else weight for name, weight in weights.items()}
    HFSampler.publish(sampler, kept, version)


def adapter_off(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    HFSampler.publish(sampler, weights, version)
    for _, layer in adapted_layers(sampler.model):
        layer._disable_adapters = True


def scaling_forgotten(sampler: HFSampler, weights: Mapping[str, Tensor], version: int) -> None:
    HFSampler.publish(sampler, weights, version)
    for _, layer in adapted_layers(sampler.model):
        layer.scaling[TRAINED] = 1.0


FAULTS = [nothing, base_only, adapter_off, scaling_forgotten]


class Remote:
    """A sampler on a model of its own, which nobody can look into."""

    def __init__(self, loaded: LoadedModel, publish: Publish, first: int) -> None:
        self.inside, self.broken, self.first = HFSampler(copy.deepcopy(loaded.model)), publish, first

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        return self.inside.sample(requests, sampling)

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        (self.broken if version >= self.first else whole)(self.inside, weights, version)


class Open(Remote):
    """The same, but it tells what it samples with."""

    def fingerprint(self, names: Sequence[str]) -> Any:
        return self.inside.fingerprint(names)

    def settings(self) -> Any:
        return self.inside.settings()


def train(
    monkeypatch: pytest.MonkeyPatch, out: Path, *, kind: type[Remote], fault: Publish, first: int = -1, **settings: Any
) -> None:
    """Two steps at a tiny learning rate with another sampler."""
    monkeypatch.setattr(assembly, "_sampler", lambda config, loaded, world: kind(loaded, fault, first))
    monkeypatch.setattr("covey.start.probe_batch", lambda sampler: BatchFinding(True, True, 0.0))
    covey.train(steps=2, out=out, quiet=True, **{**SMALL, **settings})


def steps_paid(folder: Path) -> int:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max((row["step"] for row in rows), default=0)


LORA = {"model.lora.rank": 4}


@pytest.mark.parametrize("kind", [Remote, Open])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_publish_is_found_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Remote], fault: Publish
) -> None:
    with pytest.raises(DivergedError) as caught:
        train(monkeypatch, tmp_path / "run", kind=kind, fault=fault, **LORA)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70
    assert "did not reach the sampler" in str(caught.value) or "learner differ by" in str(caught.value)
    assert steps_paid(tmp_path / "run") == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_publish_that_breaks_later_is_found_within_a_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Publish
) -> None:
    """At a learning rate of 1e-6, where outputs hardly differ yet: the fingerprint says what did not arrive."""
    with pytest.raises(DivergedError, match=r"step 1: .*layers.0.*did not reach the sampler") as caught:
        train(monkeypatch, tmp_path / "run", kind=Open, fault=fault, first=1, **LORA)
    words = {
        adapter_off: r"adapter [] instead of ['default']",
        scaling_forgotten: "scaling {'default': 1.0} instead of",
    }
    assert words.get(fault, "lora_") in str(caught.value)
    assert steps_paid(tmp_path / "run") == 1


@pytest.mark.parametrize("settings", [{}, LORA], ids=["whole", "adapters"])
@pytest.mark.parametrize("kind", [Remote, Open])
def test_a_sampler_of_its_own_that_is_told_everything_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Remote], settings: dict[str, Any]
) -> None:
    train(monkeypatch, tmp_path / "run", kind=kind, fault=whole, **settings)
    assert steps_paid(tmp_path / "run") == 2


@pytest.mark.parametrize("fault", [nothing, one_is_left_out])
@pytest.mark.parametrize("first", [-1, 1])
def test_a_whole_model_that_is_not_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Publish, first: int
) -> None:
    with pytest.raises(DivergedError, match="did not reach the sampler"):
        train(monkeypatch, tmp_path / "run", kind=Open, fault=fault, first=first)
    assert steps_paid(tmp_path / "run") == max(first, 0)


def make_canary(loaded: LoadedModel, sampler: Any, dtype: str = "float32", temperature: float = 1.0) -> Canary:
    learner = TorchLearner(Scorer(loaded.model), world=World(), tokens_per_slice=4096)
    cluster = Cluster(world=World(), learner=learner, sampler=sampler, objective=lambda *_: None)
    tokens = loaded.render([Message("user", "ab")])
    return Canary(cluster=cluster, tokens=tokens, temperature=temperature, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_probe_leaves_every_bit_as_it_was(dtype: str, temperature: float) -> None:
    loaded = load_model("tiny", dtype=dtype)
    canary = make_canary(loaded, HFSampler(loaded.model), dtype, temperature)
    before = {name: weight.clone() for name, weight in canary.cluster.weights().items()}
    canary.prove(0)
    assert all(torch.equal(weight, before[name]) for name, weight in canary.cluster.weights().items())
    assert canary.cluster.sampler.version == 0


def test_a_learner_that_ignores_what_it_trains_is_found() -> None:
    from covey.engines.adapters import Lora
    from covey.engines.loading import ModelOptions

    loaded = load_model("tiny", options=ModelOptions(lora=Lora(rank=2)))
    canary = make_canary(loaded, HFSampler(loaded.model))
    for _, layer in adapted_layers(loaded.model):
        layer._disable_adapters = True
    with pytest.raises(DivergedError, match=r"moves the learner's log-probabilities by .*e-0\d nats only"):
        canary.prove(0)


def test_weights_that_are_not_finite_are_found() -> None:
    loaded = load_model("tiny")
    canary = make_canary(loaded, HFSampler(loaded.model))
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError, match="or they are not finite"):
        canary.publish(7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_a_fingerprint_sees_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 121).reshape(10, 12).to(dtype)
    same = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == same
    assert fingerprint(tensor.T.contiguous().T) == same
    size = tensor.element_size()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    for at in (0, 1, 118, 119):
        changed = tensor.clone()
        changed.view(-1).view(bits)[at] ^= 1
        assert fingerprint(changed) != same
    swapped = tensor.clone()
    swapped.view(-1)[[0, 1]] = swapped.view(-1)[[1, 0]]
    assert fingerprint(swapped) != same
    assert fingerprint(torch.zeros(0)) == (0, 0)
